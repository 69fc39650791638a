"""What every bound on a randomly masked network starts from: keep probabilities, v, moments of paths."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.relu.lipschitz import raised, scaled
from theory.types import InvalidInput, ReLUNetwork, check_pair, check_subnormal_numbers


def keep_probabilities(net: ReLUNetwork, alphas: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """k = 1 - alpha for every layer, an identity; float64 whatever the type of ``alphas``.

    Raises: InvalidInput for alphas outside [0, 1], of another length than the layers, or that are no array.
    """
    alphas = check_sparsities(alphas)
    if alphas.shape[-1] != len(net.weights):
        raise InvalidInput(
            f"alphas has shape {alphas.shape}; the last axis needs {len(net.weights)}, one per layer"
        )
    return 1.0 - alphas


def check_sparsities(alphas: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Return sparsities as float64: a type of fewer digits would round what is computed from them.

    Raises: InvalidInput for one outside [0, 1], a NaN, or what is no array of real numbers, or as
      ``check_subnormal_numbers``.
    """
    check_subnormal_numbers()
    if not isinstance(alphas, np.ndarray) or alphas.ndim == 0 or alphas.dtype.kind not in "iuf":
        raise InvalidInput(
            f"alphas is {alphas!r}; pass a NumPy array of real numbers, one sparsity per layer in its last "
            "axis"
        )
    if not ((alphas >= 0) & (alphas <= 1)).all():
        raise InvalidInput("alphas has an entry outside [0, 1]; sparsity is the fraction of weights removed")
    return alphas.astype(np.float64)


def last_layer(
    net: ReLUNetwork,
    keep: Float[Array, "*batch d"],
    alphas: Float[Array, "*batch d"],
    pair: tuple[int, int],
) -> tuple[Float[Array, "*batch h"], Float[Array, "*batch h"], np.ndarray]:
    """E|v_u| and E v_u^2 as mantissas and exponent, a bound: first raised, second at least its square.

    Raises: InvalidInput for a bad pair.
    """
    check_pair(pair, classes=net.classes)
    rows = net.weights[-1][list(pair)]
    (a, b), exponent = scaled(rows)
    kept, dropped = keep[..., -1:], alphas[..., -1:]
    first = kept**2 * np.abs(a - b) + kept * dropped * (np.abs(a) + np.abs(b))
    support = (kept > 0) & np.where(dropped > 0, rows.any(axis=0), rows[0] != rows[1])
    first = raised(first, support)
    second = kept**2 * (a - b) ** 2 + kept * dropped * (a**2 + b**2)
    return first, np.maximum(second, first**2), exponent


def path_moment(
    layers: list[Float[Array, "_ _"]], gram: Float[Array, "g g"], keep: Float[Array, " d"]
) -> tuple[Float[Array, "h h"], int]:
    """H = E[B B'] as mantissa and exponent, a bound equal but for rounding.

    B is the product of the masked layers of magnitudes, from the input up; gram = W_1 W_1'.
    """
    moment, spread, exponent = gram, np.diag(gram), 0
    for j, layer in enumerate(layers):
        if j:
            moment, spread = layer @ moment @ layer.T, layer**2 @ np.diag(moment)
        moment = keep[j] ** 2 * moment
        moment[np.diag_indices_from(moment)] += keep[j] * (1.0 - keep[j]) * spread
        support = moment > 0  # nothing underflows, so a zero is a true zero
        moment, carry = scaled(moment)
        moment, exponent = raised(moment, support), exponent + int(carry)
    return moment, exponent
