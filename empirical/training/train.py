"""Train every member of an ensemble at once, whatever its networks are."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from empirical.ensembles import AnyEnsemble, Ensemble, ModuleEnsemble, concatenate
from empirical.ensembles.cores import on_cores, shares
from empirical.runs.deadline import NEVER, Deadline, OutOfTime
from empirical.runs.locations import Location, make_folder
from empirical.training.checkpoints import load_checkpoint, save_checkpoint, training_id
from empirical.training.descent import Descent, begin, descend
from empirical.training.recipe import Recipe as Recipe
from empirical.training.recipe import Schedule as Schedule
from theory.types import InvalidInput


class TrainingDiverged(RuntimeError):
    """Weights of some members became NaN or infinite; the message names them.

    ``members`` are the indices of those that did not, ``survivors`` their trained networks: None if all did.
    """

    def __init__(self, message: str, *, members: list[int], survivors: Ensemble | None) -> None:
        super().__init__(message)
        self.members = members
        self.survivors = survivors

    def __reduce__(self) -> tuple[object, ...]:
        """How it comes from another process."""
        made = functools.partial(TrainingDiverged, members=self.members, survivors=self.survivors)
        return made, (str(self),)


def train(
    ensemble: AnyEnsemble,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    after_epoch: Callable[[], None] | None = None,
    checkpoint: Location | None = None,
    every: int = 1,
    spacing: float = 0.0,
    keep_end: bool = False,
    deadline: Deadline = NEVER,
) -> AnyEnsemble:
    """The ensemble after ``recipe.epochs`` passes; pruned weights stay zero, unless surgery revives them.

    Member k visits the examples in an order drawn from seeds[k] alone, so it equals the same network
    trained without the others, and members with equal seeds see equal batches. The last, incomplete
    batch of an epoch is dropped when there is a complete one. Modules are trained in train mode, batch-norm's
    running statistics included; one that draws random numbers itself (dropout) takes them from torch's global
    generator. On a CPU, the same call with the same number of threads gives the same bits.

    With ``checkpoint``, the training is stored there after every ``every`` epochs, if ``spacing`` seconds are
    over since the last time, and goes on from a file that is there, to the same numbers. With ``keep_end``,
    for a training from which another one starts, its end is stored whatever the time. The file stays, for the
    caller to delete. Past the ``deadline`` it stops after the epochs at hand, stored if there is a path.

    Raises: OutOfTime if the deadline ends it before its last epoch; InvalidInput for shapes that disagree,
    labels out of range, augmentation of what is no image, or a checkpoint that is damaged or (its subclass
    ForeignCheckpoint) belongs to another training; TrainingDiverged naming the members whose weights are no
    longer finite, and holding the others.
    """
    _check(ensemble, x, y, recipe, seeds)
    y = y.long()
    if every < 1:
        raise InvalidInput(f"every is {every}; store the training after 1 epoch or more")
    device = ensemble.masks[0].device
    at_most = 1 if isinstance(ensemble, ModuleEnsemble) and device.type == "cpu" else None
    parts = shares(ensemble.members, device=device, at_most=at_most)
    states = [begin(ensemble, recipe, members=part, seeds=seeds) for part in parts]

    @functools.cache
    def training() -> str:  # of use only where a file is read or written: it looks at all data
        return training_id(ensemble, x, y, recipe, seeds)

    done, stored = 0, time.monotonic()
    if checkpoint and checkpoint.is_file():
        done = load_checkpoint(checkpoint, states, training=training(), epochs=recipe.epochs)
        if after_epoch:
            for _ in range(done):
                after_epoch()
    in_pieces = checkpoint is not None or deadline != NEVER
    while done < recipe.epochs:
        done = min(recipe.epochs, done + every) if in_pieces else recipe.epochs

        def share(state: Descent, until: int = done) -> None:
            heard = after_epoch if state is states[0] else None
            descend(state, x, y, recipe, until=until, after_epoch=heard)

        on_cores(share, states, device=device)
        stops = deadline.over and done < recipe.epochs
        due = stops or (keep_end and done == recipe.epochs) or time.monotonic() - stored >= spacing
        if checkpoint and due:
            _store(checkpoint, states, training=training(), epoch=done)
            stored = time.monotonic()
        if stops:
            raise OutOfTime
    return cast(AnyEnsemble, _finished(states, seeds, recipe))


def _finished(states: Sequence[Descent], seeds: Sequence[int], recipe: Recipe) -> Ensemble:
    """All networks. Raises: TrainingDiverged if some were lost."""
    members = [k for state in states for k in state.members]
    kept = [state.ensemble() for state in states if state.members]
    if len(members) == len(seeds):
        return concatenate(kept)
    lost = [f"{k} (seed {seed})" for k, seed in enumerate(seeds) if k not in members]
    raise TrainingDiverged(
        f"members {', '.join(lost)} diverged; lower learning_rate {recipe.learning_rate}",
        members=members,
        survivors=concatenate(kept) if kept else None,
    )


def _store(checkpoint: Location, states: Sequence[Descent], *, training: str, epoch: int) -> None:
    """Write the checkpoint, even if another process that is done with this training takes its folder."""
    for last in (False, True):
        make_folder(checkpoint.parent)
        try:
            return save_checkpoint(checkpoint, states, training=training, epoch=epoch)
        except OSError as error:
            if last or not isinstance(error.__cause__, FileNotFoundError):
                raise


def _check(ensemble: Ensemble, x: Tensor, y: Tensor, recipe: Recipe, seeds: Sequence[int]) -> None:
    if x.ndim != 2:
        raise InvalidInput(f"x has shape {tuple(x.shape)}; give (examples, features): x.flatten(1)")
    if not torch.isfinite(x).all():
        bad = ~torch.isfinite(x).all(1)
        raise InvalidInput(f"x[{int(bad.nonzero()[0])}] holds NaN or infinity; leave it out or mend it")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1:
        raise InvalidInput(
            f"y is of {y.dtype} and shape {tuple(y.shape)}; give integers, one label per example: y.long()"
        )
    if recipe.augmentation and not (isinstance(ensemble, ModuleEnsemble) and len(ensemble.shape) == 3):
        raise InvalidInput("augmentation needs networks of images, of shape (channels, height, width)")
    if x.shape[1] != ensemble.inputs:
        raise InvalidInput(f"x has {x.shape[1]} features; the networks take {ensemble.inputs}")
    if len(x) == 0 or len(y) != len(x):
        raise InvalidInput(f"y has {len(y)} labels for {len(x)} examples; give one label per example")
    if int(y.min()) < 0 or int(y.max()) >= ensemble.classes:
        raise InvalidInput(
            f"y spans [{int(y.min())}, {int(y.max())}]; labels must lie in [0, {ensemble.classes})"
        )
    box = recipe.adversary.box if recipe.adversary else None
    if box is not None and not box[0] <= float(x.min()) <= float(x.max()) <= box[1]:
        raise InvalidInput(
            f"x spans [{float(x.min()):g}, {float(x.max()):g}], but adversary.box is {list(box)}, into which "
            "attacked examples are clipped; give the box that x lies in, or None"
        )
    if len(seeds) != ensemble.members:
        raise InvalidInput(f"seeds has {len(seeds)} entries; the ensemble has {ensemble.members} members")
