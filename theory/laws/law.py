"""The noun of the hunt: a law with the formula under test and the cases it must hold in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import strategies as st

LEVEL = 1e3  # the logarithm of an infinite ratio: beyond that of any float
TIE = 9  # decimals of the logarithm of a bound's ratio: closer ones differ by rounding, and the first counts
Case = dict[str, Any]  # keyword arguments of a check, by name
Kind = Literal["bound", "identity", "property"]


@dataclass(frozen=True)
class Law:
    """``check(formula, **case)`` holds for every case, or raises AssertionError.

    What it returns says how close the case came to failing: for a *bound* (bound + rounding) / truth, at
    least 1; for an *identity* the relative error; for a *property*, which holds or does not, None.

    ``cases`` draws the keyword arguments. If ``free``, the hunt also changes entries of the arrays in them,
    never beyond the size of the array's largest entry, and keeps arrays of non-negative numbers so, and those
    of numbers in [0, 1] too; everything else stays. So what must agree with the arrays, such as predicted
    labels, is computed by the check. A changed case that a precondition rejects (InvalidInput) is none.
    ``source`` is Python code that binds the name ``law`` to this law.
    """

    name: str
    statement: str
    kind: Kind
    check: Callable[..., float | None]
    formula: Callable[..., Any]
    cases: st.SearchStrategy[Case] = field(repr=False)
    source: str = ""
    free: bool = True

    def ratio(self, case: Case) -> float:
        """What the check returns, NaN for a property. Raises: AssertionError where the law fails."""
        found = self.check(self.formula, **case)
        return math.nan if found is None else float(found)

    def closeness(self, ratio: float) -> float:
        """How near a failure a ratio is, the larger the nearer: -log of a bound's, log of an identity's."""
        if math.isnan(ratio):
            return -math.inf
        size = math.log(ratio) if 0 < ratio < math.inf else LEVEL if ratio > 0 else -LEVEL
        return round(-size, TIE) if self.kind == "bound" else size
