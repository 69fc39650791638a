"""Claims about curves: rises, falls, gains and their absence (C1 to C4 and C6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import root_scalar
from statsmodels.stats.power import TTestPower

from empirical.claims.verdicts import (
    ALIKE,
    FEWEST_SEEDS,
    GAIN,
    LEVEL,
    MARGIN,
    OPTIMUM,
    Curves,
    Measure,
    Shares,
    Verdict,
    bootstrap,
    gains,
    percentiles,
    resamples,
    share_of_dense,
    spread,
    t_interval,
    verdict_on,
)

# The probability with which an effect that is said to be detectable would be found; notes say "80 %".
POWER = 0.8
FEWEST = 3  # sparsities, 0 among them, of a curve that may rise and fall
QUADRATURE = 4000  # equally likely spreads
NO_TEST = "a paired test needs 2 seeds and a sparsity above 0 at which their networks can be compared"


def trend(curves: Curves, family: str, measure: Measure) -> Verdict:
    """C1: the mean over the seeds of the slope of each one's gain over sparsity, from 0 at sparsity 0 on.

    Where it decides nothing, the slope that it would show with a probability of 80 %, if the seeds differ.
    """
    shares, label = share_of_dense(curves, family, measure), measure[0]
    found = shares.values - 1
    seeds = len(found)
    if seeds < 2 or found.shape[1] < FEWEST:
        note = f"a trend needs 2 seeds and {FEWEST} sparsities before collapse{shares.left_out}"
        return verdict_on("C1", family, label, "inconclusive", seeds=seeds, note=note)
    alphas = found.columns.to_numpy(dtype=float)
    places = alphas - alphas.mean()
    slopes = found.to_numpy() @ places / (places @ places)
    mean, width = slopes.mean(), float(spread(slopes))
    low, high = t_interval(slopes)
    verdict = "supported" if low > 0 else "refuted" if high < 0 else "inconclusive"
    note = f"before collapse: up to sparsity {alphas.max():g}{shares.left_out}"
    if np.isnan(width):
        note += f"; {ALIKE}"
    elif verdict == "inconclusive":
        note += f"; 80 % power for a slope of {detectable(width, seeds, LEVEL / 2):.2g}"
    return verdict_on(
        "C1",
        family,
        label,
        verdict,
        effect=mean,
        interval=(low, high),
        what="slope of the relative gain over sparsity",
        test="t-test of the seeds' slopes",
        p_value=2 * float(stats.t.sf(abs(mean) * np.sqrt(seeds) / width, seeds - 1)),
        seeds=seeds,
        note=note,
    )


def detectable(spread: float, seeds: int, alpha: float) -> float:
    """The effect that a one-sided test at ``alpha`` would show with a probability of 80 %."""
    size = TTestPower().solve_power(nobs=seeds, alpha=alpha, power=POWER, alternative="larger")
    return float(size * spread)


def countable(spread: float, seeds: int, alpha: float, *, least: float = MARGIN) -> float:
    """The effect that such a test would show with a probability of 80 %, and as no less than ``least``.

    The seeds' mean and their spread are independent; the chance is averaged over the law of the latter.
    """
    places = (np.arange(QUADRATURE) + 0.5) / QUADRATURE
    found = spread * np.sqrt(stats.chi2.ppf(places, seeds - 1) / (seeds - 1))
    needed = np.maximum(least, stats.t.ppf(1 - alpha, seeds - 1) * found / np.sqrt(seeds))
    error = spread / np.sqrt(seeds)

    def missing(effect: float) -> float:
        return POWER - float(stats.norm.sf((needed - effect) / error).mean())

    return root_scalar(missing, bracket=(0.0, float(needed.max() + 9 * error)), xtol=1e-6 * error).root


@dataclass(frozen=True)
class BestGain:
    """One sparsity's gain, interval and p-value; the latter two allow for having tried all sparsities.

    That with the largest mean gain, among the significant ones if there are any. ``highest`` is the largest
    upper limit of any sparsity; ``doubtful`` the sparsity of the largest spread among those whose limit
    reaches the margin, and that spread, or None. At the sparsities ``same`` the seeds do not differ: there is
    no test there, and no limit.
    """

    sparsity: float
    gain: float
    low: float
    high: float
    highest: float
    p_value: float
    doubtful: tuple[float, float] | None
    same: tuple[float, ...]
    seeds: int
    tried: int

    @property
    def significant(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    @property
    def counts(self) -> bool:
        """Whether the gain is significant and no smaller than the margin."""
        return self.significant and self.gain >= MARGIN

    @property
    def alike(self) -> str:
        """Where nothing can be tested."""
        return f"{ALIKE} at {', '.join(f'{alpha:g}' for alpha in self.same)}"

    @property
    def doubt(self) -> str:
        """Why it decides nothing: equal seeds, a gain that may reach the margin, or too few to show one."""
        if self.same:
            return self.alike
        if self.doubtful is None:
            return f"no sparsity gains {MARGIN:.0%}"
        if self.significant:
            return f"a gain; whether of {MARGIN:.0%} is open"
        sparsity, width = self.doubtful
        gain = countable(width, self.seeds, LEVEL / (2 * self.tried))
        return f"80 % power for a gain of {gain:.1%} at {sparsity:g}"


def best_gain(found: pd.DataFrame) -> BestGain:
    """Paired t statistics per sparsity, with Bonferroni's correction for having tried them all.

    The p-value is for a gain, twice the one-sided one: below LEVEL exactly where the interval lies above 0.
    """
    count, tried = found.shape
    mean, width = found.mean(), pd.Series(spread(found.to_numpy()), found.columns)
    error = width / np.sqrt(count)
    reach = stats.t.ppf(1 - LEVEL / (2 * tried), count - 1) * error
    chances = np.nan_to_num(stats.t.sf(mean / error, count - 1), nan=1.0)
    significant = mean - reach > 0
    best = int(mean.where(significant | ~significant.any(), -np.inf).argmax())
    doubtful = width[mean + reach >= MARGIN]
    return BestGain(
        sparsity=float(mean.index[best]),
        gain=float(mean.iloc[best]),
        low=float((mean - reach).iloc[best]),
        high=float((mean + reach).iloc[best]),
        highest=float((mean + reach).fillna(np.inf).max()),
        p_value=min(1.0, 2 * tried * float(chances[best])),
        doubtful=None if doubtful.empty else (float(doubtful.idxmax()), float(doubtful.max())),
        same=tuple(map(float, width.index[width.isna()])),
        seeds=count,
        tried=tried,
    )


def _no_gain(shares: Shares) -> bool:
    """Whether every sparsity's simultaneous upper limit of the gain lies below the margin."""
    found = gains(shares.most)
    return shares.complete and len(found) > 1 and not found.empty and best_gain(found).highest < MARGIN


