"""The theorems as falsifiable laws: strategies draw cases, checks take the formula under test.

``strategies`` draws norms, sparsities, data, linear classifiers and ReLU networks with Hypothesis; every
other module holds the laws of one part of the theory. A law raises AssertionError when the candidate breaks
it.
"""
