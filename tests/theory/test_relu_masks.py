"""Expectations over random masks against the enumeration of all masks and all activation patterns."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from theory.laws import gradients
from theory.laws import relu as laws
from theory.laws.catalog.relu import closed_column_sums
from theory.laws.strategies import arrays, attack_norms, masked_networks, relu_networks, sparsities
from theory.relu import halfcut, masks
from theory.relu.active_masks import best_active_bound
from theory.relu.lipschitz import gradient_norms, lipschitz_constants, path_norm
from theory.relu.mask_margins import expected_margin_bound, margin_moment_bounds
from theory.relu.mask_tails import high_probability_bound
from theory.relu.masks import (
    bernstein_bound,
    best_bound,
    column_sum_bound,
    eta_frobenius,
    eta_path,
    expected_path_norm,
    frobenius_bound,
    ladder,
    monte_carlo,
    second_moment_bound,
)
from theory.relu.moments import predict
from theory.relu.oversparsification import (
    expected_lipschitz,
    expected_radius_confidence,
    expected_radius_lower_bound,
    expected_radius_upper_bound,
    path_probability,
)
from theory.types import InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


@pytest.fixture(autouse=True, scope="module")
def plain_half_cuts():
    """Rung S without a search for scalings, which its own tests draw: any scaling gives a bound."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halfcut, "TUNED", ())
        yield


PAIR = (0, 1)
Case = tuple[ReLUNetwork, np.ndarray]
RUNGS = [  # with the attack norm whose dual each one bounds
    (frobenius_bound, 2.0),
    (second_moment_bound, 2.0),
    (bernstein_bound, 2.0),
    (expected_path_norm, 2.0),
    (expected_path_norm, math.inf),
    (column_sum_bound, math.inf),
]
MONOTONE = [frobenius_bound, second_moment_bound, expected_path_norm, column_sum_bound]
# Every other function of sparsities, called for one network, input and label.
OF_SPARSITIES = [
    lambda net, x, y, a: high_probability_bound(net, a, PAIR, p=2.0, delta=1e-4),
    lambda net, x, y, a: high_probability_bound(net, a, PAIR, p=math.inf, delta=0.3),
    lambda net, x, y, a: ladder(net, a, PAIR, p=2.0)["S"],
    lambda net, x, y, a: best_active_bound(net, a, PAIR, [1] * (len(a) - 1), p=2.0),
    lambda net, x, y, a: path_probability(net, x[0], a[None], PAIR),
    lambda net, x, y, a: margin_moment_bounds(net, x, y, a[None]),
    lambda net, x, y, a: expected_margin_bound(net, x, a[None], PAIR),
    lambda net, x, y, a: expected_lipschitz(net, a[None], 0, p=math.inf),
    lambda net, x, y, a: expected_radius_lower_bound(net, x, y, a[None], p=2.0, domain_radius=0.1),
    lambda net, x, y, a: expected_radius_upper_bound(net, x, y, a[None], p=2.0, domain_radius=0.1),
    lambda net, x, y, a: expected_radius_confidence(net, x, y, a[None], np.ones((1, 900, 1)), p=2.0),
    lambda net, x, y, a: predict(net, x, y, y + 1, a[None]).margin,
]
# Five standard errors: a correct estimator of 4000 masks fails once in 3.5 million seeds.
STANDARD_ERRORS = 5


def net_of(*weights: object) -> ReLUNetwork:
    """A network without biases."""
    layers = tuple(np.array(w, dtype=float) for w in weights)
    return ReLUNetwork(layers, tuple(np.zeros(len(w)) for w in layers))


# 12 weights, all different, no symmetry: a swapped layer or a wrong norm shows.
WITNESS = net_of([[1, 2], [-3, 0.5]], [[2, -1], [0.25, 1.5]], [[1, -2], [3, 0.5]])
WITNESS_ALPHAS = np.array([0.25, 0.75, 0.5])
FLAT = net_of([[1, 1], [1, 1]], [[1, 1], [0, 0]])  # equal weights: norms are as far apart as they get
EQUAL_ROWS = net_of([[1, 0], [0, 1]], [[1, 1], [1, 1]])  # v = 0 until a mask undoes the cancellation


@pytest.mark.parametrize(("rung", "p"), RUNGS)
@given(case=masked_networks())
@example(case=(WITNESS, WITNESS_ALPHAS))
@example(case=(EQUAL_ROWS, np.array([0.0, 0.5])))
def test_rungs_bound_the_expected_supremum(rung, p, case: Case):
    laws.law_bounds_expected_supremum(rung, *case, PAIR, p=p)


