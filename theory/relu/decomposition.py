"""Where a change of the mean radius came from: the margin, the Lipschitz constant, or neither.

For one network let C be its correct examples with a positive finite margin m, local Lipschitz constant L and
radius r, M the number of all examples. Then, with G the geometric mean over C,

    log R = log G(m) - log G(L) + log( R G(L) / G(m) ),

R the mean radius over all M examples (misclassified ones have radius 0). The last term, the remainder, holds
what margin and gradient at x do not see: curvature, accuracy, the spread between examples. Differences of
the three terms between two networks add up to the change of log R exactly, whatever is put in for L: a local
gradient norm, a certified constant, a CLEVER score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from theory.linear.exact import mean_of
from theory.types import InvalidInput, finite_array


@dataclass(frozen=True)
class Robustness:
    """Radius, margin and local Lipschitz constant of each example of one network, all (m,).

    radius: l_p distance to the nearest error, 0 where misclassified, inf where none was found.
    margin: min_k (g_y - g_k)(x), not positive where misclassified. lipschitz: non-negative, in the dual norm.
    Raises: InvalidInput for NaN, negative radii or constants, or shapes that disagree.
    """

    radius: Float[Array, " m"]
    margin: Float[Array, " m"]
    lipschitz: Float[Array, " m"]

    def __post_init__(self) -> None:
        shape = np.shape(self.margin)
        for name in ("radius", "margin", "lipschitz"):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != shape or value.ndim != 1 or value.size == 0:
                raise InvalidInput(
                    f"{name} has shape {value.shape}; give one value per example, as margin {shape}"
                )
            if np.isnan(value).any() or (name != "margin" and (value < 0).any()):
                raise InvalidInput(
                    f"{name} has a NaN or negative entry; leave unmeasured examples out of all three"
                )
            object.__setattr__(self, name, value)
        finite_array("margin", self.margin, ndim=1)


@dataclass(frozen=True)
class Decomposition:
    """Terms of log(mean radius pruned / mean radius dense): change = margin + lipschitz + remainder.

    used: correct examples in the geometric means of (pruned, dense). through: the larger of the two first
    terms where it points the way of the change and exceeds the remainder in size, else "remainder".
    """

    change: float
    margin: float
    lipschitz: float
    remainder: float
    used: tuple[int, int]
    through: Literal["margin", "lipschitz", "remainder"]


def decompose(pruned: Robustness, dense: Robustness, *, cap: float, paired: bool = True) -> Decomposition:
    """Split the change of the log mean radius from dense to pruned into three terms, an identity.

    margin = log G(m') - log G(m), lipschitz = log G(L) - log G(L') (positive where pruning lowered L), the
    rest remainder. Radii are capped at ``cap``. Examples with margin <= 0, or with a constant that is 0 or
    infinite, have no logarithm and stay out of G; misclassified ones are to be given a radius of 0. With
    ``paired`` both G run over the examples usable in both networks, so that no term compares different
    examples; without it each network keeps its own.

    Raises: InvalidInput for a cap that is not positive and finite, paired networks with different numbers of
      examples, a mean radius of 0, or a network without a usable example.
    Reference: this project.
    """
    if not (cap > 0 and math.isfinite(cap)):
        raise InvalidInput(f"cap is {cap!r}; give a positive finite radius, such as the diameter of the data")
    own, other = usable(pruned), usable(dense)
    if paired:
        if len(own) != len(other):
            raise InvalidInput(
                f"pruned has {len(own)} examples, dense {len(other)}; pairing needs the same ones"
            )
        own = other = own & other
    logs = []
    for name, network, rows in (("pruned", pruned, own), ("dense", dense, other)):
        mean = float(mean_of(np.minimum(network.radius, cap)))
        if not rows.any() or mean == 0:
            raise InvalidInput(
                f"{name} has {int(rows.sum())} usable examples and mean radius {mean:g}; nothing to decompose"
            )
        terms = np.log(network.margin[rows]).mean(), np.log(network.lipschitz[rows]).mean()
        logs.append((math.log(mean), float(terms[0]), float(terms[1])))
    change, margin = logs[0][0] - logs[1][0], logs[0][1] - logs[1][1]
    lipschitz = logs[1][2] - logs[0][2]
    remainder = change - margin - lipschitz
    return Decomposition(
        change,
        margin,
        lipschitz,
        remainder,
        (int(own.sum()), int(other.sum())),
        _through(change, margin, lipschitz, remainder),
    )


def usable(network: Robustness) -> Bool[Array, " m"]:
    """Correct examples with a logarithm of margin and constant, an identity: m > 0 and 0 < L < inf."""
    return (network.margin > 0) & (network.lipschitz > 0) & np.isfinite(network.lipschitz)


def _through(
    change: float, margin: float, lipschitz: float, remainder: float
) -> Literal["margin", "lipschitz", "remainder"]:
    """The term that carries the change: of its sign, which 0 has not, and larger than the remainder."""
    sign = float(np.sign(change))
    if max(sign * margin, sign * lipschitz) <= abs(remainder):
        return "remainder"
    return "margin" if sign * margin > sign * lipschitz else "lipschitz"
