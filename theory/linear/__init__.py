"""Linear classifiers: exact radii, what class statistics alone allow, Gaussian classes, random masks."""

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
from theory.linear.gaussian import (
    GaussianClasses,
    gaussian_mean_radius,
    gaussian_pruning_limit,
    gaussian_robust_accuracy,
    gaussian_statistics,
    laplace_pruning_limit,
)
from theory.linear.gaussian_masks import masked_gaussian_mean_radius
from theory.linear.gaussian_optimum import optimal_robust_accuracy, optimal_robust_classifier
from theory.linear.masks import MaskAverage, masked_mean_radius
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
    "GaussianClasses",
    "MaskAverage",
    "RunnerUp",
    "binary_mean_radius",
    "boundary_distances",
    "class_statistics",
    "fgs_accuracy",
    "gaussian_mean_radius",
    "gaussian_pruning_limit",
    "gaussian_robust_accuracy",
    "gaussian_statistics",
    "hoelder_ceiling",
    "jensen_bound",
    "laplace_pruning_limit",
    "margins",
    "markov_bound",
    "masked_gaussian_mean_radius",
    "masked_mean_radius",
    "mean_radius",
    "norm_interpolation",
    "optimal_robust_accuracy",
    "optimal_robust_classifier",
    "paper_multiclass_bound",
    "radius",
    "robust_accuracy",
    "runner_up_decomposition",
    "sparse_ceiling",
    "support_ceiling",
    "weight_free_bound",
]