@pytest.mark.parametrize(
    ("rung", "p"), [(frobenius_bound, 2.0), (bernstein_bound, 2.0), (column_sum_bound, math.inf)]
)
@given(case=masked_networks())
def test_the_papers_rungs_and_bernstein_bound_the_expected_norm_product(rung, p, case: Case):
    laws.law_bounds_expected_norm_product(rung, *case, PAIR, p=p)


@given(case=masked_networks(relu_networks(max_depth=4)))
def test_the_papers_constant_times_the_kept_fraction_lies_between_p1_and_m(case: Case):
    """P1 <= E||v||_1 prod_j (1 - alpha_j) ||W_j|| <= M, norms by row sums: a closed form without Chernoff."""
    net, alphas = case
    laws.law_dominates(expected_path_norm, closed_column_sums, net, alphas, PAIR)
    laws.law_dominates(closed_column_sums, column_sum_bound, net, alphas, PAIR)


@given(case=masked_networks(), p=attack_norms())
def test_ladder_bounds_the_expected_supremum_and_best_is_its_smallest(case: Case, p):
    rungs = ladder(*case, PAIR, p=p)
    assert set(rungs) == ({"F", "P1", "P2", "B", "S"} if p == 2 else {"M", "P1", "B", "S"})
    for value in rungs.values():
        laws.law_bounds_expected_supremum(lambda *_, value=value: value, *case, PAIR, p=p)
    gradients.is_smallest(best_bound, ladder, *case, PAIR, p=p)


@given(case=masked_networks())
@example(case=(WITNESS, WITNESS_ALPHAS))
def test_path_rungs_are_identities_for_the_path_vector(case: Case):
    laws.law_equals_expected_path_norm(expected_path_norm, *case, PAIR)
    laws.law_squares_to_second_moment(second_moment_bound, *case, PAIR)


def test_path_rungs_agree_with_rational_enumeration():
    weights = [[[Fraction(int(4 * v), 4) for v in row] for row in w] for w in WITNESS.weights]
    first = second = Fraction(0)
    alphas = [Fraction(v) for v in WITNESS_ALPHAS]
    for bits in itertools.product((0, 1), repeat=12):
        keep = [np.array(bits[4 * j : 4 * j + 4]).reshape(2, 2) for j in range(3)]
        probability = math.prod(
            1 - alphas[j] if bit else alphas[j] for j in range(3) for bit in bits[4 * j : 4 * j + 4]
        )
        w1, w2, w3 = (np.array(w) * m for w, m in zip(weights, keep, strict=True))
        path = np.abs(w3[0] - w3[1]) @ np.abs(w2) @ np.abs(w1)
        first += probability * sum(path)
        second += probability * sum(path**2)
    p1 = Fraction(float(expected_path_norm(WITNESS, WITNESS_ALPHAS, PAIR)))
    p2 = Fraction(float(second_moment_bound(WITNESS, WITNESS_ALPHAS, PAIR)))
    slack = 1 + Fraction(laws.IDENTITY_TOLERANCE)
    assert first <= p1 <= first * slack
    assert second <= p2**2 <= second * slack**2


@pytest.mark.parametrize(
    ("rung", "share", "least"), [(expected_path_norm, 0.5, -299), (second_moment_bound, math.sqrt(0.5), -149)]
)
def test_path_rungs_are_identities_down_to_their_floor_and_bounds_below(rung, share, least):
    """One path, through the smaller of two units: its size times its probability, or the root of that."""
    for exponent in (-20, least, least - 12, 2 * least):
        path = 2.0**exponent
        net = net_of([[1, 0], [0, path]], [[0, 1], [0, 0]])
        found = float(rung(net, np.array([0.5, 0.0]), PAIR))
        assert found >= share * path
        assert (found <= share * path * (1 + 1e-12)) == (exponent >= least)


@given(case=masked_networks(relu_networks(max_depth=4)))
@example(case=(FLAT, np.array([0.5, 0.0])))
def test_our_rungs_are_never_above_the_papers(case: Case):
    laws.law_dominates(expected_path_norm, column_sum_bound, *case, PAIR)
    laws.law_dominates(second_moment_bound, frobenius_bound, *case, PAIR)
    laws.law_dominates(bernstein_bound, frobenius_bound, *case, PAIR)


