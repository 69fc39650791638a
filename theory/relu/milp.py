"""The minimal l_inf perturbation as one mixed-integer linear program, solved by HiGHS.

A second road to what :mod:`theory.relu.exact` computes, with nothing in common but the pre-activation bounds
of the encoding. Its answer rests on the solver's tolerances; nothing is proven from it.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.optimize import milp
from scipy.sparse import coo_array

from theory.relu.margins import margin_bounds, preactivation_bounds
from theory.types import InvalidInput, ReLUNetwork, check_examples


def milp_radius(
    net: ReLUNetwork,
    x: Float[Array, "m n"],
    y: Int[Array, " m"],
    *,
    radius: Float[Array, " m"],
    time_limit: float = 60.0,
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Minimal l_inf perturbation that changes the class, an estimate: HiGHS's dual bound and objective.

    ``radius`` is known to suffice: the bounds behind the big-M constants hold on that ball, and only classes
    that can win there may be chosen. Units of one sign on it need no binary; one more binary for each class
    chooses the winner. Exact but for the solver's tolerances (1e-6 on constraints and integrality, times the
    big M); (radius, inf) where it finds no point in the ball.

    Raises: InvalidInput for bad x, y or radius, or a negative or NaN time_limit.
    Reference: Tjeng, Xiao, Tedrake 2019.
    """
    if not time_limit >= 0:
        raise InvalidInput(f"time_limit is {time_limit!r}; pass seconds >= 0")
    x, labels = check_examples(net, x, y)
    bounds = preactivation_bounds(net, x, p=math.inf, radius=radius)
    margins = margin_bounds(net, x, labels, p=math.inf, radius=radius)
    found = np.empty((2, len(x)))
    for e, label in enumerate(labels.tolist()):
        ends = [(low[e], high[e]) for low, high in bounds]
        program = _Program(net, x[e], float(radius[e]), ends)
        program.choose_winner(label, np.minimum(margins[e], 0.0))
        found[:, e] = program.solve(time_limit)
    return found[0], found[1]


class _Program:
    """min t over d, with |d_i| <= t, and a variable for each hidden unit and binary."""

    def __init__(
        self,
        net: ReLUNetwork,
        x: Float[Array, " n"],
        radius: float,
        ends: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.net, self.radius = net, radius
        self.low, self.high, self.binary = [0.0], [radius], [False]  # t is variable 0
        self.rows: list[tuple[list[int], list[float], float]] = []  # indices, coefficients, right-hand side
        layer = [self.variable(value - radius, value + radius) for value in x]
        for i, value in zip(layer, x, strict=True):
            self.at_most([i, 0], [1.0, -1.0], value)
            self.at_most([i, 0], [-1.0, -1.0], -value)
        for weight, bias, (lower, upper) in zip(net.weights, net.biases, ends, strict=False):
            layer = [
                self.unit(layer, *line)
                for line in zip(weight, bias.tolist(), lower.tolist(), upper.tolist(), strict=True)
            ]
        self.last = layer

    def variable(self, low: float, high: float, *, binary: bool = False) -> int:
        """A new variable's index."""
        self.low.append(low)
        self.high.append(high)
        self.binary.append(binary)
        return len(self.low) - 1

    def at_most(self, indices: list[int], coefficients: list[float], right: float) -> None:
        """The constraint coefficients . variables <= right."""
        self.rows.append((indices, coefficients, right))

    def unit(self, below: list[int], weight: np.ndarray, bias: float, lower: float, upper: float) -> int:
        """The variable relu(weight . below + bias), given bounds of what is inside."""
        h = self.variable(0.0, max(upper, 0.0))
        if upper <= 0:
            return h
        used = np.flatnonzero(weight)
        inputs, coefficients = [below[j] for j in used], weight[used].tolist()
        self.at_most([*inputs, h], [*coefficients, -1.0], -bias)  # h >= z
        if lower >= 0:
            self.at_most([*inputs, h], [-c for c in coefficients] + [1.0], bias)
        else:
            on = self.variable(0.0, 1.0, binary=True)
            self.at_most([*inputs, h, on], [-c for c in coefficients] + [1.0, -lower], bias - lower)
            self.at_most([h, on], [1.0, -upper], 0.0)
        return h

    def choose_winner(self, label: int, lowest: Float[Array, " c"]) -> None:
        """Some class k has g_label - g_k <= 0; ``lowest`` holds lower bounds of the differences."""
        last, bias = self.net.weights[-1], self.net.biases[-1]
        # An upper bound of each difference: minus the lower bound when the signs of the rows are turned.
        chosen = []
        for k in np.flatnonzero(lowest < 0).tolist():
            row, offset = last[label] - last[k], float(bias[label] - bias[k])
            most = offset + sum(
                max(c * self.low[i], c * self.high[i]) for c, i in zip(row, self.last, strict=True)
            )
            wins = self.variable(0.0, 1.0, binary=True)
            used = np.flatnonzero(row)
            indices = [self.last[j] for j in used]
            self.at_most([*indices, wins], [*row[used].tolist(), max(most, 0.0)], max(most, 0.0) - offset)
            chosen.append(wins)
        self.at_most(chosen, [-1.0] * len(chosen), -1.0)

    def solve(self, time_limit: float) -> tuple[float, float]:
        """The solver's dual bound and objective."""
        where = [(r, i, c) for r, (ids, cs, _) in enumerate(self.rows) for i, c in zip(ids, cs, strict=True)]
        r, i, c = zip(*where, strict=True)
        matrix = coo_array((c, (r, i)), shape=(len(self.rows), len(self.low))).tocsc()
        found = milp(
            np.eye(1, len(self.low))[0],
            integrality=np.array(self.binary, dtype=int),
            bounds=(np.array(self.low), np.array(self.high)),
            constraints=(matrix, -math.inf, np.array([right for _, _, right in self.rows])),
            options={"time_limit": time_limit, "mip_rel_gap": 1e-9},
        )
        if found.status == 2:  # infeasible: no class wins in the ball
            return self.radius, math.inf
        lower = 0.0 if found.mip_dual_bound is None else found.mip_dual_bound
        return float(lower), math.inf if found.x is None else float(found.fun)
