"""Experiments on images, small: all attacks, pieces on other machines, compact files, the full networks."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from empirical.cli.main import main
from empirical.datasets import Dataset
from empirical.ensembles import ModuleEnsemble, initialise, initialise_modules, to_module
from empirical.ensembles.modules import _at_once, _one_by_one
from empirical.experiments import Experiment, Network
from empirical.experiments.architectures import _weights, build, channels_of, smaller
from empirical.experiments.chains import blocks
from empirical.experiments.checkpoints import halved, load_networks, save_networks
from empirical.experiments.conditions import Bench, dense_networks
from empirical.experiments.specification import ATTACKS
from empirical.models import Standardise, resnet, standardised, vgg_like
from empirical.pruning import magnitude_masks
from empirical.results import Members, read_table, table
from empirical.runs import jobs
from empirical.runs.deadline import NEVER, Deadline, OutOfTime, deadline_in
from empirical.runs.run import run_experiments
from empirical.training.augmentation import Augmentation
from empirical.training.recipe import Recipe, Schedule
from empirical.training.train import train
from theory.types import InvalidInput

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=2,
    batch_size=20,
    learning_rate=0.05,
    nesterov=True,
    schedule=Schedule(shape="cosine"),
    augmentation=Augmentation(2),
)
TINY = Experiment(
    "tiny",
    "",
    "images",
    Network("vgg", scale=0.01),
    (0.0, 0.5),
    conditions=("magnitude", "random", "small-dense", "dense"),
    pair=(0, 1),
    masks=3,
    seeds=1,
    first=RECIPE,
    retrain=replace(RECIPE, epochs=1),
    attacks=("fgs",),
    eps=0.01,
    further_eps=(0.005, 0.02),
    compact=True,
)


def images(n_train: int, n_test: int) -> Dataset:
    """Noise, brighter in the class's own corner."""
    rng = np.random.default_rng(0)
    y = np.arange(n_train + n_test) % 3
    x = 0.6 * rng.random((len(y), 3, 32, 32))
    for k in range(3):
        x[y == k, k, : 16 + 8 * k] += 0.3
    x = x.reshape(len(y), -1)
    return Dataset("images", x[:n_train], y[:n_train], x[n_train:], y[n_train:], 3, shape=(3, 32, 32))


@pytest.fixture
def data(monkeypatch):
    found = images(40, 2)
    monkeypatch.setattr(jobs, "load", lambda name: found)
    jobs._same_data.cache_clear()
    yield found
    jobs._same_data.cache_clear()


def rows(folder) -> pd.DataFrame:
    return read_table(folder / "results.parquet").to_pandas().drop(columns="commit")


# Over whenever it is asked: every piece is the least that can be done.
OVER = Deadline(0.0)


@pytest.fixture
def measured_alone(monkeypatch):
    """What theory says of these networks takes longer than all else; tests/agreement has it judged."""
    monkeypatch.setattr(jobs, "compare_relu", lambda *_, **__: [])


@pytest.mark.usefixtures("measured_alone")
def test_pieces_on_other_machines_give_the_same_rows(data, tmp_path):
    """Every piece is the least there can be, an epoch or a level, and continues in a moved copy."""
    run_experiments([TINY], tmp_path / "whole", device=CPU)
    folder, pieces = tmp_path / "piece-0", 0
    sizes = []
    while True:
        try:
            run_experiments([TINY], folder, device=CPU, deadline=OVER)
            break
        except OutOfTime:
            pieces += 1
            kept = [
                p for part in ("checkpoints", "unfinished") for p in folder.glob(f"{part}/**/*.safetensors")
            ]
            sizes.append(len(kept))
            folder = folder.rename(tmp_path / f"piece-{pieces}")
    # Two epochs of the dense network, two and one of the smaller, one retrained, the rows of six networks.
    assert pieces >= 10
    # The dense network, the chain's, and a training: no more than that is ever on disk.
    assert max(sizes) <= 4
    assert not [*folder.glob("checkpoints/*"), *folder.glob("unfinished/**/*.safetensors")]
    pd.testing.assert_frame_equal(rows(folder), rows(tmp_path / "whole"))
    found = rows(folder)
    curve = found[found["quantity"] == "fgs_curve"]
    assert set(curve["eps"]) == {0.005, 0.02}
    assert len(curve) == 4 * 2 * 2 * 2


def test_dense_networks_go_though_a_run_was_killed_before(data, tmp_path, monkeypatch):
    """Between the rows about their masks and their end."""
    one = replace(TINY, conditions=("random",))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "clear_dense", killed)
        with pytest.raises(KeyboardInterrupt):
            run_experiments([one], tmp_path, device=CPU)
    assert [*tmp_path.glob("checkpoints/*")]
    run_experiments([one], tmp_path, device=CPU)
    assert not [*tmp_path.glob("checkpoints/*")]