@pytest.mark.parametrize("rung", MONOTONE)
@given(case=masked_networks(relu_networks()), data=st.data())
def test_rungs_fall_with_the_sparsity_of_hidden_layers(rung, case: Case, data):
    net, alphas = case
    rise = np.array([data.draw(st.floats(0, 1)) for _ in alphas[:-1]] + [0.0])
    laws.law_non_increasing(rung, net, alphas, alphas + (1 - alphas) * rise, PAIR)


@pytest.mark.parametrize("rung", MONOTONE)
def test_rungs_can_rise_with_the_sparsity_of_the_last_layer(rung):
    dense, masked_last = np.zeros(2), np.array([0.0, 0.5])
    assert rung(EQUAL_ROWS, dense, PAIR) == 0
    assert rung(EQUAL_ROWS, masked_last, PAIR) > 0


def test_the_expected_norm_itself_can_rise_with_sparsity():
    """Not a failure of the theorem, which bounds the expectation by a decreasing function of alpha.

    The two hidden units cancel, v' W = (1 - 1, ...) = 0, on the pattern with both active; with v > 0 on one
    unit and < 0 on the other, masks undo the cancellation. On a linear path, with no pattern to choose, the
    expected gradient norm rises from 0.
    """
    cancelling = [np.array([[[1.0], [1.0]]]), np.array([[[1.0, -1.0], [0.0, 0.0]]])]
    net = ReLUNetwork(tuple(w[0] for w in cancelling), (np.ones(2), np.zeros(2)))
    x = np.array([[1.0]])  # both units active, masked or not
    assert gradient_norms(net, x, np.array([PAIR]), p=2.0) == 0
    probabilities, weights = laws.all_masks(net, np.array([0.5, 0.0]))
    norms = np.abs(weights[0][:, 0, 0] - weights[0][:, 1, 0])
    assert probabilities @ norms == 0.5


def test_the_expected_supremum_itself_can_rise_with_sparsity():
    """The last layer cancels before any pattern is chosen; with equal rows the dense supremum is 0."""
    assert laws.expected_supremum(EQUAL_ROWS, np.zeros(2), PAIR, p=2.0) == 0
    assert laws.expected_supremum(EQUAL_ROWS, np.array([0.0, 0.5]), PAIR, p=2.0) > 0


@given(case=masked_networks(relu_networks(max_depth=4)))
def test_eta_is_the_relative_fall_of_its_rung(case: Case):
    laws.law_factor(frobenius_bound, eta_frobenius, *case, PAIR)
    laws.law_factor(expected_path_norm, eta_path, *case, PAIR)


@pytest.mark.parametrize(("rung", "p"), RUNGS)
@given(case=masked_networks(relu_networks()))
def test_no_sparsity_gives_a_global_constant_and_full_sparsity_zero(rung, p, case: Case):
    gradients.is_global_without_masks(rung, *case, PAIR, p=p)


@given(net=relu_networks())
@example(net=net_of([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, -1]], [[0, 0, 0], [0, 1, 1]]))  # sqrt(n) B is best
def test_dense_rungs_are_the_norm_products_and_path_norms(net):
    for p, rung in [(math.inf, expected_path_norm), (2.0, second_moment_bound)]:
        gradients.equals_dense_path_norm(rung, net, PAIR, p=p)
    dense = np.zeros(len(net.weights))
    for p in (2.0, math.inf):
        rungs = ladder(net, dense, PAIR, p=p)
        plain = min(value for name, value in rungs.items() if name != "S")
        assert lipschitz_constants(net, p=p)[PAIR] * (1 - 1e-12) <= plain


@given(net=relu_networks(width=2, classes=2, max_hidden=2), data=st.data(), p=attack_norms())
def test_every_masked_gradient_is_below_its_masked_and_its_dense_path_norm(net, data, p):
    keep = tuple(data.draw(arrays(w.shape)) for w in net.weights[:-1])
    x = data.draw(arrays((2, net.weights[0].shape[1])))
    gradients.falls_with_masks(path_norm, net, keep, x, p=p)


@given(net=relu_networks(max_depth=4), data=st.data())
def test_batches_of_sparsities_equal_one_call_each(net, data):
    alphas = np.array([[[data.draw(sparsities()) for _ in net.weights] for _ in range(2)] for _ in range(2)])
    for rung in {rung for rung, _ in RUNGS}:
        batch = rung(net, alphas, PAIR)
        assert batch.shape == (2, 2)
        for index in np.ndindex(2, 2):
            np.testing.assert_allclose(batch[index], rung(net, alphas[index], PAIR), rtol=1e-13)
    alphas[..., -1] = 0.0
    assert eta_path(alphas).shape == eta_frobenius(alphas).shape == (2, 2)


