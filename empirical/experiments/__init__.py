"""Experiments as small declarative files: what is trained, how it is pruned, how it is attacked.

``catalog/`` holds those of the paper and the controls it lacks; a copy with other values is a new one.
"""

from empirical.experiments.specification import Experiment, Network, catalog, read_experiment

__all__ = ["Experiment", "Network", "catalog", "read_experiment"]
