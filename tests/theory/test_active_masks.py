"""Random masks with few active units: against enumeration, sums in plain NumPy, and linear programs."""

import itertools
import math

import numpy as np
import pytest
import sympy as sp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from theory import symbolic_sums as symbolic
from theory.laws import active as laws
from theory.laws.relu import IDENTITY_TOLERANCE, all_masks
from theory.laws.strategies import active_counts, arrays, masked_networks, relu_networks
from theory.relu import halfcut
from theory.relu.active_masks import (
    active_bernstein_bound,
    active_frobenius_bound,
    active_ladder,
    active_path_bound,
    active_second_moment_bound,
    best_active_bound,
)
from theory.relu.largest_sums import excess, knapsack_bound, scarf_bound
from theory.relu.masked_layers import keep_probabilities, last_layer
from theory.relu.masks import (
    bernstein_bound,
    best_bound,
    expected_path_norm,
    frobenius_bound,
    second_moment_bound,
)
from theory.relu.path_levels import Paths, last_layer_spread, paths_above, paths_below, sizes_of
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

PAIR = (0, 1)
RUNGS = [  # with the rung without counts, and the attack norm
    (active_frobenius_bound, frobenius_bound, 2.0),
    (active_second_moment_bound, second_moment_bound, 2.0),
    (active_bernstein_bound, bernstein_bound, 2.0),
    (active_path_bound, expected_path_norm, math.inf),
]
PLAIN = pytest.mark.parametrize(("rung", "plain", "p"), RUNGS)
GRID = 201  # support points of the linear program that stands for all distributions
EXAMPLES = settings(max_examples=40)


def net_of(*weights: object) -> ReLUNetwork:
    """A network without biases."""
    layers = tuple(np.array(w, dtype=float) for w in weights)
    return ReLUNetwork(layers, tuple(np.zeros(len(w)) for w in layers))


