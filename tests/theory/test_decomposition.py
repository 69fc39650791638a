"""The decomposition of a change of the mean radius: exact, antisymmetric, blind to the scale of logits."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from theory.laws import moments as laws
from theory.relu.decomposition import Decomposition, Robustness, decompose, usable
from theory.types import InvalidInput

CAP = 4.0
SIZES = st.floats(1e-6, 1e6)


@st.composite
def robustness(draw: st.DrawFn, *, examples: int = 5) -> Robustness:
    """Radii, margins and constants; some misclassified, some without error nearby, some of constant 0."""
    radius, margin, lipschitz = (np.array([draw(SIZES) for _ in range(examples)]) for _ in range(3))
    for e in range(1, examples):
        match draw(st.sampled_from(["correct", "correct", "wrong", "constant", "huge"])):
            case "wrong":
                radius[e], margin[e] = 0.0, -margin[e]
            case "constant":
                radius[e], lipschitz[e] = math.inf, 0.0
            case "huge":
                lipschitz[e] = math.inf
            case _:
                pass
    return Robustness(radius, margin, lipschitz)


DENSE = Robustness(np.array([1.0, 2.0, 0.0]), np.array([2.0, 6.0, -1.0]), np.array([2.0, 3.0, 9.0]))


@given(pruned=robustness(), dense=robustness())
@example(pruned=replace(DENSE, radius=np.array([math.inf, 2.0, 0.0])), dense=DENSE)
def test_terms_add_up_to_the_change(pruned, dense):
    laws.law_terms_add_up(decompose, pruned, dense, cap=CAP)


@given(dense=robustness(), factor=st.floats(1e-3, 1e3))
def test_scaling_the_logits_changes_nothing(dense, factor):
    laws.law_scaling_is_not_robustness(decompose, dense, factor, cap=CAP)


def test_halving_the_constant_is_seen_as_lipschitz_and_doubling_the_margin_as_margin():
    doubled = replace(DENSE, radius=2 * DENSE.radius)
    smoother = decompose(replace(doubled, lipschitz=DENSE.lipschitz / 2), DENSE, cap=CAP)
    wider = decompose(replace(doubled, margin=2 * DENSE.margin), DENSE, cap=CAP)
    neither = decompose(doubled, DENSE, cap=CAP)
    two = pytest.approx(math.log(2), rel=1e-12)
    assert (smoother.lipschitz, smoother.through) == (two, "lipschitz")
    assert (wider.margin, wider.through) == (two, "margin")
    assert (neither.remainder, neither.through) == (two, "remainder")
    assert smoother.margin == wider.lipschitz == neither.margin == 0
    assert smoother.remainder == pytest.approx(0, abs=1e-12)


def test_no_change_is_carried_by_no_term():
    scaled = replace(DENSE, margin=2 * DENSE.margin, lipschitz=2 * DENSE.lipschitz)
    for pruned, dense in ((scaled, DENSE), (DENSE, scaled), (DENSE, DENSE)):
        found = decompose(pruned, dense, cap=CAP)
        assert (found.change, found.through) == (0, "remainder")


def test_a_loss_is_charged_to_the_term_that_fell():
    worse = replace(DENSE, radius=DENSE.radius / 4, margin=DENSE.margin / 8, lipschitz=DENSE.lipschitz / 2)
    assert decompose(worse, DENSE, cap=CAP).through == "margin"


def test_examples_without_a_logarithm_stay_out_of_the_means_but_in_the_radius():
    assert usable(DENSE).tolist() == [True, True, False]
    flat = replace(DENSE, lipschitz=np.array([0.0, 3.0, 9.0]), radius=np.array([math.inf, 2.0, 0.0]))
    found = decompose(flat, DENSE, cap=CAP)
    assert found.used == (1, 1)
    assert found.change == pytest.approx(math.log(6 / 3))  # the infinite radius counts as the cap, 4
    assert decompose(flat, DENSE, cap=CAP, paired=False).used == (1, 2)


def arithmetic_means(pruned, dense, *, cap) -> Decomposition:
    """Means of the ratio m / L in the place of the radius: the terms add up to something else."""
    found = decompose(pruned, dense, cap=cap)
    ratio = [math.log((n.margin[usable(n)] / n.lipschitz[usable(n)]).mean()) for n in (pruned, dense)]
    return replace(found, change=ratio[0] - ratio[1])


def swapped_sign(pruned, dense, *, cap) -> Decomposition:
    found = decompose(pruned, dense, cap=cap)
    return replace(found, lipschitz=-found.lipschitz)


def carried_by_the_margin(pruned, dense, *, cap) -> Decomposition:
    return replace(decompose(pruned, dense, cap=cap), through="margin")


def test_radii_of_the_largest_floats_have_a_mean():
    ones = np.ones(4)
    found = decompose(
        Robustness(np.full(4, 1e308), ones, ones), Robustness(np.full(4, 5e307), ones, ones), cap=1.5e308
    )
    assert found.change == found.remainder == pytest.approx(math.log(2), rel=1e-9)


def test_laws_reject_broken_formulas():
    other = Robustness(np.array([1.5, 0.5, 1.0]), np.array([3.0, 1.0, 1.0]), np.array([1.0, 4.0, 2.0]))
    for broken in (arithmetic_means, swapped_sign):
        with pytest.raises(AssertionError):
            laws.law_terms_add_up(broken, other, DENSE, cap=CAP)
    for broken in (swapped_sign, carried_by_the_margin):
        with pytest.raises(AssertionError):
            laws.law_scaling_is_not_robustness(broken, DENSE, 2.0, cap=CAP)


@pytest.mark.usefixtures("unchecked")
def test_illegal_calls_name_the_argument():
    wrong = replace(DENSE, margin=-np.ones(3), radius=np.zeros(3))
    with pytest.raises(InvalidInput, match="cap is inf"):
        decompose(DENSE, DENSE, cap=math.inf)
    with pytest.raises(InvalidInput, match="pruned has 0 usable"):
        decompose(wrong, DENSE, cap=CAP)
    with pytest.raises(InvalidInput, match="pairing needs"):
        decompose(Robustness(np.ones(2), np.ones(2), np.ones(2)), DENSE, cap=CAP)
    with pytest.raises(InvalidInput, match="radius has a NaN or negative"):
        replace(DENSE, radius=-DENSE.radius)
    with pytest.raises(InvalidInput, match="lipschitz has shape"):
        replace(DENSE, lipschitz=np.ones(2))
    with pytest.raises(InvalidInput, match="margin"):
        replace(DENSE, margin=np.array([math.inf, 1.0, 1.0]))