@pytest.mark.usefixtures("measured_alone")
def test_a_lost_network_is_trained_again(data, tmp_path):
    """Whatever of the networks did not come along, rows are the same."""
    one = replace(TINY, conditions=("magnitude", "dense"))
    run_experiments([one], tmp_path / "whole", device=CPU)
    folder = tmp_path / "lost"
    for _ in range(3):
        with pytest.raises(OutOfTime):
            run_experiments([one], folder, device=CPU, deadline=OVER)
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "unfinished", ignore_errors=True)
    run_experiments([one], folder, device=CPU)
    pd.testing.assert_frame_equal(rows(folder), rows(tmp_path / "whole"))


def test_a_training_past_its_deadline_is_stored_and_goes_on(tmp_path):
    data = images(40, 2)
    x, y = torch.tensor(data.x_train), torch.tensor(data.y_train)
    start = initialise_modules(
        lambda: vgg_like(groups=[[2], [2]], hidden=3, classes=3), shape=data.shape, seeds=[1], device=CPU
    )
    path, heard = tmp_path / "a" / "training.safetensors", []
    recipe = replace(RECIPE, epochs=3)
    for _ in range(2):
        with pytest.raises(OutOfTime):
            train(start, x, y, recipe, seeds=[1], checkpoint=path, deadline=OVER)
    done = train(start, x, y, recipe, seeds=[1], checkpoint=path, after_epoch=lambda: heard.append(1))
    whole = train(start, x, y, recipe, seeds=[1])
    assert len(heard) == 3
    assert all(torch.equal(done.state[name], whole.state[name]) for name in whole.state)
    # Nothing is stored before the spacing is over.
    train(start, x, y, recipe, seeds=[1], checkpoint=tmp_path / "b.safetensors", spacing=1e6)
    assert not (tmp_path / "b.safetensors").exists()


def test_the_command_stops_with_status_3(tmp_path):
    text = 'title = "t"\ndata = "digits"\nsparsities = [0, 0.5]\nseeds = 1\ntrain_examples = 400\n'
    text += 'test_examples = 20\n[network]\nkind = "mlp"\nhidden = [8]\n'
    (tmp_path / "mine.toml").write_text(text + "[first]\nepochs = 2\n[retrain]\nepochs = 1\n")
    command = ["run", str(tmp_path / "mine.toml"), "--workers", "1", "--out", str(tmp_path / "out")]
    stopped = CliRunner().invoke(main, [*command, "--minutes", "1e-6"])
    assert stopped.exit_code == 3
    assert "Stopped after 1e-06 minutes; the same command goes on" in stopped.output
    assert not (tmp_path / "out" / "results.parquet").exists()
    refused = CliRunner().invoke(main, [*command, "--minutes", "-1"])
    assert refused.exit_code == 2
    assert "minutes is -1" in refused.output


def test_deadlines():
    assert not NEVER.over
    assert not deadline_in(None).over
    assert not deadline_in(1.0).over
    with pytest.raises(OutOfTime):
        Deadline(0.0).check()


@pytest.mark.parametrize("kind", ["vgg", "resnet-32"])
def test_all_attacks_on_small_networks(kind):
    found = images(40, 2)
    network = Network(kind, scale=0.01 if kind == "vgg" else 0.06)
    experiment = replace(TINY, network=network, first=RECIPE, attacks=ATTACKS)
    networks = dense_networks(Bench(experiment, found, (0,), CPU))
    members = Members("images", kind, ["dense"], [0.0], [0.0], [0])
    provenance: dict[str, str] = dict.fromkeys(("settings", "version", "commit", "device", "dtype"), "")
    measured = table(jobs.level_rows(experiment, found, members, networks), provenance=provenance).to_pandas()
    radii = measured[measured["quantity"] == "radius"]
    methods = {"fgs", "rfgs", "deepfool", "deepfool+line", "pgd", "ddn", "fmn", "fmn-init", "cw"}
    assert set(radii["method"]) == methods | {"certificate"}
    in_both_norms = {"deepfool", "deepfool+line", "pgd", "fmn", "fmn-init", "certificate"}
    assert len(radii) == 2 * (len(methods | {"certificate"}) + len(in_both_norms))
    assert not measured[measured["quantity"] == "violations"]["value"].any()
    assert (radii["value"] >= 0).all()
    curve = measured[measured["quantity"] == "fgs_curve"].groupby("eps")["value"].mean()
    assert curve.index.tolist() == [0.005, 0.02]