TWINS = net_of([[1], [1]], [[1, 1], [0, 0]])  # two equal units that add up
WITNESS = net_of([[1, 2], [-3, 0.5]], [[2, -1], [0.25, 1.5]], [[1, -2], [3, 0.5]])
HALF = np.array([0.5, 0.0])
# Equal rows: v is not 0 only where a mask removes one entry of two.
CANCELLED = net_of(np.ones((2, 1)), [[1.0, 0.5], [1.0, 0.5]])
WIDE = net_of(np.eye(3), np.ones((2, 3)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ReLUNetwork, np.ndarray, tuple[int, ...]]:
    net, alphas = draw(masked_networks())
    return net, alphas, draw(active_counts(net))


@PLAIN
@EXAMPLES
@given(case=cases())
@example(case=(TWINS, HALF, (1,)))
@example(case=(WITNESS, np.array([0.25, 0.75, 0.0]), (1, 1)))
@example(case=(net_of([[0], [0]], [[1, 1], [0, 0]]), HALF, (1,)))
@example(case=(CANCELLED, np.array([0.0, 5e-17]), (1,)))
@example(case=(WIDE, np.array([0.0, 1e-17]), (3,)))
@example(case=(WIDE, np.array([0.0, 5e-324]), (2,)))
def test_rungs_bound_the_supremum_and_never_exceed_those_without_counts(rung, plain, p, case):
    net, alphas, active = case
    laws.law_bounds_active_supremum(rung, net, alphas, PAIR, active, p=p)
    laws.law_below_all_patterns(rung, plain, net, alphas, PAIR, active)


@PLAIN
@pytest.mark.parametrize("alpha", [1e-12, 1e-17, 1e-200])
def test_rare_masks_of_the_last_layer_count_in_full(rung, plain, p, alpha):
    for net in (CANCELLED, WIDE):
        alphas, widths = np.array([0.0, alpha]), (len(net.weights[0]),)
        laws.law_bounds_active_supremum(rung, net, alphas, PAIR, widths, p=p)
        np.testing.assert_allclose(rung(net, alphas, PAIR, widths), plain(net, alphas, PAIR), rtol=1e-12)


@PLAIN
@settings(max_examples=20)
@given(case=masked_networks(relu_networks()), data=st.data())
def test_rungs_grow_with_the_counts_to_those_without(rung, plain, p, case, data):
    net, alphas = case
    widths = tuple(len(weight) for weight in net.weights[:-1])
    few, more = (data.draw(active_counts(net)) for _ in range(2))
    laws.law_grows_with_active(rung, net, alphas, PAIR, few, more)
    laws.law_grows_with_active(rung, net, alphas, PAIR, more, widths)
    whole, above = rung(net, alphas, PAIR, widths), plain(net, alphas, PAIR)
    if rung is not active_bernstein_bound:
        np.testing.assert_allclose(whole, above, rtol=IDENTITY_TOLERANCE)
    assert rung(net, alphas, PAIR, tuple(n + 3 for n in widths)) == whole
    for j in range(len(widths)):
        assert rung(net, alphas, PAIR, (*widths[:j], 0, *widths[j + 1 :])) == 0


def nested_sums(net: ReLUNetwork, active: tuple[int, ...]) -> float:
    """Sums of the largest within sums of the largest, from the inputs up."""
    sums = np.abs(net.weights[0]).sum(axis=1)
    rows = [*net.weights[1:-1], (net.weights[-1][0] - net.weights[-1][1])[None]]
    for weight, count in zip(rows, active, strict=True):
        sums = np.sort(np.abs(weight) * sums, axis=1)[:, ::-1][:, :count].sum(axis=1)
    return float(sums[0])


def smallest_plain_sum(net: ReLUNetwork, active: tuple[int, ...]) -> float:
    """One layer's largest products, or nested sums in either direction, written out."""
    margin = np.abs(net.weights[-1][0] - net.weights[-1][1])
    below, above, down = [np.ones(net.weights[0].shape[1])], [margin], margin
    for weight in net.weights[:-1]:
        below.append(np.abs(weight) @ below[-1])
    for weight in reversed(net.weights[1:-1]):
        above.append(above[-1] @ np.abs(weight))
    layers = [
        np.sort(into * out)[::-1][:count].sum()
        for into, out, count in zip(below[1:], reversed(above), active, strict=True)
    ]
    for weight, count in zip(reversed(net.weights[:-1]), reversed(active), strict=True):
        down = np.sort(np.abs(weight.T) * down, axis=1)[:, ::-1][:, :count].sum(axis=1)
    return float(min(*layers, nested_sums(net, active), down.sum()))


def largest_norms(net: ReLUNetwork, active: tuple[int, ...]) -> float:
    """The product of the norms of the largest rows, or columns where these are smaller, written out."""

    def largest(squares: np.ndarray, count: int) -> float:
        return float(np.sort(squares)[::-1][:count].sum())

    expected = largest((net.weights[-1][0] - net.weights[-1][1]) ** 2, active[-1])
    for j, weight in enumerate(net.weights[:-1]):
        rows = largest((weight**2).sum(axis=1), active[j])
        expected *= min(rows, largest((weight**2).sum(axis=0), active[j - 1])) if j else rows
    return math.sqrt(expected)


@pytest.mark.parametrize(
    ("rung", "plain"), [(active_path_bound, smallest_plain_sum), (active_frobenius_bound, largest_norms)]
)
@pytest.mark.parametrize("seed", range(20))
def test_without_masks_the_rungs_are_plain_sums_of_the_largest(rung, plain, seed):
    rng = np.random.default_rng(seed)
    hidden = rng.integers(2, 7, size=rng.integers(1, 4))
    widths = [3, *hidden, 2]
    net = net_of(*(rng.normal(size=(b, a)) for a, b in itertools.pairwise(widths)))
    active = tuple(int(rng.integers(1, n + 1)) for n in hidden)
    found = rung(net, np.zeros(len(net.weights)), PAIR, active)
    np.testing.assert_allclose(found, plain(net, active), rtol=1e-11)


def test_by_hand_two_equal_units_of_which_one_is_active():
    """Kept with probability 1/2 each: E max = 3/4; the bound by mean 1/2, variance 1/4 and range 1 is 1."""
    dense, one = np.zeros(2), (1,)
    for rung, plain in [(active_path_bound, 2.0), (active_frobenius_bound, 2.0)]:
        assert rung(TWINS, dense, PAIR, (2,)) == pytest.approx(plain)
        assert rung(TWINS, dense, PAIR, one) == pytest.approx(1.0)
    assert active_second_moment_bound(TWINS, dense, PAIR, one) == pytest.approx(1.0)
    probabilities, weights = all_masks(TWINS, HALF)
    assert probabilities @ laws.largest_active_gradient(TWINS, weights, PAIR, one, q=1.0) == 0.75
    assert active_path_bound(TWINS, HALF, PAIR, one) == pytest.approx(1.0)
    assert active_path_bound(TWINS, np.array([0.9, 0.0]), PAIR, one) == pytest.approx(0.2)


def largest_expectation(net, alphas, pair, active):
    """The expectation moved inside the largest: E of a maximum is more than the largest mean."""
    dense = active_path_bound(net, np.append(np.zeros(len(alphas) - 1), alphas[-1]), pair, active)
    return dense * np.prod(1 - alphas[:-1])


def one_unit_less(rung):
    return lambda net, alphas, pair, active: rung(net, alphas, pair, [max(k - 1, 0) for k in active])


def next_layers_count(rung):
    return lambda net, alphas, pair, active: rung(net, alphas, pair, active[::-1])


@pytest.mark.parametrize(
    ("broken", "net", "alphas", "active", "p"),
    [
        (largest_expectation, TWINS, HALF, (1,), math.inf),
        (one_unit_less(active_path_bound), TWINS, np.zeros(2), (2,), math.inf),
        (one_unit_less(active_frobenius_bound), TWINS, np.zeros(2), (2,), 2.0),
        (one_unit_less(active_second_moment_bound), TWINS, np.zeros(2), (2,), 2.0),
        (
            next_layers_count(active_path_bound),
            net_of([[1], [1]], [[1, 1]], [[1], [0]]),
            np.zeros(3),
            (2, 1),
            math.inf,
        ),
        (active_second_moment_bound, net_of([[1, 1]], [[1], [0]]), np.zeros(2), (1,), math.inf),
    ],
)
def test_the_law_rejects_broken_rungs(broken, net, alphas, active, p):
    with pytest.raises(AssertionError):
        laws.law_bounds_active_supremum(broken, net, alphas, PAIR, active, p=p)


@EXAMPLES
@given(case=masked_networks())
def test_moments_of_paths_are_those_of_all_masks(case):
    """Mean, covariance and largest value of in_u and out_u for every unit of every layer."""
    net, alphas = case
    if len(net.weights) == 1:
        return
    keep = keep_probabilities(net, alphas)
    first, _, shift = last_layer(net, keep, alphas, PAIR)
    rows = np.ldexp(net.weights[-1], -int(shift))
    variance, largest = last_layer_spread(rows, float(keep[-1]), float(alphas[-1]), power=1)
    sizes, exponents = sizes_of(net)
    last = Paths(first, np.diag(variance), np.maximum(largest, first), 0)
    probabilities, weights = all_masks(net, alphas)
    into = np.ones((len(probabilities), net.weights[0].shape[1]))
    for j, found in enumerate(paths_below(sizes, keep[:-1])):
        into = np.einsum("kua,ka->ku", np.abs(weights[j]), into)
        same_moments(found, sum(exponents[: j + 1]), into, probabilities)
    out = np.abs(weights[-1][:, 0] - weights[-1][:, 1])
    levels = paths_above(sizes, keep[:-1], last)
    for j in range(len(levels) - 1, -1, -1):
        same_moments(levels[j], sum(exponents[j + 1 :]) + int(shift), out, probabilities)
        out = np.einsum("kua,ku->ka", np.abs(weights[j]), out)


def same_moments(found: Paths, exponent: int, values: np.ndarray, probabilities: np.ndarray) -> None:
    unit = 2.0 ** (found.exponent + exponent)
    mean = probabilities @ values
    covariance = np.einsum("k,ku,kw->uw", probabilities, values - mean, values - mean)
    top = values.max(initial=0.0)
    np.testing.assert_allclose(found.mean * unit, mean, rtol=1e-11, atol=1e-13 * top)
    np.testing.assert_allclose(found.covariance * unit**2, covariance, rtol=1e-9, atol=1e-13 * top**2)
    assert (found.largest * unit >= values.max(axis=0) * (1 - 1e-12)).all()


@EXAMPLES
@given(data=st.data())
def test_the_excess_is_the_best_bound_its_moments_allow(data):
    """Against the linear program over all distributions on a grid; convex in the threshold."""
    unit = st.floats(0.02, 0.98)
    largest, share = data.draw(st.sampled_from([1.0, 3.0])), data.draw(unit)
    mean = share * largest
    variance = data.draw(unit) * mean * (largest - mean)
    threshold = data.draw(unit) * largest
    (value,), (slope,) = excess(*(np.array([v]) for v in (mean, variance, largest, threshold)))
    grid = np.linspace(0.0, largest, GRID)
    constraints = np.stack([np.ones(GRID), grid])
    best = linprog(
        -np.maximum(grid - threshold, 0.0),
        A_eq=constraints,
        b_eq=[1.0, mean],
        A_ub=[grid**2],
        b_ub=[variance + mean**2],
    )
    assert best.status == 0
    assert -best.fun <= value * (1 + 1e-6) + 1e-9
    assert value <= -best.fun + 2 * largest / GRID
    near = excess(*(np.array([v]) for v in (mean, variance, largest, threshold + 1e-3)))[0][0]
    assert near >= value + 1e-3 * slope - 1e-12  # convex: above its tangent


@EXAMPLES
@given(data=st.data(), n=st.integers(1, 4))
def test_the_knapsack_is_the_largest_sum_that_its_means_allow(data, n):
    worth = np.abs(data.draw(arrays((n,))))
    share = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.6, 1.0]), min_size=n, max_size=n)))
    count = data.draw(st.integers(0, n + 1))
    subsets = np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    prizes = [np.sort(subset * worth)[::-1][:count].sum() for subset in subsets]
    best = linprog(-np.array(prizes), A_eq=np.vstack([np.ones(len(subsets)), subsets.T]), b_eq=[1, *share])
    found = knapsack_bound(worth, share, count)
    np.testing.assert_allclose(found, -best.fun, rtol=1e-9, atol=1e-12)
    mean, variance = share * worth, share * (1 - share) * worth**2
    assert scarf_bound(mean, variance, worth, count) <= found * (1 + 1e-12)


