"""ReLU networks: Lipschitz constants, certified radii, and expectations under random masks.

What needs PyTorch is imported by its module: :mod:`theory.relu.sequential_moments` and
:mod:`theory.relu.mask_sampling`.
"""

from theory.relu.active_masks import (
    active_bernstein_bound,
    active_frobenius_bound,
    active_ladder,
    active_path_bound,
    active_second_moment_bound,
    best_active_bound,
)
from theory.relu.certificate import (
    certified_radius,
    crown_certified_radius,
    local_certified_radius,
    margin_lower_bounds,
)
from theory.relu.decomposition import Decomposition, Robustness, decompose
from theory.relu.exact import ExactRadius, exact_radius
from theory.relu.exact_lipschitz import ExactLipschitz, exact_local_lipschitz
from theory.relu.halfcut import halfcut_bound, halfcut_path_bound
from theory.relu.lipschitz import gradient_norms, lipschitz_constants, local_gradient, norm_product, path_norm
from theory.relu.margins import local_lipschitz, margin_bounds, preactivation_bounds
from theory.relu.mask_margins import expected_margin_bound, margin_moment_bounds
from theory.relu.mask_tails import high_probability_bound
from theory.relu.masks import (
    bernstein_bound,
    best_bound,
    column_sum_bound,
    eta_frobenius,
    eta_path,
    expected_path_norm,
    frobenius_bound,
    ladder,
    monte_carlo,
    second_moment_bound,
)
from theory.relu.milp import milp_radius
from theory.relu.moments import Prediction, best_sparsity, predict, runner_up
from theory.relu.oversparsification import (
    RadiusCurve,
    expected_lipschitz,
    expected_radius_confidence,
    expected_radius_lower_bound,
    expected_radius_upper_bound,
    oversparse_kept_fraction,
    radius_curve,
)

__all__ = [
    "Decomposition",
    "ExactLipschitz",
    "ExactRadius",
    "Prediction",
    "RadiusCurve",
    "Robustness",
    "active_bernstein_bound",
    "active_frobenius_bound",
    "active_ladder",
    "active_path_bound",
    "active_second_moment_bound",
    "bernstein_bound",
    "best_active_bound",
    "best_bound",
    "best_sparsity",
    "certified_radius",
    "column_sum_bound",
    "crown_certified_radius",
    "decompose",
    "eta_frobenius",
    "eta_path",
    "exact_local_lipschitz",
    "exact_radius",
    "expected_lipschitz",
    "expected_margin_bound",
    "expected_path_norm",
    "expected_radius_confidence",
    "expected_radius_lower_bound",
    "expected_radius_upper_bound",
    "frobenius_bound",
    "gradient_norms",
    "halfcut_bound",
    "halfcut_path_bound",
    "high_probability_bound",
    "ladder",
    "lipschitz_constants",
    "local_certified_radius",
    "local_gradient",
    "local_lipschitz",
    "margin_bounds",
    "margin_lower_bounds",
    "margin_moment_bounds",
    "milp_radius",
    "monte_carlo",
    "norm_product",
    "oversparse_kept_fraction",
    "path_norm",
    "preactivation_bounds",
    "predict",
    "radius_curve",
    "runner_up",
    "second_moment_bound",
]
