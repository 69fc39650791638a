"""Train, prune, attack and measure ensembles of networks.

Only the files that compare the two sides, and those that bound a network of one's own, know the formulas of
:mod:`theory`; everything else measures, so that agreement between the two sides is evidence.
"""
