"""Rung S, the trace moments below it, and tails over masks, against all masks and all activation patterns."""

import math

import numpy as np
import pytest
import sympy as sp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from tests.theory.test_relu_masks import EQUAL_ROWS, FLAT, PAIR, WITNESS, WITNESS_ALPHAS, Case, net_of
from theory.laws import masks as laws
from theory.laws import relu as relu_laws
from theory.laws.catalog.masks import noise_norm, orders, root_norm, trace_moment
from theory.laws.strategies import attack_norms, masked_networks, masked_products, relu_networks
from theory.relu import halfcut, trace_moments
from theory.relu.halfcut import halfcut_bound, halfcut_path_bound
from theory.relu.lipschitz import lipschitz_constants
from theory.relu.mask_tails import high_probability_bound
from theory.relu.masks import expected_path_norm, frobenius_bound, second_moment_bound
from theory.types import InvalidInput

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
# A rung is capped by P2 and P1 in the ladder; alone it may exceed them by its own, larger count of roundings.
ROUNDING = 1e-11
# A law about S costs 2**12 masks and a dozen spectral problems; the thorough profile multiplies this.
FEWER = settings(max_examples=max(20, settings().max_examples // 5))


def moment_of_pairings_only(weights: tuple[np.ndarray, ...], keep: np.ndarray, p: int) -> float:
    """Gaussian entries of the same mean and variance: no cumulants beyond the second."""
    sums = trace_moments.product_sums(weights, p)
    small = {key: v for key, v in sums.items() if all(m <= 2 for part in key for m in part)}
    return float(trace_moments.product_moment(weights, small, keep)[0])


UNEVEN = (np.array([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]]),)
TWO = (np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[2.0, 1.0], [-1.0, 0.25]]))


@FEWER
@given(case=masked_products())
@example(case=(UNEVEN, np.array([0.3])))
@example(case=(TWO, np.array([0.3, 0.8])))
@example(case=((np.array([[0.25]]),), np.array([0.999])))  # cumulants of order 8 cancel: 1.2e-12
def test_cumulants_give_the_enumerated_trace_moments(case):
    weights, keep = case
    for p in orders(weights):
        laws.law_equals_trace_moment(trace_moment, weights, keep, p)


@FEWER
@given(case=masked_products())
def test_trace_moments_bound_the_spectral_norm(case):
    laws.law_bounds_root_mean_square_norm(root_norm, *case)


@FEWER
@given(case=masked_products())
def test_closed_walks_bound_the_fluctuation_of_a_masked_matrix(case):
    weights, keep = case[0][:1], case[1][:1]
    laws.law_bounds_root_mean_square_norm(noise_norm, weights, keep, centred=True)
    enumerated = laws.masked_products(weights, keep, centred=True)
    for p in trace_moments.ORDERS:
        sums = {p: trace_moments.noise_sums(weights[0], p)}
        bound = float(trace_moments.noise_norm(sums, keep[:1])[0]) ** (2 * p)
        assert bound >= laws.trace_moment(*enumerated, p) * (1 - 1e-10)


def test_laws_scale_weights_as_the_rung_does():
    """Powers 2 p of this weight are no floats; the rung never takes them, nor may its laws."""
    weights, keep = (np.array([[4.45683797e-36]]),), np.array([1 - 1e-12])
    laws.law_bounds_root_mean_square_norm(noise_norm, weights, keep, centred=True)
    laws.law_bounds_root_mean_square_norm(root_norm, (weights[0], 1e-70 * np.eye(1)), np.array([0.5, 0.5]))


@pytest.mark.parametrize("p", trace_moments.ORDERS)
def test_walk_shapes_count_every_closed_walk_once(p):
    """In a complete bipartite graph with ample labels, by brute force over canonical names for small p."""
    shapes = trace_moments.walk_shapes(p)
    assert sum(shapes.values()) == {1: 1, 2: 3, 4: 62, 6: 3108}[p]

    def edges(tree):
        return sum(1 + edges(child) for _, child in tree)

    plane = [
        n
        for (tree, rest), n in shapes.items()
        if not rest and edges(tree) == p  # every edge used exactly twice
    ]
    assert sum(plane) == math.comb(2 * p, p) // (p + 1)  # Catalan: the walks around plane trees