@pytest.mark.parametrize("kind", ["vgg", "resnet-32"])
def test_a_step_of_the_full_networks(kind):
    """One batch through the real sizes, in bfloat16 products; the first layer knows the images' channels."""
    found = images(4, 2)
    recipe = Recipe(epochs=1, batch_size=4, bfloat16=True, augmentation=Augmentation())
    experiment = replace(TINY, network=Network(kind), first=recipe, compact=False)
    bench = Bench(experiment, found, (0,), CPU)
    start, networks = bench.initial(), dense_networks(bench)
    assert isinstance(start, ModuleEnsemble)
    assert isinstance(networks, ModuleEnsemble)
    classes = found.classes
    weights = sum(w[0].numel() for w in networks.weights)
    assert weights == (14_977_728 - 7 * 512 if kind == "vgg" else 464_154 - 2 * 1136 - 7 * 64 - 10)
    assert networks.classes == classes
    changed = [not torch.equal(a, b) for a, b in zip(start.weights, networks.weights, strict=True)]
    assert all(changed)
    # Frozen: the channels' statistics are those of the data, before and after.
    means = found.x_train.reshape(4, 3, -1).mean(axis=(0, 2))
    np.testing.assert_allclose(networks.state["0.mean"][0].flatten(), means, rtol=1e-5)
    assert torch.equal(networks.state["0.mean"], start.state["0.mean"])
    assert blocks(replace(experiment, seeds=3), torch.device("cuda")) == [(0,), (1,), (2,)]


def test_distances_of_standardised_networks_are_those_of_pixels():
    """Outputs are the plain network's at the standardised image, gradients those times 1 / std."""
    torch.manual_seed(0)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    plain = resnet(depth=8, widths=(2, 3, 4), classes=3).eval()
    nets = initialise_modules(
        lambda: standardised(plain, mean=mean, std=std), shape=(3, 8, 8), seeds=[0], device=CPU
    )
    x = torch.rand(2, 192)
    scaled = (x.view(2, 3, 8, 8) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    scaled.requires_grad_()
    scores = plain(scaled)
    torch.testing.assert_close(nets.logits(x)[0], scores.detach())
    (wanted,) = torch.autograd.grad(scores[:, 1].sum(), scaled)
    _, jacobian = nets.logits_and_jacobian(x)
    wanted = wanted / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(jacobian[0, :, 1], wanted.flatten(1), rtol=1e-4, atol=1e-6)
    with pytest.raises(InvalidInput, match="std is"):
        Standardise((0.0,), (0.0,))


def test_channel_statistics():
    x = np.random.default_rng(1).random((7, 12)).astype(np.float32)
    x[:, 8:] = 0.25
    found = channels_of(x, 3)
    parts = x.reshape(7, 3, 4).astype(float)
    np.testing.assert_allclose(found.mean, parts.mean(axis=(0, 2)))
    np.testing.assert_allclose(found.std, [parts[:, 0].std(), parts[:, 1].std(), 1.0])


@pytest.mark.parametrize("kind", ["vgg", "resnet-32", "lenet-5"])
def test_smaller_networks_have_the_nearest_number_of_weights(kind):
    network = Network(kind, scale=0.25)
    whole = _weights(network, 10)
    others = [_weights(replace(network, scale=float(s)), 10) for s in np.geomspace(0.005, 0.25, 15)]
    for share in (0.3, 0.02):
        found = smaller(network, sparsity=1 - share, inputs=3072, classes=10)
        missed = abs(_weights(found, 10) - share * whole)
        assert found.kind == kind
        assert all(missed <= abs(other - share * whole) + 1 for other in others)
    assert smaller(network, sparsity=0.0, inputs=3072, classes=10) == network


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.floats(0, 1), st.booleans(), st.booleans())
def test_compact_files_lose_nothing(tmp_path_factory, seed, sparsity, modules, half):
    def built() -> torch.nn.Module:
        return build(Network("resnet-32", scale=0.05), classes=3)

    if modules:
        networks = initialise_modules(built, shape=(3, 32, 32), seeds=[seed, 3], device=CPU)
    else:
        networks = initialise([5, 4, 3], seeds=[seed, 3], device=CPU)
    networks = networks.masked(magnitude_masks(networks, sparsity=sparsity))
    networks = halved(networks) if half else networks
    path = tmp_path_factory.mktemp("networks") / "n.safetensors"
    save_networks(path, networks, settings="s", compact=True)
    found = load_networks(path, networks.select([1, 0]), settings="s", compact=True)
    for one, other in zip((*found.weights, *found.masks), (*networks.weights, *networks.masks), strict=True):
        assert torch.equal(one, other)
    for k in range(2):
        states = [to_module(ensemble, k).state_dict() for ensemble in (found, networks)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_compact_files_are_small_and_checked(tmp_path):
    networks = initialise([400, 300, 10], seeds=[0], device=CPU)
    networks = halved(networks.masked(magnitude_masks(networks, sparsity=0.9)))
    save_networks(tmp_path / "n", networks, settings="s", compact=True)
    assert (tmp_path / "n").stat().st_size < 123_000 * (0.2 + 1 / 8) + 2000
    other = initialise([400, 299, 10], seeds=[0], device=CPU)
    with pytest.raises(InvalidInput, match="is damaged"):
        load_networks(tmp_path / "n", other, settings="s", compact=True)


def test_halving_keeps_what_is_beyond_half_precision():
    networks = initialise([3, 2], seeds=[0], device=CPU)
    large = replace(networks, biases=(torch.tensor([[1e6, 0.1]]),))
    assert torch.equal(halved(large).biases[0], large.biases[0])
    rounded = halved(networks).weights[0]
    torch.testing.assert_close(rounded, networks.weights[0], rtol=2**-11, atol=0)
    assert not torch.equal(rounded, networks.weights[0])


def test_members_at_once_and_one_by_one_agree():
    """A GPU takes several members through one batched pass, in train mode too, where batch-norm moves."""
    nets = initialise_modules(
        lambda: standardised(resnet(depth=8, widths=(2, 2, 4), classes=3), mean=[0.5] * 3, std=[0.2] * 3),
        shape=(3, 8, 8),
        seeds=[0, 1],
        device=CPU,
    )
    x, found = torch.rand(2, 4, 3, 8, 8), []
    module = nets.module.train()
    for way in (_at_once, _one_by_one):
        state = {name: tensor.clone() for name, tensor in nets.state.items()}
        found.append((way(module, state, x), state))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name])
        moves = "running" in name or "tracked" in name
        assert torch.equal(tensor, nets.state[name]) != moves, name


