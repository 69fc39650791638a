"""Many masked networks of one architecture, held and evaluated as one.

``MLPEnsemble`` holds fully connected ReLU networks as batched matrices, with written-out gradients;
``ModuleEnsemble`` holds any ``torch.nn.Module``. Both are an :class:`Ensemble`.
"""

from empirical.ensembles.mlp import (
    MLPEnsemble,
    from_networks,
    initialise,
    linear_classifier,
    relu_network,
)
from empirical.ensembles.modules import (
    ModuleEnsemble,
    apart,
    from_modules,
    from_stack,
    initialise_modules,
    to_module,
)
from empirical.ensembles.protocol import AnyEnsemble, Cotangent, Ensemble, concatenate

__all__ = [
    "AnyEnsemble",
    "Cotangent",
    "Ensemble",
    "MLPEnsemble",
    "ModuleEnsemble",
    "apart",
    "concatenate",
    "from_modules",
    "from_networks",
    "from_stack",
    "initialise",
    "initialise_modules",
    "linear_classifier",
    "relu_network",
    "to_module",
]