def _judged(shares: Shares, *, none: bool) -> pd.DataFrame:
    """The gains to tell of: those that no cap touches; the others where they alone show that none counts."""
    found = gains(shares.values)
    return gains(shares.most) if none and found.empty else found


def no_improvement(curves: Curves, family: str, measure: Measure) -> Verdict:
    """C2: every sparsity's simultaneous upper limit of the gain must lie below the margin."""
    return _on_gain(curves, family, measure, claim="C2", pruning="magnitude", denied=True)


def some_improvement(
    curves: Curves, family: str, measure: Measure, *, claim: str = "C3", pruning: str = "magnitude"
) -> Verdict:
    """C3, C6: paired tests of a gain at every sparsity, with Bonferroni's correction."""
    return _on_gain(curves, family, measure, claim=claim, pruning=pruning, denied=False)


def _on_gain(
    curves: Curves, family: str, measure: Measure, *, claim: str, pruning: str, denied: bool
) -> Verdict:
    """The verdict on a claim that some sparsity gains, or, ``denied``, that none does."""
    shares, label = share_of_dense(curves, family, measure, pruning=pruning), measure[0]
    none = _no_gain(shares)
    found = _judged(shares, none=none)
    if len(found) < 2 or found.empty:
        note = NO_TEST + shares.left_out
        return verdict_on(claim, family, label, "inconclusive", seeds=len(found), note=note)
    best = best_gain(found)
    notes = [f"at sparsity {best.sparsity:g}", *(["p is for a gain"] if denied else [])]
    if none:
        verdict = "supported" if denied else "refuted"
        notes += [] if denied else [f"no sparsity gains {MARGIN:.0%}"]
    elif best.counts:
        verdict = "refuted" if denied else "supported"
    else:
        verdict = "inconclusive"
        notes.append(best.doubt)
    limits = f"paired t, Bonferroni limits all below +{MARGIN:.0%}"
    return verdict_on(
        claim,
        family,
        label,
        verdict,
        effect=best.gain,
        interval=(best.low, best.high),
        what=GAIN,
        test=limits if denied else "paired t per sparsity, Bonferroni",
        p_value=best.p_value,
        seeds=len(found),
        note="; ".join(notes) + shares.left_out,
    )