@pytest.mark.parametrize("p", trace_moments.ORDERS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 1), (2, 2, 3)])
def test_messages_give_the_sums_over_all_labels(p, shape):
    """Walk by walk, with a sum over the labels at every vertex of its tree."""
    weight = np.random.default_rng(p).normal(size=shape)

    def below(size, tree, side):
        """The sum over the labels of all vertices but the root, for every label of the root."""
        factors = [size.swapaxes(0, side) ** uses @ below(size, child, 1 - side) for uses, child in tree]
        return np.prod([np.ones(size.shape[side]), *factors], axis=0)

    found = trace_moments.noise_sums(weight, p)
    for place in np.ndindex(shape[:-2]):
        size, wanted = np.abs(weight[place]), dict.fromkeys(found, 0.0)
        for (tree, others), count in trace_moments.walk_shapes(p).items():
            key = tuple(sorted([*uses_of(tree), *others]))
            wanted[key] += count * below(size, tree, 0).sum() * size.max() ** sum(others)
        assert {key: value[place] for key, value in found.items()} == pytest.approx(wanted, rel=1e-13)


def uses_of(tree) -> list[int]:
    return [n for uses, child in tree for n in (uses, *uses_of(child))]


def test_one_fluctuation_moment_is_exact_without_cycles():
    """A single column has walks on stars only; p = 2 sums E N^4 + the pairs, exactly."""
    weight, keep = np.array([[1.0], [2.0], [-3.0]]), np.array([0.3])
    sums = {2: trace_moments.noise_sums(weight, 2)}
    value = float(trace_moments.noise_norm(sums, keep[:1])[0]) ** 4
    truth = laws.trace_moment(*laws.masked_products((weight,), keep, centred=True), 2)
    # Labels may coincide in the bound: it counts (E N^2)^2 once more for every entry.
    doubled = 2 * sum((0.3 * 0.7 * w**2) ** 2 for w in (1.0, 2.0, 3.0))
    assert truth < value <= truth + doubled * (1 + ROUNDING)


def test_trace_laws_reject_broken_formulas():
    keep = np.array([0.3])
    with pytest.raises(AssertionError):
        laws.law_equals_trace_moment(moment_of_pairings_only, UNEVEN, keep, 2)
    with pytest.raises(AssertionError):
        laws.law_equals_trace_moment(lambda w, k, p: trace_moment(w, 1 - k, p), UNEVEN, keep, 2)
    with pytest.raises(AssertionError):
        laws.law_equals_trace_moment(
            lambda w, k, p: trace_moment(w, k[::-1].copy(), p), TWO, np.array([0.3, 0.8]), 2
        )
    with pytest.raises(AssertionError):
        laws.law_bounds_root_mean_square_norm(noise_norm, UNEVEN, keep)  # without the mean
    with pytest.raises(AssertionError):
        laws.law_bounds_root_mean_square_norm(lambda w, k: k[0] * np.linalg.norm(w[0], 2), UNEVEN, keep)


@FEWER
@given(case=masked_networks(), scaling=st.floats(0.01, 1.0), power=st.floats(-3, 3))
@example(case=(WITNESS, WITNESS_ALPHAS), scaling=0.5, power=1.0)
@example(case=(EQUAL_ROWS, np.array([0.0, 0.5])), scaling=0.5, power=1.0)
def test_half_cuts_bound_the_supremum_whatever_the_scaling(case: Case, scaling, power):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halfcut, "TUNED", ((scaling, power),))
        laws.law_bounds_second_moment_of_supremum(halfcut_bound, *case, PAIR)
        relu_laws.law_bounds_expected_supremum(halfcut_path_bound, *case, PAIR, p=math.inf)