@pytest.mark.parametrize(
    "proof", [symbolic.prove_excess_below, symbolic.prove_excess_between, symbolic.prove_excess_above]
)
def test_the_excess_is_proved_by_a_quadratic_and_attained(proof):
    found, x, t = proof(), symbolic.X, symbolic.T
    assert sp.simplify(found.expectation() - found.closed) == 0
    assert sp.simplify(found.off - found.quadratic) == 0
    assert sp.simplify(found.on - (found.quadratic - (x - t))) == 0
    for power, moment in enumerate([1, symbolic.M, symbolic.S + symbolic.M**2]):
        (low, rare), (high, often) = found.points
        assert sp.simplify(rare * low**power + often * high**power - moment) == 0
    (_, (upper, chance)) = found.points
    assert sp.simplify(chance * (upper - t) - found.closed) == 0


def test_best_is_the_smallest_of_all_and_batches_are_one_call_each(monkeypatch):
    monkeypatch.setattr(halfcut, "TUNED", ())
    alphas, active = np.array([[0.0, 0.0, 0.0], [0.3, 0.6, 0.0], [0.9, 0.5, 0.25]]), (1, 2)
    for p, names in ((2.0, {"F", "P1", "P2", "B"}), (math.inf, {"P1", "B"})):
        rungs, plain = (
            active_ladder(WITNESS, alphas, PAIR, active, p=p),
            best_bound(WITNESS, alphas, PAIR, p=p),
        )
        assert set(rungs) == names
        best = best_active_bound(WITNESS, alphas, PAIR, active, p=p)
        np.testing.assert_array_equal(best, np.min([plain, *rungs.values()], axis=0))
        assert best_active_bound(TWINS, HALF * 0, PAIR, (1,), p=p) == pytest.approx(1.0)
        assert best_bound(TWINS, HALF * 0, PAIR, p=p) == pytest.approx(2.0)
        for k, row in enumerate(alphas):
            for name, value in active_ladder(WITNESS, row, PAIR, active, p=p).items():
                np.testing.assert_allclose(value, rungs[name][k], rtol=1e-13)


