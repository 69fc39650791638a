"""Every condition leaves what its name says: which weights are gone, where the others come from."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from empirical.datasets import Dataset, load
from empirical.experiments import Experiment, Network
from empirical.experiments.chains import Chain, Place, run_chain
from empirical.experiments.conditions import (
    UNTRAINED,
    Bench,
    achieved_sparsity,
    blank_networks,
    dense_networks,
    next_networks,
)
from empirical.experiments.specification import CONDITIONS, N_OF_M
from empirical.results import Rows, read_table
from empirical.runs.deadline import Deadline, OutOfTime
from empirical.training.recipe import Recipe
from theory.types import InvalidInput

CPU = torch.device("cpu")
SPARSITIES = (0.0, 0.5, 0.9)
WEIGHTS = 64 * 16 + 16 * 8 + 8 * 10


@pytest.fixture(scope="module")
def bench() -> Bench:
    experiment = Experiment(
        "tiny",
        "",
        "digits",
        Network("mlp", hidden=(16, 8)),
        SPARSITIES,
        first=Recipe(epochs=6, batch_size=32),
        retrain=Recipe(epochs=2, batch_size=32),
    )
    return Bench(experiment, load("digits").first(n_train=400, n_test=50), (3, 4), CPU)


@pytest.fixture(scope="module")
def dense(bench):
    return dense_networks(bench)


def at(bench, condition, dense, *, level):
    networks = dense
    for i in range(1, level + 1):
        networks = next_networks(bench, condition, level=i, dense=dense, previous=networks)
    return networks


def in_quarters(bench):
    return replace(bench, experiment=replace(bench.experiment, sparsities=(0.0, 0.5, 0.75)))


@pytest.mark.parametrize("condition", ["magnitude", "global", "one-shot", "lottery"])
def test_exact_counts(bench, dense, condition):
    for level in (1, 2):
        networks = at(bench, condition, dense, level=level)
        achieved = achieved_sparsity(bench, condition, networks)
        assert achieved == pytest.approx([SPARSITIES[level]] * 2, abs=1.5 / WEIGHTS)
        assert torch.equal(networks.sparsity(), torch.tensor(achieved, dtype=torch.float64))


def test_dense_is_trained_on(bench, dense):
    after = at(bench, "dense", dense, level=2)
    assert all(mask.all() for mask in after.masks)
    assert not torch.equal(after.weights[0], dense.weights[0])


@pytest.mark.parametrize("condition", UNTRAINED)
def test_untrained_conditions_keep_the_dense_values(bench, dense, condition):
    for level in (1, 2):
        networks = at(bench, condition, dense, level=level)
        for weight, mask, whole in zip(networks.weights, networks.masks, dense.weights, strict=True):
            assert torch.equal(weight, whole * mask)
    # Random masks are nested from level to level, and retraining uses the same.
    first, second = (at(bench, "random", dense, level=level) for level in (1, 2))
    assert all((one | ~two).all() for one, two in zip(first.masks, second.masks, strict=True))
    retrained = at(bench, "random-retrained", dense, level=2)
    assert all(torch.equal(one, two) for one, two in zip(second.masks, retrained.masks, strict=True))


def test_lottery_starts_from_the_initial_values(bench, dense):
    still = replace(bench, experiment=replace(bench.experiment, first=Recipe(epochs=0)))
    networks = next_networks(still, "lottery", level=1, dense=dense, previous=dense)
    for weight, mask, first in zip(networks.weights, networks.masks, bench.initial().weights, strict=True):
        assert torch.equal(weight, first * mask)
    assert not torch.equal(dense.weights[0], bench.initial().weights[0])


def test_a_small_dense_network_has_as_many_weights(bench, dense):
    networks = at(bench, "small-dense", dense, level=2)
    assert all(mask.all() for mask in networks.masks)
    # The nearest of the networks 64-h-k-10 scaled down from 64-16-8-10: here 64-2-1-10 has 140 of 127 wanted.
    count = sum(mask[0].numel() for mask in networks.masks)
    assert abs(count - 0.1 * WEIGHTS) <= (64 + 10) / 2
    assert achieved_sparsity(bench, "small-dense", networks) == pytest.approx([1 - count / WEIGHTS] * 2)
    shapes = [m.shape for m in blank_networks(bench, "small-dense", level=2).masks]
    assert shapes == [m.shape for m in networks.masks]


def test_units_are_pruned_to_the_widths_of_the_smaller_dense_network(bench, dense):
    networks, small = at(bench, "units", dense, level=2), blank_networks(bench, "small-dense", level=2)
    for mask, wanted in zip(networks.masks, small.masks, strict=True):
        assert mask.any(2).sum(1).tolist() == [wanted.shape[1]] * 2
        assert mask.any(1).sum(1).tolist() == [wanted.shape[2]] * 2
    assert achieved_sparsity(bench, "units", networks) == achieved_sparsity(bench, "small-dense", small)


@pytest.mark.parametrize(("condition", "m"), [("n-of-4", 4), ("n-of-16", 16)])
def test_groups_keep_n_of_m(bench, dense, condition, m):
    networks = at(in_quarters(bench), condition, dense, level=2)
    assert (networks.masks[0].unflatten(2, (-1, m)).sum(3) == m // 4).all()
    assert not torch.equal(networks.weights[0], dense.weights[0] * networks.masks[0])


@pytest.mark.parametrize("condition", ["n-of-4-shuffled", "n-of-16-shuffled"])
def test_groups_of_shuffled_inputs_keep_as_many_and_are_nested(bench, dense, condition):
    some = in_quarters(bench)
    first, second = (at(some, condition, dense, level=level) for level in (1, 2))
    for mask, before in zip(second.masks, first.masks, strict=True):
        assert (mask <= before).all()
    assert (second.masks[0].sum(2) == 64 // 4).all()
    plain = at(some, condition.removesuffix("-shuffled"), dense, level=2)
    assert not torch.equal(second.masks[0], plain.masks[0])


def test_surgery_comes_near_its_target(bench, dense):
    for level in (1, 2):
        networks = next_networks(bench, "surgery", level=level, dense=dense, previous=dense)
        assert achieved_sparsity(bench, "surgery", networks) == pytest.approx(
            [SPARSITIES[level]] * 2, abs=0.1
        )


def test_penalties_make_zeros(bench, dense):
    light, heavy = (
        replace(bench, experiment=replace(bench.experiment, sparsities=(0.0, factor)))
        for factor in (1e-4, 3e-2)
    )
    for condition in ("l1", "activation"):
        little, much = (
            achieved_sparsity(some, condition, at(some, condition, dense, level=1)) for some in (light, heavy)
        )
        assert all(a < b for a, b in zip(little, much, strict=True)), condition
    thinned = at(heavy, "l1", dense, level=1)
    assert all(torch.equal(w != 0, m) for w, m in zip(thinned.weights, thinned.masks, strict=True))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_member_does_not_depend_on_the_others(bench, dense, condition):
    """Alone, a member ends where it does beside others."""
    if condition in N_OF_M:
        bench = in_quarters(bench)
    both = at(bench, condition, dense, level=2)
    alone = replace(bench, seeds=(4,))
    single = at(alone, condition, dense_networks(alone), level=2)
    for one, other in zip(single.weights, both.weights, strict=True):
        torch.testing.assert_close(one[0], other[1], rtol=1e-3, atol=1e-4)


def test_a_killed_chain_goes_on_from_its_last_level(bench, tmp_path):
    provenance = {"settings": "s", "version": "0", "commit": "c", "device": "cpu", "dtype": "float32"}

    def rows(experiment, data, members, networks):
        norms = torch.stack([w.flatten(1).norm(dim=1) for w in networks.weights]).sum(0)
        return [Rows(members, norms.double().numpy(), "norm", "sum", "measured")]

    tables = {}
    for condition in ("magnitude", "small-dense", "random"):
        chain = Chain(condition, bench.seeds)
        for name, stops in (("whole", False), ("stopped", True)):
            place = Place(tmp_path / name, "tiny", "s", provenance)
            for part in ("checkpoints", "units"):
                (tmp_path / name / part).mkdir(parents=True, exist_ok=True)
            for _ in range(3 if stops else 1):
                steps = run_chain(bench, chain, place, rows)
                for level, _ in enumerate(steps):
                    if stops and level == 1:
                        break
            found = [read_table(place.level_unit(chain, level)) for level in range(2 if stops else 3)]
            tables[name] = pd.concat([table.to_pandas() for table in found[:2]])
        pd.testing.assert_frame_equal(tables["whole"], tables["stopped"])


def stopped_in_the_second(bench, dense, folder):
    """Two trainings, a level of small-dense, stopped in the second; the bench that goes on with them."""

    class Second(Deadline):
        @property
        def over(self) -> bool:
            return (folder / "00.safetensors").is_file()

    stored = replace(bench, unfinished=folder, deadline=Second())
    with pytest.raises(OutOfTime):
        next_networks(stored, "small-dense", level=1, dense=dense, previous=dense)
    assert sorted(path.name for path in folder.iterdir()) == ["00.safetensors", "01.safetensors"]
    return replace(bench, unfinished=folder)


def test_the_end_from_which_another_training_starts_is_stored(bench, dense, tmp_path):
    """Else its tail, trained again with other rounding, would be another start."""
    resumed, told = stopped_in_the_second(bench, dense, tmp_path / "unfinished"), []
    file = resumed.unfinished / "00.safetensors"
    before = file.stat().st_mtime_ns
    found = next_networks(
        replace(resumed, tell=told.append), "small-dense", level=1, dense=dense, previous=dense
    )
    assert file.stat().st_mtime_ns == before
    whole = next_networks(bench, "small-dense", level=1, dense=dense, previous=dense)
    assert all(torch.equal(a, b) for a, b in zip(found.weights, whole.weights, strict=True))


def test_an_unfinished_training_of_another_start_is_done_again(bench, dense, tmp_path):
    resumed = stopped_in_the_second(bench, dense, tmp_path / "unfinished")
    (resumed.unfinished / "00.safetensors").unlink()
    other = replace(
        resumed.experiment, first=replace(resumed.experiment.first, learning_rate=0.05)
    )  # as another device rounds
    rounded = replace(resumed, experiment=other)
    found = next_networks(rounded, "small-dense", level=1, dense=dense, previous=dense)
    alone = next_networks(
        replace(rounded, unfinished=None), "small-dense", level=1, dense=dense, previous=dense
    )
    assert all(torch.equal(a, b) for a, b in zip(found.weights, alone.weights, strict=True))


@pytest.mark.parametrize(
    ("shape", "fits"), [((3, 32, 32), True), ((3072,), True), ((32, 32, 3), False), ((4,), False)]
)
def test_networks_of_images_take_channels_first(bench, shape, fits):
    """Else pixels and colours would be mixed up in silence."""
    x, y = np.zeros((2, int(np.prod(shape)))), np.array([0, 1])
    experiment = replace(bench.experiment, network=Network("vgg", scale=0.02))
    images = Bench(experiment, Dataset("images", x, y, x, y, 2, shape=shape), (0,), CPU)
    if fits:
        assert images.initial().inputs == 3072
        return
    with pytest.raises(InvalidInput, match=r"data images has examples of shape .* takes \(3, 32, 32\)"):
        images.initial()
