"""The theorems as falsifiable laws: strategies draw cases, checks take the formula under test.

``strategies`` draws norms, sparsities, data, linear classifiers and ReLU networks with Hypothesis. The
modules named after a part of the theory hold its laws: functions that raise AssertionError when the
candidate breaks them, and return how close it came. ``catalog`` lists every law with its formula and cases,
``hunt`` looks for counterexamples, and ``claim`` turns a conjecture of your own into a law.
"""

from theory.laws.claim import conjecture

__all__ = ["conjecture"]