COMPILED = """
from functools import partial
import torch
from empirical.ensembles import initialise_modules
from empirical.experiments.architectures import Channels, Network, build
from empirical.training.gradients import TrainedModule, compile_whole
from empirical.training.recipe import Recipe

graphs, compiled = [], torch.compile
def counted(graph, _):  # a backend that does nothing else
    graphs.append(sum(node.op == "call_function" for node in graph.graph.nodes))
    return graph.forward
torch.compile = lambda function, *, mode: compiled(function, backend=counted)

made = partial(build, Network(KIND, scale=0.05), classes=10, channels=Channels((0.5,) * 3, (0.25,) * 3))
nets = initialise_modules(made, shape=(3, 32, 32), seeds=[0], device=torch.device("cpu"))
x, y = torch.rand(1, 4, 3072), torch.arange(4)[None]
plain, whole = TrainedModule.of(nets), TrainedModule.of(nets)
compile_whole(whole.module, mode="default")
for _ in range(3):
    found = []
    for each in (plain, whole):
        out = each.weights.zeros(), each.others.zeros()
        each.gradients(each.weights.parts, x, y, Recipe(epochs=1), out=out)
        found.append([*out[0].parts, *out[1].parts, *each.buffers])
        each.weights.buffer.sub_(out[0].buffer, alpha=0.1)
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)
print(*graphs)
"""


@pytest.mark.parametrize(("kind", "least"), [("vgg", 40), ("resnet-32", 120)])
def test_a_compiled_network_is_one_graph(kind, least):
    """And stays it, step after step. In a process of its own: checks of types would break it up."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"KIND = {kind!r}\n{COMPILED}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    (operations,) = map(int, done.stdout.split())
    assert operations > least


def test_nesterov_is_torchs():
    x, y = torch.rand(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    nets = initialise([5, 3], seeds=[0], device=CPU)
    module = to_module(nets, 0).train()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    recipe = Recipe(
        epochs=3, batch_size=6, momentum=0.9, weight_decay=0.0, nesterov=True, schedule=Schedule("constant")
    )
    for _ in range(3):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimiser.step()
    found = to_module(train(nets, x, y, recipe, seeds=[0]), 0)
    heavy = to_module(train(nets, x, y, replace(recipe, nesterov=False), seeds=[0]), 0)
    for one, other, third in zip(found.parameters(), module.parameters(), heavy.parameters(), strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.allclose(one, third)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(epochs=1, nesterov=True, optimiser="adam"), "nesterov is True"),
        (lambda: Recipe(epochs=1, nesterov=True, momentum=0.0), "nesterov is True"),
        (lambda: Recipe(epochs=1, compiled="fast"), "compiled is 'fast'"),
        (lambda: replace(TINY, further_eps=(0.0,)), "further_eps is"),
        (lambda: replace(TINY, conditions=("units",)), "units are pruned of an mlp only"),
        (lambda: replace(TINY, network=Network("linear")), "small-dense is for a network with hidden"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


def test_settings_of_earlier_experiments_keep_their_names():
    plain = replace(TINY, further_eps=(), compact=False).describe()
    assert not {"further_eps", "compact"} & plain.keys()
    assert {"further_eps", "compact"} <= TINY.describe().keys()
    assert "nesterov" not in Recipe(epochs=1).describe()
