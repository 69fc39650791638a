"""What is trained: three families of classifiers, each through every sparsity under four conditions.

=====================  ===============================================================================
``dense``              never pruned, but trained on as long as the pruned networks: their fair reference
``magnitude``          the smallest weights of every layer removed, retrained, level after level
``random-retrained``   independent random masks, nested, retrained level after level
``random``             independent random masks on the trained dense network, not retrained
=====================  ===============================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from empirical.datasets import Dataset
from empirical.ensembles import MLPEnsemble, concatenate, initialise
from empirical.pruning import bernoulli_masks, magnitude_masks
from empirical.results import Members, write_atomically
from empirical.training import Recipe, train
from theory.types import InvalidInput, check_sparsity

FAMILIES = ("linear-binary", "linear", "mlp")
TRAINED = ("dense", "magnitude", "random-retrained")
CONDITIONS = (*TRAINED, "random")
SPARSITIES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's numbers; two runs with equal settings compute the same rows.

    Raises: InvalidInput for seeds < 1, fewer than two sparsities, sparsities outside [0, 1], not rising
    or not starting at 0, eps that is not a positive number, or masks < 2.
    """

    data: str = "digits"
    seeds: int = 5
    sparsities: tuple[float, ...] = SPARSITIES
    hidden: tuple[int, ...] = (300, 100)
    pair: tuple[int, int] = (1, 7)
    eps: float = 0.1
    masks: int = 100
    first: Recipe = field(default_factory=lambda: Recipe(epochs=40))
    retrain: Recipe = field(default_factory=lambda: Recipe(epochs=12))

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InvalidInput(f"seeds is {self.seeds}; train at least one network per condition")
        for alpha in self.sparsities:
            check_sparsity("sparsities", alpha)
        rising = all(a < b for a, b in zip(self.sparsities[:-1], self.sparsities[1:], strict=True))
        if len(self.sparsities) < 2 or self.sparsities[0] != 0 or not rising:
            raise InvalidInput(f"sparsities is {list(self.sparsities)}; give at least two, rising from 0")
        if not self.hidden or min(self.hidden) < 1:
            raise InvalidInput(f"hidden is {list(self.hidden)}; give at least one hidden width, each >= 1")
        if not 0 < self.eps < float("inf"):
            raise InvalidInput(f"eps is {self.eps}; the step of the fast gradient sign must be positive")
        if self.masks < 2:
            raise InvalidInput(f"masks is {self.masks}; a Monte Carlo mean needs at least two masks")

    def describe(self, data: Dataset) -> dict[str, object]:
        """The settings as plain JSON values, with the version and a fingerprint of the data."""
        fingerprint = hashlib.sha256()
        for array in (data.x_train, data.y_train, data.x_test, data.y_test):
            fingerprint.update(np.ascontiguousarray(array).tobytes())
        described = asdict(self) | {"first": self.first.describe(), "retrain": self.retrain.describe()}
        described |= {"data_sha256": fingerprint.hexdigest(), "version": package_version()}
        return json.loads(json.dumps(described))

    def member_seeds(self) -> list[int]:
        """One seed per member of the trained conditions, in the order of TRAINED."""
        return list(range(self.seeds)) * len(TRAINED)


def package_version() -> str:
    """The installed version, or "uninstalled" when run from a source tree."""
    try:
        return version("sparse-robustness")
    except PackageNotFoundError:
        return "uninstalled"


def family_data(settings: Settings, data: Dataset, family: str) -> Dataset:
    """The problem a family is trained on: two classes for ``linear-binary``, all of them otherwise."""
    return data.pair(*settings.pair) if family == "linear-binary" else data


