"""Linear classifiers: exact radii, and what class statistics alone allow."""

from theory.linear.binary import (
    binary_mean_radius,
    hoelder_ceiling,
    markov_bound,
    sparse_ceiling,
    support_ceiling,
)
from theory.linear.exact import (
    boundary_distances,
    fgs_accuracy,
    margins,
    mean_radius,
    norm_interpolation,
    radius,
    robust_accuracy,
)
from theory.linear.multiclass import (
    RunnerUp,
    jensen_bound,
    paper_multiclass_bound,
    runner_up_decomposition,
    weight_free_bound,
)
from theory.linear.statistics import ClassStatistics, class_statistics

__all__ = [
    "ClassStatistics",
    "RunnerUp",
    "binary_mean_radius",
    "boundary_distances",
    "class_statistics",
    "fgs_accuracy",
    "hoelder_ceiling",
    "jensen_bound",
    "margins",
    "markov_bound",
    "mean_radius",
    "norm_interpolation",
    "paper_multiclass_bound",
    "radius",
    "robust_accuracy",
    "runner_up_decomposition",
    "sparse_ceiling",
    "support_ceiling",
    "weight_free_bound",
]