@FEWER
@given(case=masked_networks(relu_networks(max_depth=4, max_hidden=4)))
@example(case=(FLAT, np.array([0.5, 0.0])))
def test_half_cuts_are_never_above_the_path_rungs_nor_the_papers(case: Case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halfcut, "TUNED", ())
        value, path = halfcut_bound(*case, PAIR), halfcut_path_bound(*case, PAIR)
    if math.isfinite(value):
        assert value <= second_moment_bound(*case, PAIR) * (1 + ROUNDING)
        assert value <= frobenius_bound(*case, PAIR) * (1 + ROUNDING)
        assert path <= expected_path_norm(*case, PAIR) * (1 + ROUNDING)


@FEWER
@given(net=relu_networks(max_depth=4, max_hidden=4))
def test_without_masks_half_cuts_sharpen_the_global_lipschitz_constant(net):
    """Also deeper than the halved layers: HALVED = 1 leaves the others cut, as in the norm product."""
    dense = np.zeros(len(net.weights))
    copies = [weight[None] for weight in net.weights]
    for halved in (1, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(halfcut, "TUNED", ())
            patch.setattr(halfcut, "HALVED", halved)
            value = halfcut_bound(net, dense, PAIR)
        if sum(len(weight) for weight in net.weights[:-1]) <= 8:
            truth = relu_laws.largest_gradient(net, copies, PAIR, q=2.0)[0]
            assert value >= truth * (1 - relu_laws.ENUMERATION_TOLERANCE)
        if math.isfinite(value):
            assert value <= lipschitz_constants(net, p=2.0)[PAIR] * (1 + ROUNDING)


def without(part: str):
    """Rung S with one part of its argument left out."""

    def broken(net, alphas, pair):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(halfcut, "TUNED", ())
            if part == "signs":  # D replaced by I / 2: only the chain without cuts
                patch.setattr(halfcut, "_cut_sets", lambda depth: [()] * 2**depth)
            elif part == "fluctuation":
                patch.setattr(halfcut, "_block_norms", lambda s, k: mean_norms(s, k))
            elif part == "diagonal":
                patch.setattr(halfcut, "_through", lambda w, m, k: k**2 * (w.T @ m @ w))
            return halfcut_bound(net, alphas, pair)

    def mean_norms(scaling, keep):
        return {(i, j): size * keep[:, j:i].prod(axis=1) for (i, j), size in scaling.means.items()}

    return broken


@pytest.mark.parametrize(
    ("part", "net", "alphas"),
    [
        ("signs", net_of([[1], [1]], [[1, -1], [0, 0]]), [0.0, 0.0]),
        ("fluctuation", FLAT, [0.9, 0.0]),
        ("diagonal", WITNESS, [0.9, 0.9, 0.0]),
    ],
)
def test_the_supremum_law_rejects_half_cuts_with_a_part_left_out(part, net, alphas):
    laws.law_bounds_second_moment_of_supremum(halfcut_bound, net, np.array(alphas), PAIR)
    with pytest.raises(AssertionError):
        laws.law_bounds_second_moment_of_supremum(without(part), net, np.array(alphas), PAIR)


def test_half_cuts_are_not_monotone_and_give_batches_and_edges():
    alphas = np.array([[0.25, 0.75, 0.5], [1.0, 0.5, 0.5], [0.5, 1.0, 0.0]])
    batch = halfcut_bound(WITNESS, alphas, PAIR)
    np.testing.assert_allclose(batch, [halfcut_bound(WITNESS, row, PAIR) for row in alphas], rtol=1e-13)
    assert (batch[1:] == 0).all()
    flat = net_of(hadamard(16), hadamard(16), hadamard(16)[:2])
    assert halfcut_bound(flat, np.array([0.1, 0.0, 0.0]), PAIR) > halfcut_bound(flat, np.zeros(3), PAIR)


def test_entries_too_far_apart_for_their_squares_leave_the_rung_to_p2():
    far = net_of([[1.0, 0.0], [0.0, 1e-200]], [[0.0, 1.0], [0.0, 0.0]])
    half = np.array([0.5, 0.0])
    assert halfcut_bound(far, half, PAIR) == math.inf
    assert second_moment_bound(far, half, PAIR) > 0


@FEWER
@given(case=masked_networks(), p=attack_norms(), delta=st.sampled_from([1e-18, 1e-3, 0.1, 0.5, 0.9]))
@example(case=(WITNESS, WITNESS_ALPHAS), p=2.0, delta=0.1)
@example(case=(EQUAL_ROWS, np.array([0.0, 0.5])), p=2.0, delta=0.5)
@example(case=(net_of(np.eye(3), np.ones((2, 3))), np.array([0.0, 1e-17])), p=2.0, delta=1e-18)
@example(case=(net_of(np.eye(3), np.ones((2, 3))), np.array([0.0, 1e-17])), p=math.inf, delta=1e-18)
@example(case=(net_of(hadamard(2), [[1.0, 1.0], [0.0, 0.0]]), np.array([1e-17, 0.0])), p=2.0, delta=1e-18)
def test_tails_hold_with_their_probability(case: Case, p, delta):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halfcut, "TUNED", ())
        laws.law_holds_with_probability(high_probability_bound, *case, PAIR, p=p, delta=delta)


