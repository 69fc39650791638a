"""Train, prune, attack and measure ensembles of networks.

Only ``comparison``, ``claims``, ``report``, ``verify`` and ``cli`` know the formulas of :mod:`theory`;
everything else measures, so that agreement between the two sides is evidence.
"""
