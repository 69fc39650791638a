"""ReLU networks: Lipschitz constants, certified radii, and expectations under random masks."""

from theory.relu.certificate import (
    certified_radius,
    crown_certified_radius,
    local_certified_radius,
    margin_lower_bounds,
)
from theory.relu.exact import ExactRadius, exact_radius
from theory.relu.exact_lipschitz import ExactLipschitz, exact_local_lipschitz
from theory.relu.halfcut import halfcut_bound, halfcut_path_bound
from theory.relu.lipschitz import gradient_norms, lipschitz_constants, local_gradient, norm_product, path_norm
from theory.relu.margins import local_lipschitz, margin_bounds, preactivation_bounds
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

__all__ = [
    "ExactLipschitz",
    "ExactRadius",
    "bernstein_bound",
    "best_bound",
    "certified_radius",
    "column_sum_bound",
    "crown_certified_radius",
    "eta_frobenius",
    "eta_path",
    "exact_local_lipschitz",
    "exact_radius",
    "expected_path_norm",
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
    "milp_radius",
    "monte_carlo",
    "norm_product",
    "path_norm",
    "preactivation_bounds",
    "second_moment_bound",
]
