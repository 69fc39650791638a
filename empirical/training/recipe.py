"""How networks are trained: everything that decides the numbers, as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields

from empirical.training.adversarial import Adversary
from empirical.training.augmentation import Augmentation
from empirical.training.surgery import Surgery
from theory.types import InvalidInput

SHAPES = ("linear", "constant", "cosine", "inverse", "steps")
OPTIMISERS = ("sgd", "adam")
COMPILED = ("", "default", "reduce-overhead")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate falls: its factor at step t of T.

    ===========  =================================================================================
    linear       1 - t / T
    constant     1
    cosine       (1 + cos(pi t / T)) / 2
    inverse      (1 + gamma t)^-power, Caffe's policy for LeNet with gamma 1e-4 and power 0.75
    steps        gamma^(number of entries of ``epochs`` that are over), Caffe's multistep
    ===========  =================================================================================

    ``decay`` is gamma. Raises: InvalidInput for an unknown shape, a parameter out of range, or one that the
    shape does not use.
    """

    shape: str = "linear"
    decay: float = 0.0
    power: float = 0.0
    epochs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InvalidInput(f"shape is {self.shape!r}; choose one of {', '.join(SHAPES)}")
        if self.shape in ("inverse", "steps"):
            if not 0 < self.decay < math.inf:
                raise InvalidInput(f"decay is {self.decay}; an {self.shape} schedule needs a positive one")
        elif self.decay:
            raise InvalidInput(f"decay is {self.decay}; a {self.shape} schedule has none, leave it out")
        if (self.shape == "inverse") != (0 < self.power < math.inf):
            raise InvalidInput(f"power is {self.power}; inverse schedules need a positive one, others none")
        rising = all(a < b for a, b in zip(self.epochs[:-1], self.epochs[1:], strict=True))
        if (self.shape == "steps") != bool(self.epochs) or not rising or min(self.epochs, default=1) < 1:
            raise InvalidInput(
                f"epochs is {list(self.epochs)}; steps need some that rise from 1 or later, other shapes none"
            )

    def factor(self, step: int, steps: int, *, epoch: int) -> float:
        """What the learning rate is multiplied by at ``step`` of ``steps``, which lies in ``epoch``."""
        if self.shape == "linear":
            return 1 - step / steps
        if self.shape == "cosine":
            return (1 + math.cos(math.pi * step / steps)) / 2
        if self.shape == "inverse":
            return (1 + self.decay * step) ** -self.power
        if self.shape == "steps":
            return self.decay ** sum(epoch >= end for end in self.epochs)
        return 1.0


@dataclass(frozen=True)
class Recipe:
    """Minibatch descent on the mean cross-entropy, plus penalties; by default SGD whose rate falls to zero.

    With ``sgd``, ``momentum`` is that of the heavy ball, of Nesterov's method with ``nesterov``. With
    ``adam``, it is beta1 and ``second_momentum`` beta2. ``weight_decay`` c adds c w to the gradient of the
    weights that pruning may remove, ``other_decay`` to that of all other parameters: biases and batch-norm.
    ``l1`` is the factor of sum |w| over the prunable weights, by soft thresholding after every step
    (``sgd`` only): the weights it makes zero are exactly 0. ``activation_l1`` is the factor of the sum over
    the inputs of the last layer of their absolute values, averaged over the batch.
    ``surgery`` lets the masks change while training, ``augmentation`` alters the images of every batch,
    then ``adversary`` attacks it. With ``bfloat16``, the products of a step are computed in that precision;
    parameters, momentum and updates keep theirs. ``compiled`` is torch.compile's mode for a module
    trained alone on a GPU: "default", or "reduce-overhead", with CUDA graphs; elsewhere it changes nothing.
    Raises: InvalidInput for a value outside its range, or settings that exclude one another.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    other_decay: float = 0.0
    optimiser: str = "sgd"
    second_momentum: float = 0.999
    schedule: Schedule = field(default_factory=Schedule)
    l1: float = 0.0
    activation_l1: float = 0.0
    surgery: Surgery | None = None
    augmentation: Augmentation | None = None
    adversary: Adversary | None = None
    bfloat16: bool = False
    nesterov: bool = False
    compiled: str = ""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if not 0 < self.learning_rate < math.inf:
            raise InvalidInput(f"learning_rate is {self.learning_rate}; it must be positive and finite")
        for name in ("momentum", "second_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        for name in ("weight_decay", "other_decay", "l1", "activation_l1"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must not be negative, nor infinite")
        if self.optimiser not in OPTIMISERS:
            raise InvalidInput(f"optimiser is {self.optimiser!r}; choose one of {', '.join(OPTIMISERS)}")
        if self.nesterov and (self.optimiser != "sgd" or not self.momentum):
            raise InvalidInput(f"nesterov is {self.nesterov}; it needs the optimiser sgd, and momentum")
        if self.compiled not in COMPILED:
            raise InvalidInput(
                f"compiled is {self.compiled!r}; choose one of {', '.join(map(repr, COMPILED))}"
            )
        if self.l1 and (self.optimiser != "sgd" or self.surgery):
            raise InvalidInput(f"l1 is {self.l1}; it needs the optimiser sgd, and no surgery")

    def describe(self) -> dict[str, object]:
        """The recipe as plain values, without the settings that a first version did not have and are unused.

        So a run is named by what it does, and its name outlives new settings.
        """
        plain = asdict(self)
        always = ("epochs", "batch_size", "learning_rate", "momentum", "weight_decay")
        unused = Recipe(epochs=self.epochs)
        used = [f.name for f in fields(self) if getattr(self, f.name) != getattr(unused, f.name)]
        return {name: value for name, value in plain.items() if name in always or name in used}
