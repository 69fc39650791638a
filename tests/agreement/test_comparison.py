"""The checks reject what is false, accept what is true, and do not count what says nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from empirical.comparison import ATTACK_SLACK, check, check_equal, compare_linear, compare_relu
from empirical.datasets import load
from empirical.ensembles import from_modules, initialise, initialise_modules, to_module
from empirical.mask_comparison import compare_masks
from empirical.measurement import measure
from empirical.models import lenet5, resnet
from empirical.results import Members, Rows

MEMBERS = Members("d", "linear", ["dense", "magnitude"], [0.0, 0.5], [0.0, 0.5], [0, 0])
INF, NAN = np.inf, np.nan
CPU = torch.device("cpu")


def found(parts) -> dict[str, list[float]]:
    return {part.quantity: part.values.tolist() for part in parts if part.quantity != "excess"}


def two(one: list[float], other: list[float]) -> np.ndarray:
    return np.array([one, other], dtype=float)


def test_check_counts_names_and_measures():
    smaller = two([1.0, 2.0, 0.0], [3.0, 1.0, 1.0])
    larger = two([2.0, 2.0, 0.0], [2.0, 1.0, 4.0])
    parts = check(MEMBERS, smaller, larger, name="law")
    assert found(parts) == {
        "cases": [3, 3],
        "violations": [0, 1],
        "tightness": [pytest.approx((0.5 + 1 + 1) / 3), pytest.approx((1.5 + 1 + 0.25) / 3)],
    }
    (excess,) = (part for part in parts if part.quantity == "excess")
    assert excess.values[excess.kept()].tolist() == [1.0]


def test_check_leaves_out_what_says_nothing():
    parts = check(
        MEMBERS, two([1.0, NAN, INF], [INF, 5.0, 1.0]), two([INF, 1.0, INF], [1.0, NAN, 2.0]), name="law"
    )
    assert found(parts)["cases"] == [0, 2]
    assert found(parts)["violations"] == [0, 1]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_check_sees_a_small_relative_excess_at_any_scale(scale):
    larger = scale * np.ones((2, 1))
    assert found(check(MEMBERS, larger * (1 + 1e-6), larger, name="law"))["violations"] == [1, 1]
    assert found(check(MEMBERS, larger * (1 + 1e-12), larger, name="law"))["violations"] == [0, 0]


def test_check_equal_is_two_sided_and_sees_infinities():
    one, other = two([1.0, INF, INF], [2.0, 1.0, NAN]), two([1.0, INF, 1.0], [1.0, INF, 1.0])
    parts = check_equal(MEMBERS, one, other, name="law")
    assert found(parts)["violations"] == [1, 2]
    assert found(parts)["cases"] == [3, 2]
    assert found(parts)["relative_error"][0] == INF


def test_check_equal_measures_the_relative_error():
    other = np.array([[2.0], [1e-7]])
    parts = check_equal(MEMBERS, other + [[2e-7], [1e-13]], other, name="law", slack=ATTACK_SLACK)
    assert found(parts)["violations"] == [0, 0]
    assert found(parts)["relative_error"] == [pytest.approx(1e-7), pytest.approx(1e-8)]


def test_a_norm_in_which_nothing_attacks_is_compared_with_no_attack():
    nets = initialise([64, 5, 10], seeds=[0], device=torch.device("cpu"))
    nets = nets.to(dtype=torch.float64, device=torch.device("cpu"))
    members, data = Members("digits", "mlp", ["dense"], [0.0], [0.0], [0]), load("digits").first(n_test=10)
    rows = compare_relu(members, nets, measure(nets, data, eps=0.1, attacks=("fgs",)), data)
    compared = {part.norm for part in rows if part.method == "certificate <= attack"}
    assert compared == {"linf"}


def test_linear_networks_that_deepfool_did_not_attack_are_compared_without_it():
    nets = initialise([64, 10], seeds=[0], device=torch.device("cpu"))
    nets = nets.to(dtype=torch.float64, device=torch.device("cpu"))
    members, data = Members("digits", "linear", ["dense"], [0.0], [0.0], [0]), load("digits").first(n_test=10)
    rows = compare_linear(members, nets, measure(nets, data, eps=0.1, attacks=("fgs",)), data, eps=0.1)
    names = {part.method for part in rows if part.quantity == "violations"}
    assert "exact <= attack" in names
    assert "linear radius" not in names


@pytest.mark.parametrize("copies", [2, 100])
def test_tight_rungs_under_random_masks_are_not_violated_by_rounding_or_few_masks(copies):
    """One hidden unit: without masks the rungs are the Lipschitz constant, and few masks say little."""
    seeds = list(range(8))
    nets = initialise((64, 1, 10), seeds=seeds, device=torch.device("cpu"))
    members = Members("digits", "mlp", ["dense"] * 8, [0.0] * 8, [0.0] * 8, seeds)
    alphas = (0.0, 0.3, 0.7, 0.95)
    rows = compare_masks(members, nets, load("digits"), alphas, pair=(1, 7), copies=copies)
    violated = [row for row in rows if row.quantity == "violations"]
    assert len(violated)
    assert not sum(row.values.sum() for row in violated)


def values(rows: list[Rows]) -> dict[tuple[str, str, str], np.ndarray]:
    return {(row.quantity, row.method, row.norm): row.values for row in rows}


def test_layers_and_modules_are_judged_alike():
    """The same two networks as stacked layers and as modules: two implementations of every bound."""
    nets = initialise([64, 12, 8, 10], seeds=[0, 1], device=CPU).to(dtype=torch.float64, device=CPU)
    modules = from_modules([to_module(nets, k) for k in range(2)], shape=(64,))
    data = load("digits").first(n_test=12)
    members = Members("digits", "mlp", ["dense"] * 2, [0.0] * 2, [0.0] * 2, [0, 1])
    measured = measure(nets, data, eps=0.1, attacks=("fgs", "deepfool"))
    layered, read = (values(compare_relu(members, some, measured, data)) for some in (nets, modules))
    assert layered.keys() == read.keys()
    for name, expected in layered.items():
        np.testing.assert_allclose(read[name], expected, rtol=1e-9, atol=1e-12, err_msg=str(name))
    layered, read = (
        values(compare_masks(members, some, data, (0.0, 0.4, 0.9), pair=(1, 7), copies=10))
        for some in (nets, modules)
    )
    shared = {name: rung for name, rung in read.items() if name[1] in ("P1", "F", "Monte Carlo")}
    assert len(shared) == 7  # two norms of P1 and the two numbers of Monte Carlo, F
    for name, rung in shared.items():
        np.testing.assert_allclose(rung, layered[name], rtol=1e-9, err_msg=str(name))


@pytest.mark.parametrize("kind", ["lenet-5", "resnet-32"])
def test_convolutional_networks_obey_the_theory(kind):
    build, shape = {
        "lenet-5": (lenet5, (1, 28, 28)),
        "resnet-32": (lambda: resnet(depth=8, widths=(2, 3, 4), classes=10, channels=1), (1, 8, 8)),
    }[kind]
    nets = initialise_modules(build, shape=shape, seeds=[3], device=CPU)
    digits = load("digits").first(n_test=10)
    larger = np.kron(digits.x_test.reshape(-1, 8, 8), np.ones((4, 4)))[:, 2:30, 2:30]
    x = (larger if shape[1] == 28 else digits.x_test).reshape(10, -1)
    chosen = nets.logits(torch.tensor(x, dtype=torch.float32))[0].argmax(1).numpy()
    chosen[0] = (chosen[0] + 1) % 10  # misclassified
    data = replace(digits, x_train=x, y_train=chosen, x_test=x, y_test=chosen, shape=shape)
    members = Members("digits", kind, ["dense"], [0.0], [0.0], [3])
    measured = measure(nets, data, eps=0.1, attacks=("fgs", "deepfool"))
    rows = compare_relu(members, nets, measured, data)
    rows += compare_masks(members, nets, data, (0.0, 0.5, 0.95), pair=(1, 7), copies=20)
    found = values(rows)
    for (quantity, name, norm), counts in found.items():
        if quantity == "violations":
            assert not counts.any(), (name, norm)
    assert found["cases", "gradient <= Lipschitz", "l2"] == [1]
    assert found["cases", "certificate <= attack", "linf"] >= 9  # an attack may find nothing
    assert (found["lipschitz", "norm product", "l2"] > 0).all()
    assert (found["expected_lipschitz", "Monte Carlo", "l2"] > 0).all()
    assert (found["expected_lipschitz", "F", "l2"] > found["expected_lipschitz", "Monte Carlo", "l2"]).all()
