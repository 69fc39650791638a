"""What an experiment says of single examples: numbers of the functions behind it, and checks that bite."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from empirical import local_comparison
from empirical.clever import clever
from empirical.datasets import load
from empirical.ensembles import MLPEnsemble, from_modules, relu_network, to_module
from empirical.experiments import Experiment, Network
from empirical.experiments.conditions import Bench, dense_networks
from empirical.local_comparison import compare_locally
from empirical.measurement import Measurement, measure
from empirical.pruning import magnitude_masks
from empirical.results import NORMS, Members, table
from empirical.runs import jobs
from empirical.training.recipe import Recipe
from theory import graph as graphs
from theory import relu
from theory.types import InvalidInput

CPU = torch.device("cpu")
N = 3
EXPERIMENT = Experiment(
    "local",
    "",
    "digits",
    Network("mlp", hidden=(8, 6)),
    (0.0, 0.5),
    seeds=2,
    first=Recipe(epochs=8),
    attacks=("fgs", "deepfool"),
    local=("crown", "jacobian", "clever", "exact", "condition"),
    local_examples=N,
    local_radii=(0.4, 0.03),
)
MEMBERS = Members("digits", "mlp", ["magnitude"] * 2, [0.5] * 2, [0.5] * 2, [0, 1])
PROVENANCE: dict[str, str] = dict.fromkeys(("settings", "version", "commit", "device", "dtype"), "")


@pytest.fixture(scope="module")
def problem():
    """Two half-pruned networks that are right on most of 20 digits, and what attacks find there."""
    data = load("digits")
    networks = dense_networks(Bench(EXPERIMENT, data, (0, 1), CPU))
    networks = networks.masked(magnitude_masks(networks, sparsity=0.5))
    data = data.first(n_test=20)
    return networks, measure(networks, data, eps=0.1, attacks=EXPERIMENT.attacks), data


def rows_of(problem, *, members: Members = MEMBERS, **changes) -> pd.DataFrame:
    networks, measured, data = problem
    found = compare_locally(replace(EXPERIMENT, **changes), members, networks, measured, data)
    return table(found, provenance=PROVENANCE).to_pandas()


@pytest.fixture(scope="module")
def everything(problem) -> pd.DataFrame:
    return rows_of(problem)


def value(rows: pd.DataFrame, quantity: str, method: str, norm: str = "") -> np.ndarray:
    """Of every network, (2,); of every example too where rows have one, (2, n)."""
    chosen = rows[(rows["quantity"] == quantity) & (rows["method"] == method) & (rows["norm"] == norm)]
    found = chosen.sort_values(["seed", "example"])["value"].to_numpy()
    return found.reshape(2, -1) if quantity == "radius" else found


def test_rows_are_what_the_functions_say_network_by_network(problem, everything):
    networks, measured, data = problem
    rows, some = everything, data.first(n_test=N)
    exact = networks.to(dtype=torch.float64, device=CPU)
    x, y = torch.tensor(some.x_test), torch.tensor(some.y_test)
    for (p, norm), ball in zip(NORMS.items(), EXPERIMENT.local_radii, strict=True):
        cap, sampled = data.diameter(p), clever(exact, x, y, p=p, radius=ball)
        np.testing.assert_allclose(value(rows, "radius", "CLEVER", norm), sampled.radius, rtol=1e-12)
        best = np.minimum(measured.radius[p, "best"][:, :N], cap).mean(1)
        np.testing.assert_allclose(value(rows, "local_radius", "best", norm), best, rtol=1e-12)
        for k in range(2):
            net = relu_network(exact, k)
            graph = graphs.read(to_module(exact, k), (64,))
            crown = graphs.certified_radius(graph, x, y, p=p)
            np.testing.assert_allclose(value(rows, "radius", "CROWN", norm)[k], crown.clamp(max=cap))
            local = graphs.local_lipschitz(graph, x, y, p=p, radius=torch.full((N,), ball).double())
            mean = float(local.sum()) / (N * 9)
            np.testing.assert_allclose(value(rows, "local_lipschitz", "relaxation", norm)[k], mean)
            truth = relu.exact_radius(net, some.x_test, some.y_test, p=p, gap=1e-6)
            np.testing.assert_allclose(value(rows, "radius", "exact, lower", norm)[k], truth.lower, rtol=2e-4)
            np.testing.assert_allclose(value(rows, "radius", "exact, upper", norm)[k], truth.upper, rtol=2e-4)
        upper = value(rows, "radius", "exact, upper", norm)
        for method in ("deepfool", "best"):
            share = (measured.radius[p, method][:, :N] > 1.05 * upper).mean(1)
            np.testing.assert_array_equal(value(rows, "missed", method, norm), share)
    assert not value(rows, "unsolved", "exact", "l2").any()


def test_what_attacks_miss_is_seen(problem):
    """A far point, none at all, and a near one; a misclassified example is not missed."""
    networks, measured, data = problem
    truth = relu.exact_radius(relu_network(networks, 0), data.x_test[:N], data.y_test[:N], p=2.0).upper
    assert (truth > 0).all()
    attack = measured.radius[2.0, "best"].copy()
    attack[0, :N] = truth * [1.06, np.inf, 1.04]
    attack[1, :N] = 0.0
    changed = replace(measured, radius={(2.0, "best"): attack})
    rows = rows_of((networks, changed, data), local=("exact",))
    assert value(rows, "missed", "best", "l2").tolist() == [pytest.approx(2 / 3), 0.0]


def test_every_check_holds_and_bounds_are_in_order(everything):
    rows = everything
    judged = rows[rows["quantity"] == "violations"]
    names = {"CROWN <= attack", "interval Jacobian <= attack", "exact <= attack", "CROWN <= exact"}
    assert set(judged["method"]) == names | {"sampled <= local Lipschitz"}
    assert set(judged["norm"]) == {"l2", "linf"}
    assert not judged["value"].any()
    assert (rows[rows["quantity"] == "cases"]["value"] > 0).all()
    for norm in ("l2", "linf"):
        means = [
            value(rows, "local_radius", m, norm) for m in ("CROWN", "exact, lower", "exact, upper", "best")
        ]
        assert (np.diff(means, axis=0) >= 0).all()
        assert (means[-1] > 0).all()
        constants = {
            method: value(rows, "local_lipschitz", method, norm)
            for method in ("sampled", "CLEVER", "relaxation", "interval", "interval Jacobian")
        }
        assert (0 < constants["sampled"]).all()
        assert (constants["sampled"] < constants["relaxation"]).all()
        assert (constants["sampled"] <= constants["CLEVER"]).all()
        assert (constants["relaxation"] <= constants["interval"]).all()
        assert (constants["relaxation"] < constants["interval"]).any()
        assert (constants["interval"] <= constants["interval Jacobian"]).all()
        crown, radius = (value(rows, "local_radius", m, norm) for m in ("CROWN", "interval Jacobian"))
        assert ((radius > 0) & (radius < crown)).all()


@pytest.mark.parametrize(
    ("side", "factor", "violated"),
    [("lower", 2.0, "exact <= attack"), ("upper", 0.3, "CROWN <= exact")],
)
def test_a_wrong_exact_radius_is_seen(problem, monkeypatch, side, factor, violated):
    honest = relu.exact_radius

    def wrong(*args, **named):
        found = honest(*args, **named)
        return replace(found, **{side: factor * getattr(found, side)})

    monkeypatch.setattr(relu, "exact_radius", wrong)
    rows = rows_of(problem, local=("crown", "exact"))
    judged = rows[(rows["quantity"] == "violations") & (rows["value"] > 0)]
    assert set(judged["method"]) == {violated}


def test_a_constant_network_has_nothing_to_miss_and_no_upper_bound(problem):
    """Its radius is infinite, beyond the cap; the label's own column is no case."""
    networks, measured, data = problem
    flat = tuple(torch.zeros_like(w) for w in networks.weights)
    constant = replace(networks, weights=flat)
    data = replace(data, y_test=constant.logits(torch.tensor(data.x_test).float())[0].argmax(1).numpy())
    same = torch.tensor(data.y_test) == int(data.y_test[0])
    assert same.all()
    measured = measure(constant, data, eps=0.1, attacks=EXPERIMENT.attacks)
    rows = rows_of((constant, measured, data))
    right = measured.correct[0, :N]
    assert right.all()
    for norm in ("l2", "linf"):
        assert np.isinf(value(rows, "radius", "exact, upper", norm)[0]).all()
        assert (
            value(rows, "radius", "exact, lower", norm)[0] == data.diameter(np.inf if norm == "linf" else 2)
        ).all()
        assert value(rows, "missed", "best", norm)[0] == 0
        chosen = rows[(rows["quantity"] == "cases") & (rows["method"] == "sampled <= local Lipschitz")]
        assert set(chosen["value"]) == {9 * N}
    assert not value(rows, "unsolved", "exact", "l2").any()
    assert not rows[rows["quantity"] == "violations"]["value"].any()


