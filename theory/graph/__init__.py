"""Networks as graphs: bounds and certificates for any ``torch.nn.Module`` that is affine but for its ReLUs.

Max pooling is included, as max(a, b) = b + relu(a - b).
"""

from theory.graph.bounds import node_bounds
from theory.graph.certificate import centre_margins, certified_radius, jacobian_radius, margin_bounds
from theory.graph.constants import lipschitz_constants, norm_product, path_norm
from theory.graph.effort import relaxation_products
from theory.graph.lipschitz import local_lipschitz
from theory.graph.masks import expected_path_norm, frobenius_bound
from theory.graph.network import Graph, from_relu_network
from theory.graph.reader import read, trace
from theory.graph.relaxation import Ball

__all__ = [
    "Ball",
    "Graph",
    "centre_margins",
    "certified_radius",
    "expected_path_norm",
    "frobenius_bound",
    "from_relu_network",
    "jacobian_radius",
    "lipschitz_constants",
    "local_lipschitz",
    "margin_bounds",
    "node_bounds",
    "norm_product",
    "path_norm",
    "read",
    "relaxation_products",
    "trace",
]
