"""Other packages' attacks behind this project's call shape, where those packages can be imported.

=============  ==================  ===============================
package        import path         on the package index
=============  ==================  ===============================
adv-lib        ``adv_lib``         adv-lib
foolbox        ``foolbox``         foolbox
torchattacks   ``torchattacks``    torchattacks
ART            ``art``             adversarial-robustness-toolbox
=============  ==================  ===============================

None is a dependency: put their folder on PYTHONPATH. torchvision and visdom, which adv-lib imports for parts
not used here, are replaced by stand-ins where they are missing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import io
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers import installed

ART = "art.estimators"  # the index has another package whose name for imports is art
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (module, x, y) -> x_adv, in the box [0, 1]
_STAND_INS = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
    "torchvision.models",
    "visdom",
)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the packages print, log and warn of."""
    logging.disable(logging.WARNING)
    out, err = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with out, err, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _import(name: str) -> Any:
    """A module of a peer; stand-ins are there during the import only."""
    added = []
    for missing in _STAND_INS:
        if missing not in sys.modules and importlib.util.find_spec(missing.split(".")[0]) is None:
            module = MagicMock(__path__=[], __spec__=importlib.machinery.ModuleSpec(missing, None))
            sys.modules[missing] = module
            added.append(missing)
    try:
        with _quiet():
            return importlib.import_module(name)
    finally:
        for stand_in in added:
            del sys.modules[stand_in]


def _adv_lib(name: str, **settings: object) -> Attack | None:
    if not installed("adv_lib"):
        return None
    attack = getattr(_import("adv_lib.attacks"), name)

    def run(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _quiet():
            return attack(module, x, y, **settings).detach()

    return run


def _foolbox(name: str, **settings: object) -> Attack | None:
    if not installed("foolbox"):
        return None
    package = _import("foolbox")
    attack = getattr(package.attacks, name)(**settings)

    def run(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _quiet():
            model = package.PyTorchModel(module, bounds=(0, 1), device="cpu")
            return attack(model, x, y, epsilons=None)[0].detach()

    return run


def _torchattacks(name: str, **settings: object) -> Attack | None:
    if not installed("torchattacks"):
        return None
    package = _import("torchattacks")

    def run(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _quiet():
            return getattr(package, name)(module, **settings)(x, y).detach()

    return run


def _art(name: str, **settings: object) -> Attack | None:
    if not installed(ART):
        return None
    attacks, estimators = _import("art.attacks.evasion"), _import("art.estimators.classification")

    def run(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _quiet():
            classifier = estimators.PyTorchClassifier(
                module,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=int(module(x[:1]).shape[1]),
                clip_values=(0.0, 1.0),
                device_type="cpu",
            )
            attack = getattr(attacks, name)(classifier, verbose=False, **settings)
            return torch.from_numpy(attack.generate(x.numpy(), y.numpy()).astype(np.float32))

    return run


def deepfool_peers() -> dict[tuple[str, float], Attack | None]:
    """DeepFool, 50 steps, overshoot 0.02, keyed by package and norm; foolbox tries all classes."""
    found: dict[tuple[str, float], Attack | None] = {
        ("adv-lib", 2.0): _adv_lib("df", steps=50, overshoot=0.02, norm=2),
        ("foolbox", 2.0): _foolbox("L2DeepFoolAttack", steps=50, candidates=10, overshoot=0.02),
        ("ART", 2.0): _art("DeepFool", max_iter=50, epsilon=0.02, nb_grads=10, batch_size=500),
        ("torchattacks", 2.0): _torchattacks("DeepFool", steps=50, overshoot=0.02),
        ("adv-lib", math.inf): _adv_lib("df", steps=50, overshoot=0.02, norm=math.inf),
        ("foolbox", math.inf): _foolbox("LinfDeepFoolAttack", steps=50, candidates=10, overshoot=0.02),
    }
    return found


def gradient_step_peers(steps: int) -> dict[tuple[str, float], Attack | None]:
    """DDN and FMN, keyed by name and norm; the best, adv-lib's DDN, with three times the steps too."""
    return {
        (f"adv-lib DDN, {steps} steps", 2.0): _adv_lib("ddn", steps=steps),
        (f"adv-lib DDN, {3 * steps} steps", 2.0): _adv_lib("ddn", steps=3 * steps),
        (f"foolbox DDN, {steps} steps", 2.0): _foolbox("DDNAttack", steps=steps),
        (f"adv-lib FMN, {steps} steps", 2.0): _adv_lib("fmn", norm=2, steps=steps),
        (f"foolbox FMN, {steps} steps", 2.0): _foolbox("L2FMNAttack", steps=steps),
        (f"adv-lib FMN, {steps} steps", math.inf): _adv_lib("fmn", norm=math.inf, steps=steps),
        (f"foolbox FMN, {steps} steps", math.inf): _foolbox("LInfFMNAttack", steps=steps),
    }


def carlini_wagner_peers(searches: int, steps: int) -> dict[str, Attack | None]:
    """C&W in l_2 at Adam's rate 0.1: at their default of 0.01 most of their runs fail on MNIST.

    torchattacks has no search for the weight c of the margin: one round of all the steps.
    """
    rounds, settings = searches * steps, {"kappa": 0, "lr": 0.1}
    return {
        "adv-lib": _adv_lib(
            "carlini_wagner_l2",
            binary_search_steps=searches,
            max_iterations=steps,
            learning_rate=0.1,
            initial_const=1.0,
        ),
        "foolbox": _foolbox(
            "L2CarliniWagnerAttack",
            binary_search_steps=searches,
            steps=steps,
            stepsize=0.1,
            initial_const=1.0,
        ),
        "torchattacks, c = 1": _torchattacks("CW", c=1, steps=rounds, **settings),
        "torchattacks, c = 10": _torchattacks("CW", c=10, steps=rounds, **settings),
    }


def smallest_step_peers(grid: int = 51) -> dict[str, Attack | None]:
    """The smallest fast-gradient-sign step on a grid up to 0.5, which foolbox takes as a list of radii."""
    name = f"foolbox, grid of {grid}"
    if not installed("foolbox"):
        return {name: None}
    package = _import("foolbox")
    attack = package.attacks.LinfFastGradientAttack(random_start=False)
    steps = torch.linspace(0, 0.5, grid).tolist()

    def run(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _quiet():
            model = package.PyTorchModel(module, bounds=(0, 1), device="cpu")
            _, clipped, success = attack(model, x, y, epsilons=steps)
        first = success.int().argmax(0)
        return torch.stack(list(clipped))[first, torch.arange(len(x))].detach()

    return {name: run}
