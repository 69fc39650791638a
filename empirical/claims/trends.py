"""Claims about curves: rises, falls, gains and their absence (C1 to C4 and C6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray as Array
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.power import TTestPower

from empirical.claims.verdicts import (
    LEVEL,
    MARGIN,
    RESAMPLES,
    Measure,
    Verdict,
    gains_over_dense,
    share_of_dense,
    verdict_on,
)

# The probability with which an effect that is said to be detectable would be found; notes say "80 %".
POWER = 0.8
NO_TEST = "a paired test needs 2 seeds and a sparsity before collapse"


def trend(table: pd.DataFrame, family: str, measure: Measure) -> Verdict:
    """C1: slope of the gain over sparsity, seed effects, errors clustered by seed.

    Where it decides nothing, the slope that it would show with a probability of 80 %, to first order.
    """
    gains = gains_over_dense(table, family, measure)
    seeds, label = len(gains), measure[0]
    if seeds < 2 or gains.shape[1] < 3:
        note = "a trend needs 2 seeds and 3 sparsities above 0 before collapse"
        return verdict_on("C1", family, label, "inconclusive", seeds=seeds, note=note)
    long = gains.reset_index().melt(id_vars="seed", var_name="sparsity", value_name="gain").astype(float)
    design = pd.get_dummies(long["seed"], dtype=float).assign(sparsity=long["sparsity"])
    fit = OLS(long["gain"], design).fit(cov_type="cluster", cov_kwds={"groups": long["seed"]}, use_t=True)
    low, high = fit.conf_int(LEVEL).loc["sparsity"]
    verdict = "supported" if low > 0 else "refuted" if high < 0 else "inconclusive"
    note = f"before collapse: up to sparsity {gains.columns.max():g}"
    if verdict == "inconclusive":
        reach = stats.t.ppf([1 - LEVEL / 2, POWER], seeds - 1).sum() * fit.bse["sparsity"]
        note += f"; 80 % power for a slope of {reach:.2g}"
    return verdict_on(
        "C1",
        family,
        label,
        verdict,
        effect=fit.params["sparsity"],
        interval=(low, high),
        what="slope of the relative gain over sparsity",
        test="OLS, seed effects, errors clustered by seed",
        p_value=fit.pvalues["sparsity"],
        seeds=seeds,
        note=note,
    )


@dataclass(frozen=True)
class BestGain:
    """One sparsity's gain, interval and test; the latter two allow for having tried all sparsities.

    That with the largest mean gain, among the significant ones if there are any. ``highest`` is the largest
    upper limit of any sparsity.
    """

    sparsity: float
    gain: float
    low: float
    high: float
    highest: float
    p_value: float
    spread: float
    seeds: int
    tried: int

    @property
    def detectable(self) -> float:
        """The gain that this many seeds would show with a probability of 80 %."""
        size = TTestPower().solve_power(
            nobs=self.seeds, alpha=LEVEL / self.tried, power=POWER, alternative="larger"
        )
        return float(size * self.spread)

    @property
    def counts(self) -> bool:
        """Whether the gain is significant and no smaller than the margin."""
        return self.p_value < LEVEL and self.gain >= MARGIN

    @property
    def doubt(self) -> str:
        """Why it decides nothing: too few seeds for a gain to show, or a gain that may reach the margin."""
        if self.p_value < LEVEL:
            return f"a gain; whether of {MARGIN:.0%} is open"
        return f"80 % power for a gain of {self.detectable:.1%}"


def best_gain(gains: pd.DataFrame) -> BestGain:
    """Paired t statistics per sparsity: Bonferroni intervals, Holm-corrected one-sided p-values."""
    count, tried = gains.shape
    mean, error = gains.mean(), gains.std(ddof=1) / np.sqrt(count)
    reach = stats.t.ppf(1 - LEVEL / (2 * tried), count - 1) * error
    statistic = (mean / error).where(error > 0, np.sign(mean) * np.inf).fillna(0.0)
    p_values = holm(stats.t.sf(statistic, count - 1))
    significant = p_values < LEVEL
    candidates = np.where(significant | ~significant.any(), mean, -np.inf)
    best = int(candidates.argmax())
    return BestGain(
        sparsity=float(mean.index[best]),
        gain=float(mean.iloc[best]),
        low=float((mean - reach).iloc[best]),
        high=float((mean + reach).iloc[best]),
        highest=float((mean + reach).max()),
        p_value=float(p_values[best]),
        spread=float(gains.iloc[:, best].std(ddof=1)),
        seeds=count,
        tried=tried,
    )


def holm(p_values: Float[Array, " tried"]) -> Float[Array, " tried"]:
    """p-values that allow for having tried them all, step by step down from the smallest (Holm, 1979).

    As ``multipletests(method="holm")`` of statsmodels has them, which collects the whole program's garbage
    in every call: half the time of judging a table.
    """
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(stepped)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def no_improvement(table: pd.DataFrame, family: str, measure: Measure) -> Verdict:
    """C2: every sparsity's simultaneous upper limit of the gain must lie below the margin."""
    gains, label = gains_over_dense(table, family, measure), measure[0]
    if len(gains) < 2 or gains.empty:
        return verdict_on("C2", family, label, "inconclusive", seeds=len(gains), note=NO_TEST)
    best = best_gain(gains)
    note = f"at sparsity {best.sparsity:g}; p is for a gain"
    if best.highest < MARGIN:
        verdict = "supported"
    elif best.counts:
        verdict = "refuted"
    else:
        verdict = "inconclusive"
        note += f"; {best.doubt}"
    return verdict_on(
        "C2",
        family,
        label,
        verdict,
        effect=best.gain,
        interval=(best.low, best.high),
        what="best relative gain over the sparsities",
        test=f"paired t, Bonferroni limits all below +{MARGIN:.0%}",
        p_value=best.p_value,
        seeds=len(gains),
        note=note,
    )