@pytest.mark.parametrize(
    ("module", "name", "factor", "violated"),
    [
        (local_comparison.graphs, "certified_radius", 3.0, {"CROWN <= exact", "CROWN <= attack"}),
        (local_comparison.graphs, "jacobian_radius", 9.0, {"interval Jacobian <= attack"}),
        (local_comparison.graphs, "local_lipschitz", 0.3, {"sampled <= local Lipschitz"}),
    ],
)
def test_a_wrong_bound_is_seen(problem, monkeypatch, module, name, factor, violated):
    honest = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **named: factor * honest(*args, **named))
    rows = rows_of(problem)
    judged = rows[(rows["quantity"] == "violations") & (rows["value"] > 0)]
    assert set(judged["method"]) == violated
    assert (rows[rows["quantity"] == "excess"]["value"] > 0).any()


def test_a_module_says_what_layers_say(problem, everything):
    networks, measured, data = problem
    assert isinstance(networks, MLPEnsemble)
    modules = from_modules([to_module(networks, k) for k in range(2)], shape=(64,))
    found = [
        everything[~everything["method"].str.contains("exact") & (everything["quantity"] != "missed")],
        rows_of((modules, measured, data), local=("crown", "jacobian", "clever", "condition")),
    ]
    keys = ["quantity", "method", "norm", "seed", "example"]
    one, other = (rows.sort_values(keys, ignore_index=True) for rows in found)
    pd.testing.assert_frame_equal(one[keys].astype(str), other[keys].astype(str))
    searched = one["method"].str.startswith("interval Jacobian") & one["quantity"].ne("local_lipschitz")
    np.testing.assert_allclose(one["value"][~searched], other["value"][~searched], rtol=1e-9)
    # The search begins at a constant found by iteration, whose last digits it is that differ.
    np.testing.assert_allclose(one["value"][searched], other["value"][searched], rtol=1e-3)


