"""Closed forms, bounds and certificates: robustness as a function of weight sparsity.

Nothing here trains or attacks a network; see :mod:`empirical` for that.
"""