@pytest.mark.usefixtures("unchecked")
@given(net=relu_networks(max_depth=3), data=st.data(), kind=st.sampled_from([np.float32, np.float16]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_sparsities_of_few_digits_are_rounded_no_further(net, data, kind):
    # In their own type 1 - alpha and its root would be rounded, and the bound with them.
    alphas = np.array([data.draw(sparsities()) for _ in net.weights], dtype=kind)
    for rung in {rung for rung, _ in RUNGS}:
        assert rung(net, alphas, PAIR) == rung(net, alphas.astype(np.float64), PAIR)
    x, y = np.ones((1, net.weights[0].shape[1])), np.array([0])
    for value in OF_SPARSITIES:
        np.testing.assert_array_equal(value(net, x, y, alphas), value(net, x, y, alphas.astype(np.float64)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("alpha", "kind"), [(3e-4, np.float16), (2.0**-25, np.float32)])
def test_a_radius_bound_of_sparsities_of_few_digits_is_no_smaller_than_the_radius(alpha, kind):
    """The margin 2 m_2 + m_1 is its own slope: the radius is R unless both are cut, R (1 - alpha^2)."""
    net, x, alphas = net_of([[-1], [2]]), np.ones((1, 1)), np.array([[alpha]], dtype=kind)
    rounded = Fraction(float(alphas[0, 0]))
    joined = path_probability(net, x[0], alphas, PAIR)[0]
    assert Fraction(joined) >= 1 - rounded**2
    upper = expected_radius_upper_bound(net, x, np.array([1]), alphas, p=2.0, domain_radius=0.1)[0, 0]
    assert Fraction(upper) >= Fraction(0.1) * (1 - rounded**2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("alphas", [[0.5, 0.0], 0.5, None])
def test_sparsities_that_are_no_array_are_named(alphas):
    net = ReLUNetwork((np.eye(2), np.eye(2)), (np.zeros(2), np.zeros(2)))
    for rung in {rung for rung, _ in RUNGS}:
        with pytest.raises(InvalidInput, match="alphas is"):
            rung(net, alphas, PAIR)
    with pytest.raises(InvalidInput, match="alphas is"):
        expected_margin_bound(net, np.ones((1, 2)), alphas, PAIR)


@given(case=masked_networks(relu_networks()))
def test_swapping_the_pair_changes_nothing(case: Case):
    for rung in {rung for rung, _ in RUNGS}:
        gradients.ignores_order(rung, *case, PAIR)


@pytest.mark.parametrize("rung", dict.fromkeys(rung for rung, _ in RUNGS))
def test_extreme_scales_never_give_nan_or_too_little(rung):
    half = np.array([0.5, 0.5])
    assert rung(net_of([[1e200]], [[1e200], [0.0]]), half, PAIR) == math.inf
    assert rung(net_of([[1e-200]], [[1e-200], [0.0]]), half, PAIR) == 5e-324
    assert rung(net_of([[0.0]], [[1e300], [-1e300]]), half, PAIR) == 0
    balanced = rung(net_of([[1e-300]], [[1e300], [0.0]]), half, PAIR)
    np.testing.assert_allclose(balanced, rung(net_of([[1.0]], [[1.0], [0.0]]), half, PAIR), rtol=1e-12)


def extra_keep(net, alphas, pair):
    return expected_path_norm(net, alphas, pair) * (1 - alphas[0])


def reversed_layers(rung):
    return lambda net, alphas, pair: rung(net, alphas[::-1].copy(), pair)


def frobenius_without_root(net, alphas, pair):
    dense = frobenius_bound(net, np.zeros_like(alphas), pair)
    return dense * np.prod(1 - alphas[:-1])


def first_moment_for_second(net, alphas, pair):
    """P2 without its diagonal correction: the norm of the expected path vector."""
    keep = np.prod(1 - alphas[:-1])
    return second_moment_bound(net, np.append(np.zeros(len(alphas) - 1), alphas[-1]), pair) * keep


def largest_mean_row_sum(net, alphas, pair):
    """M with the expectation moved inside the maximum."""
    return column_sum_bound(net, np.append(np.zeros(len(alphas) - 1), alphas[-1]), pair) * (1 - alphas[0])


def bernstein_without_variance(net, alphas, pair):
    dense = bernstein_bound(net, np.zeros_like(alphas), pair)
    return dense * np.prod(1 - alphas[:-1])


@pytest.mark.parametrize(
    ("broken", "p"),
    [
        (frobenius_without_root, 2.0),
        (first_moment_for_second, 2.0),
        (bernstein_without_variance, 2.0),
        (second_moment_bound, math.inf),  # right formula, wrong dual norm
        (frobenius_bound, math.inf),
        (bernstein_bound, math.inf),
    ],
)
def test_the_bound_law_rejects_broken_formulas(broken, p):
    net = FLAT if p == 2 else net_of([[1, 1]], [[1], [0]])
    alphas = np.array([0.9 if net is FLAT else 0.0, 0.0])
    with pytest.raises(AssertionError):
        laws.law_bounds_expected_supremum(broken, net, alphas, PAIR, p=p)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9])
def test_bernstein_covers_the_deviation_of_large_flat_layers_and_its_law_rejects_the_mean(alpha):
    flat = hadamard(64).astype(float)
    laws.law_bounds_sampled_spectral_norms(bernstein_bound, flat, alpha)
    with pytest.raises(AssertionError):
        laws.law_bounds_sampled_spectral_norms(bernstein_without_variance, flat, alpha)


def test_the_norm_product_law_rejects_an_expectation_inside_the_maximum():
    """That formula does bound E sup ||J||_1 (it is never below P1), but not the expected norm product."""
    alphas = np.array([0.9, 0.0])
    laws.law_dominates(expected_path_norm, largest_mean_row_sum, FLAT, alphas, PAIR)
    with pytest.raises(AssertionError):
        laws.law_bounds_expected_norm_product(largest_mean_row_sum, FLAT, alphas, PAIR, p=math.inf)


@pytest.mark.parametrize("broken", [extra_keep, reversed_layers(expected_path_norm), frobenius_bound])
def test_the_path_norm_law_rejects_broken_formulas(broken):
    with pytest.raises(AssertionError):
        laws.law_equals_expected_path_norm(broken, WITNESS, WITNESS_ALPHAS, PAIR)


@pytest.mark.parametrize(
    "broken", [first_moment_for_second, reversed_layers(second_moment_bound), frobenius_bound]
)
def test_the_second_moment_law_rejects_broken_formulas(broken):
    with pytest.raises(AssertionError):
        laws.law_squares_to_second_moment(broken, WITNESS, WITNESS_ALPHAS, PAIR)


def test_the_factor_dominance_and_monotonicity_laws_reject_broken_formulas():
    for rung, wrong in [(frobenius_bound, eta_path), (expected_path_norm, eta_frobenius)]:
        with pytest.raises(AssertionError):
            laws.law_factor(rung, wrong, WITNESS, WITNESS_ALPHAS, PAIR)
    with pytest.raises(AssertionError):
        laws.law_dominates(frobenius_bound, second_moment_bound, WITNESS, WITNESS_ALPHAS, PAIR)
    low, high = np.zeros(3), np.array([0.01, 0.0, 0.0])
    with pytest.raises(AssertionError):
        laws.law_non_increasing(bernstein_bound, net_of(*[np.eye(9)] * 3), low, high, PAIR)


@given(net=relu_networks(), data=st.data())
def test_any_theta_gives_a_bound_so_an_early_stop_only_loosens(net, data):
    alpha = data.draw(sparsities(edges=False))
    assume(len(net.weights) > 1)
    alphas = np.append(np.full(len(net.weights) - 1, alpha), 0.0)
    stopped = data.draw(st.floats(-3, 10))
    best = column_sum_bound(net, alphas, PAIR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "fminbound", lambda f, *_, **__: (stopped, f(stopped)))
        assert column_sum_bound(net, alphas, PAIR) >= best * (1 - laws.CHERNOFF_TOLERANCE)


def test_chernoff_is_exact_without_masks_and_for_one_unit():
    net = net_of([[1, -2], [3, 0.5]], [[1, 0], [0, 0]])
    assert column_sum_bound(net, np.zeros(2), PAIR) == pytest.approx(3.5, rel=1e-13)
    one_unit = net_of([[1, -2]], [[1], [0]])
    assert column_sum_bound(one_unit, np.array([0.75, 0.0]), PAIR) == pytest.approx(0.75, rel=1e-13)


def test_monte_carlo_estimates_the_enumerated_expectation_from_below():
    x = np.array([[1.0, 0.5], [-0.5, 2.0], [1.0, -1.0]])
    probabilities, weights = laws.all_masks(WITNESS, WITNESS_ALPHAS)
    for p in (2.0, math.inf):
        samples = monte_carlo(WITNESS, x, WITNESS_ALPHAS, PAIR, p=p, masks=4000, rng=np.random.default_rng(0))
        truth = probabilities @ np.array(
            [
                gradient_norms(
                    ReLUNetwork(tuple(w[k] for w in weights), WITNESS.biases), x, np.array([PAIR]), p=p
                ).max()
                for k in range(len(probabilities))
            ]
        )
        error = samples.std() / math.sqrt(len(samples))
        assert abs(samples.mean() - truth) <= STANDARD_ERRORS * error
        assert truth <= laws.expected_supremum(WITNESS, WITNESS_ALPHAS, PAIR, p=p)


def test_monte_carlo_does_not_depend_on_the_chunk_size(monkeypatch):
    def draw():
        rng = np.random.default_rng(7)
        return monte_carlo(WITNESS, np.ones((2, 2)), WITNESS_ALPHAS, PAIR, p=2.0, masks=50, rng=rng)

    whole = draw()
    monkeypatch.setattr(masks, "CHUNK_BYTES", 3000)
    np.testing.assert_array_equal(draw(), whole)
    assert len(set(whole)) > 5  # else the comparison says little


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("alphas", "pair", "message"),
    [
        ([0.5, 0.5], PAIR, "one per layer"),
        ([0.5, 0.5, 1.5], PAIR, "outside"),
        ([0.5, math.nan, 0.5], PAIR, "outside"),
        ([0.5, 0.5, 0.5], (1, 1), "two different classes"),
        ([0.5, 0.5, 0.5], (0, 2), "two different classes"),
        ([0.5, 0.5, 0.5], (0, 1, 1), "two different classes"),
        ([0.5, 0.5, 0.5], (0.0, 1.0), "two different classes"),
        ([0.5, 0.5j, 0.5], PAIR, "real numbers"),
    ],
)
def test_illegal_calls_name_the_argument(alphas, pair, message):
    for rung, _ in RUNGS:
        with pytest.raises(InvalidInput, match=message):
            rung(WITNESS, np.array(alphas), pair)


def test_illegal_norms_masks_and_last_layers_are_named():
    with pytest.raises(InvalidInput, match="p is 1"):
        ladder(WITNESS, WITNESS_ALPHAS, PAIR, p=1.0)
    with pytest.raises(InvalidInput, match="masks is 0"):
        monte_carlo(
            WITNESS, np.ones((1, 2)), WITNESS_ALPHAS, PAIR, p=2.0, masks=0, rng=np.random.default_rng(0)
        )
    for eta in (eta_frobenius, eta_path):
        with pytest.raises(InvalidInput, match="masks the last layer"):
            eta(WITNESS_ALPHAS)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_no_sparsities_have_no_bounds(p):
    none = np.zeros((0, 3))
    assert {value.shape for value in ladder(WITNESS, none, PAIR, p=p).values()} == {(0,)}
    assert best_active_bound(WITNESS, none, PAIR, (1, 1), p=p).shape == (0,)


def test_etas_of_tiny_sparsities_do_not_cancel():
    tiny = np.array([[1e-17, 1e-17, 0.0], [1e-12, 0.0, 0.0], [1.0, 0.5, 0.0]])
    np.testing.assert_allclose(eta_frobenius(tiny), [1e-17, 5e-13, 1.0], rtol=1e-11)
    np.testing.assert_allclose(eta_path(tiny), [2e-17, 1e-12, 1.0], rtol=1e-11)


def test_a_tail_is_not_zero_where_rows_differ_below_their_range():
    rows = np.array([[1e160, 1e-165], [1e160, 0.0]])
    net = ReLUNetwork((np.eye(2), rows), (np.zeros(2), np.zeros(2)))
    assert high_probability_bound(net, np.zeros(2), (0, 1), p=2.0, delta=0.1) >= 1e-165
    equal = ReLUNetwork((np.eye(2), rows[[0, 0]]), (np.zeros(2), np.zeros(2)))
    assert high_probability_bound(equal, np.zeros(2), (0, 1), p=2.0, delta=0.1) == 0