def test_only_what_is_asked_for_is_computed_and_a_norm_without_attacks_is_not_compared(problem):
    networks, measured, data = problem
    assert set(rows_of(problem, local=("condition",))["quantity"]) == {
        "local_radius",
        "rank",
        "condition_number",
    }
    fgs = Measurement(
        measured.correct,
        {key: radius for key, radius in measured.radius.items() if key[0] == np.inf},
        *(measured.fgs_correct, measured.margin, measured.gradient_norm),
    )
    rows = rows_of((networks, fgs, data), local=("crown",))
    assert set(rows[rows["quantity"] == "cases"]["norm"]) == {"linf"}
    assert set(rows[rows["method"] == "CROWN"]["norm"]) == {"l2", "linf"}


def test_rank_and_condition_number_are_those_of_numpy(problem):
    networks, measured, data = problem
    weights = [w.clone() for w in networks.weights]
    weights[0][0, 2] = 0.0  # a dead unit
    weights[1][1] = 0.0  # a dead layer
    rows = rows_of((replace(networks, weights=tuple(weights)), measured, data), local=("condition",))
    for i, weight in enumerate(weights):
        for k in range(2):
            matrix = weight[k].double().numpy()
            rank = np.linalg.matrix_rank(matrix)
            assert value(rows, "rank", f"layer {i + 1}")[k] == rank
            found = value(rows, "condition_number", f"layer {i + 1}")[k]
            if not rank:
                assert np.isnan(found)
                continue
            sizes = np.linalg.svd(matrix, compute_uv=False)
            np.testing.assert_allclose(found, sizes[0] / sizes[rank - 1], rtol=1e-6)


def test_a_run_has_the_rows(problem):
    """From the experiment's entry to the table, with nothing asked for as it was before."""
    networks, _, data = problem
    for local, there in ((("crown",), True), ((), False)):
        found = jobs.level_rows(replace(EXPERIMENT, local=local), data, MEMBERS, networks)
        rows = table(found, provenance=PROVENANCE).to_pandas()
        assert ("CROWN" in set(rows["method"])) == there


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"local": ("crwon",)},
            r"local is \['crwon'\]; choose different ones of crown, jacobian, clever, exact",
        ),
        ({"local": ("crown", "crown")}, "choose different ones"),
        ({"local_examples": 0}, "local_examples is 0"),
        ({"local_radii": (0.5,)}, r"local_radii is \[0.5\]; give two positive radii"),
        ({"local_radii": (0.5, 0.0)}, "local_radii is"),
        ({"box": True}, "box is true, but local is"),
        ({"network": Network("linear")}, "'linear' has no hidden layer"),
        ({"network": Network("lenet-5")}, "of a small mlp, not of a network of kind 'lenet-5'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings_are_named(changes, message):
    with pytest.raises(InvalidInput, match=message):
        replace(EXPERIMENT, **changes)


def test_settings_of_experiments_without_it_keep_their_names():
    names = {"local", "local_examples", "local_radii"}
    assert not names & replace(EXPERIMENT, local=()).describe().keys()
    assert names <= EXPERIMENT.describe().keys()
