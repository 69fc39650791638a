"""The paper's claims, judged from a results table: verdict, effect, interval and test.

The seed is the unit: a gain is (pruned - dense) / dense between networks of one seed that were trained
equally long. Verdicts are ``supported``, ``refuted`` and ``inconclusive``; "no effect" is never read off a
large p-value, but needs an interval inside the declared margin.
"""

from empirical.claims.judge import STATEMENTS, judge
from empirical.claims.theorems import violations
from empirical.claims.verdicts import Verdict

__all__ = ["STATEMENTS", "Verdict", "judge", "violations"]