def some_improvement(
    table: pd.DataFrame, family: str, measure: Measure, *, claim: str = "C3", pruning: str = "magnitude"
) -> Verdict:
    """C3, C6: one-sided paired tests of a gain at every sparsity, Holm-corrected."""
    gains, label = gains_over_dense(table, family, measure, pruning=pruning), measure[0]
    if len(gains) < 2 or gains.empty:
        return verdict_on(claim, family, label, "inconclusive", seeds=len(gains), note=NO_TEST)
    best = best_gain(gains)
    note = f"at sparsity {best.sparsity:g}"
    if best.highest < MARGIN:
        verdict = "refuted"
        note += f"; no sparsity gains {MARGIN:.0%}"
    elif best.counts:
        verdict = "supported"
    else:
        verdict = "inconclusive"
        note += f"; {best.doubt}"
    return verdict_on(
        claim,
        family,
        label,
        verdict,
        effect=best.gain,
        interval=(best.low, best.high),
        what="best relative gain over the sparsities",
        test="paired t per sparsity, Holm",
        p_value=best.p_value,
        seeds=len(gains),
        note=note,
    )


def falls_again(
    table: pd.DataFrame, family: str, measure: Measure, *, claim: str = "C4", pruning: str = "magnitude"
) -> Verdict:
    """C4, C6: bootstrap over seeds of the best sparsity, and of the fall from there to the last one.

    Best is where most is left of what the equally trained dense network has: a rise of both is training.
    The best of many sparsities lies above the first by chance alone, in every resample too; so the rise must
    also be significant by paired tests, Holm-corrected. ``p_value`` is theirs.
    """
    values, label = share_of_dense(table, family, measure, pruning=pruning), measure[0]
    grid, draws = values.columns.to_numpy(), values.to_numpy()
    if len(draws) < 2 or len(grid) < 3:
        note = "an optimum inside the grid needs 2 seeds, 3 sparsities and some robustness"
        return verdict_on(claim, family, label, "inconclusive", seeds=len(draws), note=note)
    rng = np.random.default_rng(0)
    means = draws[rng.integers(len(draws), size=(RESAMPLES, len(draws)))].mean(axis=1)
    best = grid[means.argmax(axis=1)]
    low, high = np.quantile(best, [LEVEL / 2, 1 - LEVEL / 2])
    falls = np.quantile(means[:, -1] / means.max(axis=1) - 1, [LEVEL / 2, 1 - LEVEL / 2])
    rise = best_gain(values.iloc[:, 1:-1].sub(values.iloc[:, 0], axis=0)).p_value
    inside = grid[0] < low and high < grid[-1]
    verdict = "supported" if inside and rise < LEVEL and falls[1] < -MARGIN else "inconclusive"
    mean = draws.mean(axis=0)
    fall = f"{mean[-1] / mean.max() - 1:+.0%} [{falls[0]:+.0%}, {falls[1]:+.0%}] at {grid[-1]:g}"
    note = f"then {fall}"
    if high == grid[0]:
        verdict, note = "refuted", f"no rise before the fall of {fall}"
    elif low == grid[-1]:
        note = "best at the last sparsity before collapse: no fall seen"
    return verdict_on(
        claim,
        family,
        label,
        verdict,
        effect=float(grid[mean.argmax()]),
        interval=(low, high),
        what="best sparsity alpha*",
        test=f"paired t for a rise, Holm; bootstrap over seeds, {RESAMPLES} resamples",
        p_value=rise,
        seeds=len(draws),
        note=note,
    )