def levels(
    settings: Settings,
    data: Dataset,
    family: str,
    *,
    checkpoints: Path,
    device: torch.device,
    after_epoch: Callable[[], None] | None = None,
) -> Iterator[tuple[Members, MLPEnsemble]]:
    """Train a family level by level; yields the 4 * seeds networks of every sparsity, float32.

    A level that ``checkpoints`` holds is loaded instead. Every level is on disk before it is yielded.
    Raises: InvalidInput naming a damaged checkpoint.
    """
    problem = family_data(settings, data, family)
    x = torch.tensor(problem.x_train, dtype=torch.float32, device=device)
    y = torch.tensor(problem.y_train, device=device)
    seeds = settings.member_seeds()
    hidden = settings.hidden if family == "mlp" else ()
    widths = [x.shape[1], *hidden, 1 if family == "linear-binary" else problem.classes]
    previous = dense = None
    for level, sparsity in enumerate(settings.sparsities):
        recipe = settings.retrain if level else settings.first
        path = checkpoints / f"{family}-{level:02d}.safetensors"
        if path.is_file():
            trained = _load(path, device, widths=widths, members=len(seeds))
            if after_epoch:
                for _ in range(recipe.epochs):
                    after_epoch()
        elif previous is None:
            start = initialise(widths, seeds=range(settings.seeds), device=device)
            order = _order_seeds(range(settings.seeds), level)
            trained = train(start, x, y, recipe, seeds=order, after_epoch=after_epoch)
            trained = concatenate([trained] * len(TRAINED))
        else:
            masked = previous.masked(_next_masks(previous, sparsity, settings.seeds))
            order = _order_seeds(seeds, level)
            trained = train(masked, x, y, recipe, seeds=order, after_epoch=after_epoch)
        if not path.is_file():
            _save(path, trained)
        previous = trained
        dense = dense or trained.select(range(settings.seeds))
        masks = bernoulli_masks(dense, sparsity=sparsity, seeds=_mask_seeds(settings.seeds))
        yield _described(
            problem, family, sparsity, settings.seeds, concatenate([trained, dense.masked(masks)])
        )


def _next_masks(previous: MLPEnsemble, sparsity: float, seeds: int) -> tuple[torch.Tensor, ...]:
    """Masks of the next level for the trained conditions: none, magnitude, random."""
    dense, magnitude, random = (
        previous.select(range(i * seeds, (i + 1) * seeds)) for i in range(len(TRAINED))
    )
    parts = (
        dense.masks,
        magnitude_masks(magnitude, sparsity=sparsity),
        bernoulli_masks(random, sparsity=sparsity, seeds=_mask_seeds(seeds)),
    )
    return tuple(torch.cat(layer) for layer in zip(*parts, strict=True))


def _described(
    problem: Dataset, family: str, sparsity: float, seeds: int, networks: MLPEnsemble
) -> tuple[Members, MLPEnsemble]:
    conditions = [condition for condition in CONDITIONS for _ in range(seeds)]
    members = Members(
        dataset=problem.name,
        family=family,
        pruning=conditions,
        sparsity=[sparsity] * len(conditions),
        achieved_sparsity=networks.sparsity().tolist(),
        seed=list(range(seeds)) * len(CONDITIONS),
    )
    return members, networks


def _order_seeds(seeds: range | list[int], level: int) -> list[int]:
    """Seeds of the example order, one per member: equal for equal seeds, new at every level."""
    return [_derived(seed, 1, level) for seed in seeds]


def _mask_seeds(seeds: int) -> list[int]:
    return [_derived(seed, 2, 0) for seed in range(seeds)]


def _derived(seed: int, purpose: int, level: int) -> int:
    """A seed for one purpose, statistically independent of those for others."""
    return int(np.random.SeedSequence([seed, purpose, level]).generate_state(1, np.uint32)[0])


def _save(path: Path, networks: MLPEnsemble) -> None:
    tensors = {}
    for i, (w, b, m) in enumerate(zip(networks.weights, networks.biases, networks.masks, strict=True)):
        tensors |= {f"weight.{i}": w.contiguous(), f"bias.{i}": b.contiguous(), f"mask.{i}": m.contiguous()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def _load(path: Path, device: torch.device, *, widths: list[int], members: int) -> MLPEnsemble:
    try:
        tensors = load_file(path, device=str(device))
        depth = len(tensors) // 3
        found = MLPEnsemble(
            *(tuple(tensors[f"{part}.{i}"] for i in range(depth)) for part in ("weight", "bias", "mask"))
        )
        if found.members != members or [found.inputs, *(w.shape[1] for w in found.weights)] != widths:
            raise InvalidInput("it holds other networks")
        return found
    except (SafetensorError, KeyError, InvalidInput, OSError) as error:
        raise InvalidInput(f"checkpoint {path} is damaged ({error}); delete it and run again") from error
