"""The numbers that a page about one network is made of, from the rows of its parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.functional import pad

from empirical.own_network.check import Findings
from empirical.own_network.tables import NORMS

CONFIDENCE = 0.95
# A level of pruning is harmless while accuracy is within this share of the examples of what it was.
HARMLESS = 0.02
GROUP = 4  # of inputs, of which sparse tensor cores skip two


@dataclass(frozen=True)
class Layer:
    """One pruned or prunable parameter, read as (outputs, inputs, ...).

    ``densest`` is the largest number of weights that are not zero in any group of four inputs, 1 to 4, 5 to
    8, ..., of an output: 2 or less is 2:4 sparsity. None where there are fewer than four inputs. ``silent``
    outputs have no weights left.
    """

    name: str
    shape: str
    weights: int
    zeros: int
    densest: int | None
    silent: int

    @property
    def sparsity(self) -> float:
        """The share of its entries that are zero."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class Sandwich:
    """What is known of the radii in one norm: certified and attacked per example, and the ceiling of means.

    ``certified``, ``ceiling`` and ``passable``, that of the robust accuracy by radius, are None where nothing
    could be proved. ``mean_attacked`` counts a radius of inf as the largest distance in the data's box.
    """

    norm: str
    certified: Float[Array, " n"] | None
    attacked: Float[Array, " n"]
    ceiling: float | None
    passable: pd.Series | None
    mean_attacked: float

    @property
    def mean_certified(self) -> float | None:
        """The mean of the certified radii, a lower bound on the mean radius."""
        return None if self.certified is None else float(self.certified.mean())

    def shares(self, radius: float) -> tuple[float | None, float, float | None]:
        """Shares of the examples certified at the radius, not broken within it, and at most robust there."""
        certain = None if self.certified is None else float((self.certified > radius).mean())
        most = None if self.passable is None else float(self.passable[self.passable.index <= radius].iloc[-1])
        return certain, float((self.attacked > radius).mean()), most


def layers(findings: Findings) -> list[Layer]:
    """The weights that multiply values, each by the name of its parameter, and all together."""
    found = [_layer(name, weight) for name, weight in findings.network.weights.items()]
    total = Layer(
        "all layers",
        "",
        sum(part.weights for part in found),
        sum(part.zeros for part in found),
        max((part.densest for part in found if part.densest is not None), default=None),
        sum(part.silent for part in found),
    )
    return [*found, total]


def _layer(name: str, weight: Tensor) -> Layer:
    there = weight != 0
    inputs = weight.shape[1]
    fours = pad(there.movedim(1, -1).int(), (0, -inputs % GROUP)).unflatten(-1, (-1, GROUP)).sum(-1)
    return Layer(
        name,
        " x ".join(map(str, weight.shape)),
        weight.numel(),
        int((~there).sum()),
        int(fours.max()) if inputs >= GROUP else None,
        int((~there.flatten(1).any(1)).sum()),
    )


def accuracy(findings: Findings) -> tuple[float, float, float, int]:
    """Clean accuracy, the ends of its Wilson interval, and the number of examples."""
    rows = findings.measured
    value = float(rows.loc[(rows["quantity"] == "accuracy"), "value"].iloc[0])
    count = rows.loc[rows["quantity"] == "radius", "example"].nunique()
    interval = binomtest(round(value * count), count).proportion_ci(CONFIDENCE, method="wilson")
    return value, float(interval.low), float(interval.high), count


def sandwiches(findings: Findings) -> list[Sandwich]:
    """Both norms, as far as attacks measured them."""
    found = []
    for norm in NORMS:
        attacks = _radii(findings.measured, norm, findings.measured["method"].ne("best"))
        if attacks.empty:
            continue
        certified = ceiling = passable = None
        if isinstance(findings.bounds, pd.DataFrame):
            rows = findings.bounds[findings.bounds["norm"] == norm]
            certified = _radii(rows, norm, rows["nature"].eq("lower bound")).max().to_numpy()
            rows = rows[rows["method"] == "universal ceiling"]
            ceiling = float(rows.loc[rows["quantity"] == "mean_radius", "value"].iloc[0])
            passable = rows[rows["quantity"] == "robust_accuracy"].set_index("radius")["value"].sort_index()
        best = findings.measured[
            (findings.measured["quantity"] == "mean_radius")
            & (findings.measured["method"] == "best")
            & (findings.measured["norm"] == norm)
        ]
        found.append(
            Sandwich(
                norm, certified, attacks.min().to_numpy(), ceiling, passable, float(best["value"].iloc[0])
            )
        )
    return found


def curves(findings: Findings) -> pd.DataFrame:
    """Robust accuracy as a function of the radius, as :mod:`paper_figures.robust_accuracy` draws it."""
    parts = []
    for part in sandwiches(findings):
        for source, radii in (("certified", part.certified), ("attacked", part.attacked)):
            if radii is not None:
                at = np.unique(np.append(radii[np.isfinite(radii)], 0.0))
                share = (radii > at[:, None]).mean(1)
                parts.append(
                    pd.DataFrame({"radius": at, "share": share, "source": source, "norm": part.norm})
                )
        if part.passable is not None:
            rows = part.passable.rename("share").reset_index()
            parts.append(rows.assign(source="ceiling", norm=part.norm))
    return pd.concat(parts, ignore_index=True)


def harmless(findings: Findings) -> float:
    """The highest level of magnitude pruning up to which accuracy stays as it was; 0 if none does."""
    rows = findings.further
    rows = rows[(rows["quantity"] == "accuracy") & (rows["pruning"] == "one-shot")].sort_values("sparsity")
    kept = rows["value"] >= rows["value"].iloc[0] - HARMLESS
    lost = rows.loc[~kept, "sparsity"]
    return float(rows.loc[kept & (rows["sparsity"] < lost.min() if len(lost) else True), "sparsity"].max())


def _radii(rows: pd.DataFrame, norm: str, chosen: pd.Series) -> pd.DataFrame:
    """Methods x examples of the radii in one norm."""
    own = rows[(rows["quantity"] == "radius") & (rows["norm"] == norm) & rows["example"].notna() & chosen]
    plain = own.astype({"method": str, "example": int})
    return plain.pivot_table(index="method", columns="example", values="value", aggfunc="first")