def falls_again(
    curves: Curves, family: str, measure: Measure, *, claim: str = "C4", pruning: str = "magnitude"
) -> Verdict:
    """C4, C6: bootstrap over seeds of the best sparsity, and of the fall from there to the last one.

    Best is where most is left of what the equally trained dense network has: a rise of both is training.
    The best of many sparsities lies above the first and the last by chance alone, in every resample too; so
    the rise and the fall must also be significant by the simultaneous intervals of the sparsities between.
    ``p_value`` is the rise's; the note has the fall's where it alone is in the way. No interval is
    told of fewer than 5 seeds: two have three resamples.
    """
    shares, label = share_of_dense(curves, family, measure, pruning=pruning), measure[0]
    never = _never_rises(shares)
    told = shares.most if never and shares.values.shape[1] < FEWEST else shares.values
    grid, draws = told.columns.to_numpy(), told.to_numpy()
    if len(draws) < 2 or len(grid) < FEWEST or grid[0] != 0:
        note = f"an optimum needs 2 seeds and {FEWEST} sparsities before collapse, 0 among them; there are "
        note += f"{len(draws)} and {len(grid)}{shares.left_out}"
        return verdict_on(claim, family, label, "inconclusive", seeds=len(draws), note=note)
    drawn, chances = resamples(len(draws))
    means = drawn @ draws
    low, high = percentiles(grid[means.argmax(axis=1)], chances)
    falls = percentiles(means[:, -1] / means.max(axis=1) - 1, chances)
    rise, drop = (best_gain(told.iloc[:, 1:-1].sub(told.iloc[:, end], axis=0)) for end in (0, -1))
    inside = grid[0] < low and high < grid[-1]
    verdict = "supported" if inside and rise.significant and falls[1] < -MARGIN else "inconclusive"
    mean = draws.mean(axis=0)
    reach = f" [{falls[0]:+.0%}, {falls[1]:+.0%}]" if len(draws) >= FEWEST_SEEDS else ""
    fall = f"{mean[-1] / mean.max() - 1:+.0%}{reach} at {grid[-1]:g}"
    note = f"then {fall}"
    if verdict == "supported" and not drop.significant:
        verdict, note = "inconclusive", f"{note}, p = {drop.p_value:.2g} for a fall"
    elif verdict == "inconclusive" and rise.same:
        note += f"; {rise.alike}"
    elif verdict == "inconclusive" and inside and rise.significant and falls[0] < -MARGIN <= falls[1]:
        note += f"; whether the fall is {MARGIN:.0%} is open"
    if never:
        verdict, note = (
            "refuted",
            f"no rise before the fall of {fall}" if falls[1] < 0 else f"no rise; {note}",
        )
    elif low == grid[-1]:
        note = "best at the last sparsity before collapse: no fall seen"
    if not reach:
        note += f"; an interval needs {FEWEST_SEEDS} seeds"
    return verdict_on(
        claim,
        family,
        label,
        verdict,
        effect=float(grid[mean.argmax()]),
        interval=(low, high) if reach else (np.nan, np.nan),
        what=OPTIMUM,
        test=f"paired t for a rise and for a fall, Bonferroni; {bootstrap(len(draws))}",
        p_value=rise.p_value,
        seeds=len(draws),
        note=note + shares.left_out,
    )


def _never_rises(shares: Shares) -> bool:
    """Whether sparsity 0 is best in all but 2.5 % of the resamples, and no rise from there may reach 5 %."""
    most = shares.most
    if not shares.complete or len(most) < 2 or most.shape[1] < FEWEST or most.columns[0] != 0:
        return False
    drawn, chances = resamples(len(most))
    _, last = percentiles(most.columns.to_numpy()[(drawn @ most.to_numpy()).argmax(axis=1)], chances)
    rises = best_gain(most.iloc[:, 1:].sub(most.iloc[:, 0], axis=0))
    return bool(last == 0 and rises.highest < MARGIN)