def test_the_tail_law_rejects_an_expectation_and_a_wrong_norm():
    alphas = np.array([0.9, 0.0])

    def expectation(net, alphas, pair, *, p, delta):
        return expected_path_norm(net, alphas, pair)

    with pytest.raises(AssertionError):
        laws.law_holds_with_probability(expectation, FLAT, alphas, PAIR, p=math.inf, delta=0.01)

    def euclidean(net, alphas, pair, *, p, delta):
        return high_probability_bound(net, alphas, pair, p=2.0, delta=delta)

    flat = net_of(np.ones((1, 4)), [[1.0], [0.0]])
    with pytest.raises(AssertionError):
        laws.law_holds_with_probability(euclidean, flat, np.zeros(2), PAIR, p=math.inf, delta=0.01)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("pair", [list(PAIR), np.array(PAIR)])
def test_a_pair_is_any_sequence(pair):
    found = high_probability_bound(WITNESS, WITNESS_ALPHAS, pair, p=2.0, delta=1e-300)
    assert found == high_probability_bound(WITNESS, WITNESS_ALPHAS, PAIR, p=2.0, delta=1e-300)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan, 5e-324])
def test_a_delta_that_is_no_probability_is_named(delta):
    with pytest.raises(InvalidInput, match="delta is"):
        high_probability_bound(WITNESS, WITNESS_ALPHAS, PAIR, p=2.0, delta=delta)


@pytest.mark.parametrize("dropped", [2.0**-26, 2.0**-46, 2.0**-53])
def test_moments_near_full_keep_err_by_what_they_say(dropped):
    keep = np.array([1 - dropped])
    one = (np.ones((1, 1)),)
    moment, lost = trace_moments.product_moment(one, trace_moments.product_sums(one, 4), keep)
    assert abs(moment - keep[0]) <= lost  # m^8 = m: the moment is k
    two = (np.diag([1.0, 0.0]),)
    found = trace_moments.product_norm(
        two, trace_moments.product_sums(two, 2), trace_moments.product_sums(two, 4), keep
    )
    assert found >= math.sqrt(keep[0]) * (1 - 1e-15)


@pytest.mark.parametrize("order", range(1, 9))
def test_cumulants_of_kept_and_dropped_entries_mirror_each_other(order):
    keep = np.array([0.0, 1e-9, 0.125, 0.375, 0.5, 0.75, 1.0])
    variable = sp.Symbol("k")
    expected = variable
    for _ in range(order - 1):
        expected = sp.expand(variable * (1 - variable) * sp.diff(expected, variable))
    exact = [float(expected.subs(variable, sp.Rational(float(k)))) for k in keep]
    assert trace_moments.cumulant(keep, order) == pytest.approx(exact, rel=1e-12, abs=1e-300)
