"""Laws of the random-mask rungs for networks with few active units, and of the sums of the largest."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from theory.laws import active as laws
from theory.laws import strategies as draw
from theory.laws.law import Case, Kind, Law
from theory.relu import (
    active_bernstein_bound,
    active_frobenius_bound,
    active_path_bound,
    active_second_moment_bound,
)
from theory.relu.largest_sums import knapsack_bound, scarf_bound
from theory.types import ReLUNetwork

PAIR = (0, 1)
RUNGS = {
    "F": (active_frobenius_bound, 2.0),
    "P1": (active_path_bound, math.inf),
    "P2": (active_second_moment_bound, 2.0),
    "B": (active_bernstein_bound, 2.0),
}


def by_means(mean: np.ndarray, variance: np.ndarray, largest: np.ndarray, count: int) -> np.ndarray:
    """The bound of the expected sum of the largest by means and ranges alone."""
    share = np.divide(mean, largest, out=np.zeros_like(mean), where=largest > 0)
    return knapsack_bound(largest, share, count)


def _cases(*, second: bool = False, **more: st.SearchStrategy) -> st.SearchStrategy[Case]:
    """A masked network and a count for each hidden layer, at times above its width; or two counts."""

    def with_counts(case: tuple[ReLUNetwork, np.ndarray]) -> st.SearchStrategy[Case]:
        net, alphas = case
        names = ("active", "more") if second else ("active",)
        counts = {name: draw.active_counts(net) for name in names}
        fixed = {"net": st.just(net), "alphas": st.just(alphas), "pair": st.just(PAIR)}
        return st.fixed_dictionaries(fixed | counts | more)

    return draw.masked_networks().flatmap(with_counts)


def _sums() -> st.SearchStrategy[Case]:
    sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))
    return sizes.flatmap(
        lambda size: st.fixed_dictionaries(
            {
                "outcomes": draw.arrays(size, scales=draw.MODERATE),
                "chances": draw.arrays(size[:1]),
                "count": st.integers(0, size[1]),
            }
        )
    )


def _law(
    name: str, kind: Kind, check: Callable, formula: Callable, cases: st.SearchStrategy, statement: str
) -> Law:
    return Law(f"masks.{name}", statement, kind, check, formula, cases)


LAWS: tuple[Law, ...] = (
    *(
        _law(
            f"active-{name}",
            "bound",
            laws.law_bounds_active_supremum,
            rung,
            _cases(p=st.just(p)),
            f"E sup ||J||_q <= {name}, at most k_j active units",
        )
        for name, (rung, p) in RUNGS.items()
    ),
    *(
        _law(
            f"active-{name}-grows",
            "bound",
            laws.law_grows_with_active,
            rung,
            _cases(second=True),
            f"{name} does not fall with any k_j, and is 0 where one is 0",
        )
        for name, (rung, _) in RUNGS.items()
    ),
    *(
        _law(
            f"largest-{name}",
            "bound",
            laws.law_bounds_largest_sum,
            bound,
            _sums(),
            f"E sum of the k largest <= its bound by {name}",
        )
        for name, bound in (("variances", scarf_bound), ("means", by_means))
    ),
)
