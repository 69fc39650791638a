"""The universal ceiling against its linear program, and against classifiers that approach it."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from theory.ceiling import (
    blockwise_ceiling,
    ceiling_in_blocks,
    mean_radius_ceiling,
    opponent_distances,
    robust_accuracy_ceiling,
    universal_ceiling,
)
from theory.laws import linear as laws
from theory.laws.strategies import attack_norms, labelled_points, linear_problems
from theory.linear import mean_radius
from theory.types import BinaryLinear, InvalidInput

NORMS = pytest.mark.parametrize("p", [2.0, math.inf])


ODD_CYCLE = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]]), np.arange(3)  # needs the half-integral dual
CROWD = np.array([[0.0], [0.1], [0.2], [0.3], [9.0]]), np.array([0, 0, 0, 0, 1])  # no perfect matching


@given(labelled_points(), attack_norms())
@example(ODD_CYCLE, 2.0)
@example(CROWD, math.inf)
def test_ceiling_solves_its_linear_program(data, p):
    laws.solves_pair_program(universal_ceiling, *data, p=p)


@given(labelled_points(), attack_norms(), st.sampled_from([2.0**-400, 2.0**-3, 2.0**400]))
def test_ceiling_scales_with_the_data(data, p, factor):
    laws.scales_with_data(universal_ceiling, *data, p=p, factor=factor)


@given(labelled_points(), attack_norms(), st.integers(2, 10))
@example(CROWD, 2.0, 2)
@example(ODD_CYCLE, 2.0, 2)
def test_blocks_bound_the_ceiling_and_one_block_is_it(data, p, block):
    x, y = data
    laws.relaxes(lambda x, y, *, p: blockwise_ceiling(x, y, p=p, block=block), universal_ceiling, x, y, p=p)
    assert blockwise_ceiling(x, y, p=p, block=len(y)) == universal_ceiling(x, y, p=p)


@given(labelled_points(), attack_norms(), st.integers(2, 10), st.randoms(use_true_random=False))
def test_distances_serve_every_correct_set(data, p, block, random):
    x, y = data
    whole, parts = (opponent_distances(x, y, p=p, block=size) for size in (len(y), block))
    assert sorted(i for rows in parts.rows for i in rows.tolist()) == list(range(len(y)))
    for correct in (np.ones(len(y), dtype=bool), np.array([random.random() < 0.7 for _ in y])):
        exact = mean_radius_ceiling(x, y, correct, p=p)
        assert ceiling_in_blocks(whole, correct) == pytest.approx(exact, rel=1e-12)
        assert ceiling_in_blocks(parts, correct) >= exact * (1 - 1e-12)
        assert mean_radius_ceiling(x, y, correct, p=p, block=block) >= exact * (1 - 1e-12)
    assert ceiling_in_blocks(whole, np.zeros(len(y), dtype=bool)) == 0


@NORMS
def test_ceilings_of_large_sets_are_of_blocks_and_lose_little(p):
    rng = np.random.default_rng(0)
    x, y, correct = rng.normal(size=(400, 8)), rng.integers(0, 3, size=400), rng.random(400) < 0.8
    exact, found = (mean_radius_ceiling(x, y, correct, p=p, block=block) for block in (2000, 100))
    assert exact <= found <= 1.15 * exact
    radii = np.linspace(0, exact, 5)
    exact, found = (robust_accuracy_ceiling(x, y, correct, radii, p=p, block=b) for b in (2000, 100))
    assert (exact <= found).all()
    assert (found - exact).max() < 0.3


def test_block_law_rejects_blocks_that_forget_half_and_nearest_opponents():
    for broken in (nearest_opponent, lambda x, y, *, p: blockwise_ceiling(x, y, p=p, block=2) / 2):
        with pytest.raises(AssertionError):
            laws.relaxes(broken, universal_ceiling, *CROWD, p=2.0)


@NORMS
def test_blocks_lose_little_on_a_cloud(p):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 8)), rng.integers(0, 3, size=400)
    exact, found = universal_ceiling(x, y, p=p), blockwise_ceiling(x, y, p=p, block=100)
    assert exact <= found <= 1.15 * exact


@NORMS
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_half_a_cover_of_the_double_graph_is_what_fractional_covers_cost(classes, p):
    """Odd cycles of labels, duplicated points, and a class larger than all others together."""
    rng = np.random.default_rng(classes)
    x = rng.integers(-2, 3, size=(60, 2)).astype(float)  # 25 places for 60 points
    y = np.concatenate(
        [
            np.arange(classes),
            np.where(rng.random(60 - classes) < 0.6, 0, rng.integers(0, classes, 60 - classes)),
        ]
    )
    assert (y == 0).sum() > 30
    laws.solves_pair_program(universal_ceiling, x, y, p=p)


@given(linear_problems("multiclass"), attack_norms())
def test_no_linear_classifier_passes_the_ceiling_of_its_correct_set(problem, p):
    laws.limits_every_classifier(mean_radius_ceiling, *problem, p=p)


@NORMS
def test_ceiling_is_attained_by_a_boundary_halfway_between_two_columns(p):
    x = np.array([[-1.0, 0.0], [-1.0, 5.0], [1.0, 0.0], [1.0, 5.0]])
    y = np.array([0, 0, 1, 1])
    clf = BinaryLinear(np.array([1.0, 0.0]))
    assert mean_radius(clf, x, y, p=p) == 1.0
    assert universal_ceiling(x, y, p=p) == pytest.approx(1.0, rel=1e-13)


def test_squares_of_small_distances_do_not_underflow():
    x, y = np.array([[1.0, 0.0], [1.0, 1e-200]]), np.array([0, 1])
    assert universal_ceiling(x, y, p=2.0) == pytest.approx(5e-201)
    assert universal_ceiling(1.7e308 * np.array([[1.0, 1.0], [-1.0, -1.0]]), y, p=2.0) == math.inf


FAR = np.array([[0.0, 0.0], [0.0, 1e-200], [1e200, 0.0], [1e200, 1e-200]])


def test_distances_far_below_the_coordinates_lower_no_ceiling():
    """In units of the largest coordinate 1e-200 is 0; a boundary half-way has a radius of 5e-201."""
    y, everyone = np.array([0, 1, 0, 1]), np.ones(4, dtype=bool)
    assert universal_ceiling(FAR, y, p=2.0) >= 5e-201
    assert blockwise_ceiling(FAR, y, p=2.0, block=2) >= 5e-201
    assert ceiling_in_blocks(opponent_distances(FAR, y, p=2.0), everyone) >= 5e-201
    near = np.array([True, True, False, False])
    exact = mean_radius_ceiling(FAR, y, near, p=2.0)
    assert exact == pytest.approx(2.5e-201)
    for block in (4, 2):
        assert ceiling_in_blocks(opponent_distances(FAR, y, p=2.0, block=block), near) >= exact
    twice = np.array([[0.0], [0.0], [1e200]])  # of a point that has two labels nothing is left
    assert universal_ceiling(twice[:2], y[:2], p=2.0) == 0
    both = np.array([True, True, False])
    assert ceiling_in_blocks(opponent_distances(twice, np.array([0, 1, 0]), p=2.0), both) == 0
    # Half of the smallest float is 0: at radius 0 both points may be right.
    least = np.array([[0.0], [5e-324]])
    assert robust_accuracy_ceiling(least, y[:2], everyone[:2], np.zeros(1), p=2.0) == [1.0]


def test_ceiling_of_a_crowd_is_not_a_matching():
    """One point must serve as partner of four: their distances add up, and its own radius is 0."""
    x, y = CROWD
    assert universal_ceiling(x, y, p=2.0) == pytest.approx((9 + 8.9 + 8.8 + 8.7) / 5)


def test_a_wrong_classifier_can_pass_the_ceiling_of_all_points():
    x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
    clf = BinaryLinear(np.array([1.0]), -1.5)  # wrong on the two points in the middle
    assert mean_radius(clf, x, y, p=2.0) > universal_ceiling(x, y, p=2.0)
    correct = np.array([True, False, False, True])
    assert mean_radius(clf, x, y, p=2.0) == 0.75
    assert mean_radius_ceiling(x, y, correct, p=2.0) == pytest.approx(0.75, rel=1e-13)


def test_ceiling_of_no_or_one_sided_correct_sets():
    x, y = CROWD
    assert mean_radius_ceiling(x, y, np.zeros(5, dtype=bool), p=2.0) == 0.0
    assert mean_radius_ceiling(x, y, y == 0, p=2.0) == math.inf


def nearest_opponent(x, y, *, p):
    """Half the distance to the nearest other label: true only when nearest pairs are mutual."""
    distance = np.linalg.norm(x[:, None] - x, ord=p, axis=-1)
    return float(np.where(y[:, None] == y, math.inf, distance).min(axis=1).mean() / 2)


@pytest.mark.parametrize("data", [ODD_CYCLE, CROWD])
@pytest.mark.parametrize(
    "broken",
    [
        lambda x, y, *, p: 2 * universal_ceiling(x, y, p=p),
        lambda x, y, *, p: universal_ceiling(x, y, p=p) * len(y) / (len(y) - 1),
        nearest_opponent,
    ],
)
def test_program_law_rejects_a_wrong_ceiling(broken, data):
    with pytest.raises(AssertionError):
        laws.solves_pair_program(broken, *data, p=2.0)


def test_program_law_rejects_the_wrong_norm():
    with pytest.raises(AssertionError):
        laws.solves_pair_program(lambda x, y, *, p: universal_ceiling(x, y, p=2.0), *ODD_CYCLE, p=math.inf)


def most_independent(x, y, radius, *, p):
    """The most points no two of which have different labels and a distance of at most twice the radius."""
    near = np.array([[np.linalg.norm(a - b, p) <= 2 * radius for b in x] for a in x]) & (y[:, None] != y)
    subsets = itertools.product((False, True), repeat=len(y))
    return max(sum(kept) for kept in subsets if not near[np.ix_(kept, kept)].any())


@given(st.integers(0, 2**32 - 1), attack_norms(), st.integers(2, 4))
def test_robust_accuracy_ceiling_is_the_largest_independent_set_or_its_relaxation(seed, p, classes):
    """Two classes make a bipartite graph, where the relaxation is exact; more only ever raise it."""
    random = np.random.default_rng(seed)
    x, y = random.random((7, 2)), random.integers(0, classes, 7)
    radii = np.array([0.0, 0.1, 0.2, 0.4])
    found = robust_accuracy_ceiling(x, y, np.ones(7, dtype=bool), radii, p=p) * 7
    exact = np.array([most_independent(x, y, r, p=p) for r in radii])
    for block in (2, 3, 5):
        assert (
            robust_accuracy_ceiling(x, y, np.ones(7, dtype=bool), radii, p=p, block=block) * 7 >= found
        ).all()
    assert (found >= exact).all()
    assert (np.diff(found) <= 0).all()
    assert found[0] == 7
    if classes == 2:
        assert found == pytest.approx(exact, rel=1e-15)


def test_robust_accuracy_ceiling_of_an_odd_cycle_and_of_a_correct_set(unchecked):
    x, y = ODD_CYCLE
    everyone, two = np.ones(3, dtype=bool), np.array([True, True, False])
    assert robust_accuracy_ceiling(x, y, everyone, np.array([3.0]), p=2.0).tolist() == [0.5]  # 3 halves of 3
    # The two lie 4 apart; a radius of 2 of both would meet in the middle.
    found = robust_accuracy_ceiling(x, y, two, np.array([0.0, 1.9, 2.1]), p=2.0)
    assert found.tolist() == [2 / 3, 2 / 3, 1 / 3]
    for radii in (np.array([-1.0]), np.array([math.nan]), np.array(1.0)):
        with pytest.raises(InvalidInput, match="radii has shape .* pass a list of radii >= 0"):
            robust_accuracy_ceiling(x, y, two, radii, p=2.0)
    with pytest.raises(InvalidInput, match="block is 1"):
        robust_accuracy_ceiling(x, y, two, np.array([1.0]), p=2.0, block=1)
    with pytest.raises(InvalidInput, match="one flag per point"):
        robust_accuracy_ceiling(x, y, two[:2], np.array([1.0]), p=2.0)


def test_huge_radii_bind_no_points_of_one_label():
    """Twice the radius is more than any float; a constant classifier is right on both points at any."""
    x, correct = np.array([[0.0], [1.0], [2.0]]), np.array([True, True, False])
    for r in (8.9e307, 9.5e307, 1.7e308):
        (found,) = robust_accuracy_ceiling(x, np.array([0, 0, 1]), correct, np.array([r]), p=2.0)
        assert found == 2 / 3
    # Opposite points whose distance is no float lie further apart than twice a radius that is one.
    far, both = np.array([[-1.2e308], [1.2e308]]), np.ones(2, dtype=bool)
    assert robust_accuracy_ceiling(far, np.array([0, 1]), both, np.array([1e308]), p=2.0) == [1.0]


def test_ceilings_in_blocks_ask_for_one_flag_per_point(unchecked):
    """Numbers would choose points by their places."""
    distances = opponent_distances(np.array([[0.0], [1.0], [5.0], [9.0]]), np.array([0, 1, 0, 1]), p=2.0)
    assert ceiling_in_blocks(distances, np.array([True, True, False, True])) == pytest.approx(2.5, rel=1e-13)
    for flags in (np.array([1, 1, 0, 1]), np.ones(5, dtype=bool), np.array([1.0, 1.0, 0.0, 1.0])):
        with pytest.raises(InvalidInput, match=r"correct has shape .* expected \(4,\), one flag per point"):
            ceiling_in_blocks(distances, flags)


@given(a=st.floats(-1e3, 1e3), b=st.floats(-1e3, 1e3), p=attack_norms())
@example(a=0.1257302210933933, b=-0.1321048632913019, p=math.inf)
def test_half_the_distance_of_two_points_does_not_pass_their_ceiling(a, b, p):
    """The threshold half way between them attains it, in exact arithmetic."""
    found = universal_ceiling(np.array([[a], [b]]), np.array([0, 1]), p=p)
    assert Fraction(found) >= abs(Fraction(a) - Fraction(b)) / 2
    assert found <= abs(a - b) / 2 * (1 + 1e-13) + 1e-300
