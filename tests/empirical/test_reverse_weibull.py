"""End points of maxima: the likelihood's own maximum, never below a sample, honest about poor fits."""

import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from empirical.reverse_weibull import EndPoint, end_points
from theory.types import InvalidInput


def drawn(shape: float, *, sets: int, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 3.0 - 0.5 * rng.weibull(shape, size=(sets, count))


@pytest.mark.parametrize("shape", [1.6, 3.0, 6.0])
def test_the_fit_is_scipys_best(shape):
    maxima = drawn(shape, sets=8, count=60)
    found = end_points(maxima)
    assert found.fitted.any()
    for i in np.flatnonzero(found.fitted):
        starts = [(c, maxima[i].max() + gap, c * maxima[i].std()) for c in (1.5, 4.0) for gap in (0.02, 0.3)]
        fits = [stats.weibull_max.fit(maxima[i], c, loc=at, scale=scale) for c, at, scale in starts]
        best = max(fits, key=lambda fit, i=i: stats.weibull_max.logpdf(maxima[i], *fit).sum())
        ours = found.shape[i], found.location[i], found.scale[i]
        likelihoods = [stats.weibull_max.logpdf(maxima[i], *fit).sum() for fit in (ours, best)]
        assert likelihoods[0] >= likelihoods[1] - 1e-6
        assert found.location[i] == pytest.approx(best[1], rel=1e-3)
        test = stats.kstest(maxima[i], stats.weibull_max(*ours).cdf)
        assert found.statistic[i] == pytest.approx(test.statistic, rel=1e-9)
        assert found.p_value[i] == pytest.approx(test.pvalue, rel=1e-6)


def test_the_known_end_point_is_found():
    """400 maxima of shape 3: the median of 40 estimates is within 2 % of the truth, most fits are used."""
    found = end_points(drawn(3.0, sets=40, count=400))
    assert found.fitted.mean() > 0.9
    assert np.median(found.location) == pytest.approx(3.0, rel=0.02)


def test_a_likelihood_that_rises_to_the_bound_has_no_maximum():
    """Its greatest value of shapes above 1 is at 1, and the fit there is no maximum."""
    found = end_points(np.array([[1.0, 2.0, 3.0]]))
    assert found.shape == pytest.approx(1.0)
    assert found.p_value > 0.05
    assert not found.fitted
    assert found.location == 3.0
    many = end_points(10 + drawn(1.0, sets=100, count=50))
    assert (many.shape[many.fitted] > 1 + 1e-6).all()
    assert (many.shape < 1 + 1e-6).any()


@pytest.mark.filterwarnings("error")
def test_maxima_near_the_largest_number_are_fitted_in_silence():
    maxima = drawn(3.0, sets=20, count=50) / 3 * 1.7e308
    found, wanted = end_points(maxima), end_points(maxima / 2**1000)
    both = found.fitted & wanted.fitted
    assert both.any()
    np.testing.assert_allclose(found.location[both] / 2.0**1000, wanted.location[both])


def test_poor_fits_fall_back_to_the_largest_sample():
    rng = np.random.default_rng(0)
    two_values = np.repeat([[1.0, 2.0]], 25, axis=0).reshape(1, -1)
    no_end = np.exp(rng.normal(size=(1, 50)))  # a heavy tail: no end point within twice the largest
    outlier = np.append(rng.uniform(0.9, 1.0, 49), 30.0)[None]
    for maxima in (two_values, no_end, outlier):
        found = end_points(maxima)
        assert not found.fitted.any()
        assert found.location == maxima.max()
        assert np.isfinite(found.p_value).all()


def test_a_fit_does_not_hang_on_the_others_and_few_are_held_at_once():
    maxima = drawn(2.5, sets=4000, count=6)
    maxima[::7] = drawn(1.2, sets=572, count=6, seed=1)
    tracemalloc.start()
    try:
        found = end_points(maxima)
        assert tracemalloc.get_traced_memory()[1] < 16 * maxima.nbytes + 2**25
    finally:
        tracemalloc.stop()
    for i in range(0, 4000, 97):
        alone = end_points(maxima[i : i + 1])
        for field in fields(EndPoint):
            np.testing.assert_array_equal(getattr(found, field.name)[i : i + 1], getattr(alone, field.name))


@settings(max_examples=50)
@given(
    st.lists(st.one_of(st.just(1.0), st.floats(0, 1e6)), min_size=3, max_size=30),
    st.sampled_from([1.0, 1e-300, 1e200]),
)
def test_the_location_is_never_below_a_sample_nor_absurd(values, scale):
    maxima = np.array([values]) * scale
    found = end_points(maxima)
    assert maxima.max() <= found.location[0] <= 2 * maxima.max()
    assert found.fitted[0] or found.location[0] == maxima.max()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e9]))
def test_the_location_scales_with_the_samples(seed, factor):
    maxima = drawn(2.5, sets=3, count=30, seed=seed)
    one, other = end_points(maxima), end_points(maxima * factor)
    np.testing.assert_allclose(other.location, one.location * factor, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_equal_samples_are_their_own_end_point(value):
    found = end_points(np.full((2, 10), value))
    assert found.location.tolist() == [value, value]
    assert not found.fitted.any()
    assert np.isnan(found.p_value).all()


@pytest.mark.parametrize(
    ("maxima", "message"),
    [
        (np.ones((2, 2)), "2 values per fit"),
        (np.array([[1.0, -1.0, 2.0]]), "negative value -1"),
        (np.array([[1.0, np.nan, 2.0]]), "maxima"),
    ],
)
def test_bad_maxima_are_named(maxima, message):
    with pytest.raises(InvalidInput, match=message):
        end_points(maxima)