@pytest.mark.parametrize("rung", [rung for rung, *_ in RUNGS])
def test_extreme_scales_never_give_nan_or_too_little(rung):
    assert rung(net_of([[1e200]], [[1e200], [0.0]]), HALF, PAIR, (1,)) == math.inf
    assert rung(net_of([[1e-200]], [[1e-200], [0.0]]), HALF, PAIR, (1,)) == 5e-324
    assert rung(net_of([[0.0]], [[1e300], [-1e300]]), HALF, PAIR, (1,)) == 0
    apart = net_of([[1e-150, 1.0], [1e150, 1e-150]], [[1e150, 1e-150], [0.0, 0.0]])
    for alpha in (0.0, 0.5, 1.0 - 1e-12, 1.0):
        value = rung(apart, np.array([alpha, 0.0]), PAIR, (1,))
        p = math.inf if rung is active_path_bound else 2.0
        laws.law_bounds_active_supremum(
            lambda *_, value=value: value, apart, np.array([alpha, 0.0]), PAIR, (1,), p=p
        )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("active", "message"),
    [
        ((1,), "active holds 1 counts; give 2"),
        ((1, -1), r"active\[1\] is -1"),
        ((1.5, 1), r"active\[0\] is 1.5"),
        ((1, math.nan), r"active\[1\] is nan"),
    ],
)
def test_illegal_counts_are_named(active, message):
    for rung, *_ in RUNGS:
        with pytest.raises(InvalidInput, match=message):
            rung(WITNESS, np.zeros(3), PAIR, active)


def test_many_layers_of_which_little_is_kept_do_not_vanish():
    depth, alpha = 29, 1 - 1e-12
    net = ReLUNetwork(
        (*[np.array([[1e12]])] * depth, np.array([[1.0], [0.0]])), (*[np.zeros(1)] * depth, np.zeros(2))
    )
    alphas = np.array([[*[alpha] * depth, 0.0]])
    expected = (1e12 * (1 - alpha)) ** depth  # one path, kept with probability (1 - alpha)^29
    for p in (2.0, math.inf):
        found = best_active_bound(net, alphas, PAIR, [1] * depth, p=p)
        assert found >= expected * (1 - 1e-12)
    assert active_path_bound(net, alphas, PAIR, [1] * depth) == pytest.approx(expected, rel=1e-9)
