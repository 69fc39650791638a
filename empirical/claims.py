"""The paper's claims, judged from a results table: verdict, effect, interval and test.

The seed is the unit: a gain is (pruned - dense) / dense between networks of one seed that were trained
equally long. Verdicts are ``supported``, ``refuted`` and ``inconclusive``; "no effect" is never read off a
large p-value, but needs an interval inside the declared margin.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import statsmodels.api as sm
from jaxtyping import Float
from numpy import ndarray as Array
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

LEVEL = 0.05
# A change of less than this share of the robustness counts as none (C2, C3, C4).
MARGIN = 0.05
# A prediction holds if its mean relative error over the sparsities is below this (C9).
PREDICTION_ERROR = 0.10
# A sparsity has collapsed once this share of the dense network's accuracy is lost: what is left of such a
# network is no classifier, and its radii decide neither C1, C2 nor C3.
COLLAPSE = 0.10
RESAMPLES = 2000
NO_TEST = "a paired test needs 2 seeds and a sparsity before collapse"

Measure = tuple[str, str, str, str]  # label, quantity, norm, method
ACCURACY: Measure = ("accuracy", "accuracy", "", "clean")
STATEMENTS = {
    "C1": "Linear: l_inf robustness rises with sparsity, up to collapse",
    "C2": "Linear: l_2 robustness does not improve with sparsity",
    "C3": "ReLU: some sparsity beats the equally trained dense network",
    "C4": "ReLU: over-sparsified networks fall again",
    "C5": "Random masks: E[L] <= c (1 - eta), and every rung of the ladder",
    "C7": "Certificate <= exact <= every attack; mean radius <= universal ceiling",
    "C8": "Linear identities hold; attacks measure the exact radius",
    "C9": "Moment propagation predicts the measured radii of masked networks",
}
# The theorems behind a claim: (claim, label, checks whose names begin so).
THEOREMS = (
    ("C5", "E[L] <= every rung", ("random masks, ",)),
    ("C5", "F, P1 = c (1 - eta)", ("F = c (1 - eta)", "P1 = c (1 - eta)")),
    ("C5", "P1 <= M, P2 <= F", ("P1 <= M", "P2 <= F")),
    ("C7", "certificate <= attack", ("certificate <= attack",)),
    ("C7", "exact <= attack", ("exact <= attack",)),
    ("C7", "mean <= universal ceiling", ("universal ceiling",)),
    ("C8", "identities", ("binary mean radius", "runner-up decomposition")),
    ("C8", "attack = exact radius", ("linear radius",)),
)
LINEAR = ("linear-binary", "linear")
LINEAR_LINF: tuple[Measure, ...] = (
    ("R_inf, exact", "mean_radius", "linf", "exact"),
    ("r_inf(eps), FGS in the box", "fgs_accuracy", "linf", "fgs in the box"),
    ("r_inf(eps), FGS unclipped", "fgs_accuracy", "linf", "fgs"),
)
LINEAR_L2: tuple[Measure, ...] = (("R_2, exact", "mean_radius", "l2", "exact"),)
RELU: tuple[Measure, ...] = (
    ("R_inf, smallest FGS step", "mean_radius", "linf", "fgs"),
    ("R_inf, best attack", "mean_radius", "linf", "best"),
    ("r_inf(eps), FGS in the box", "fgs_accuracy", "linf", "fgs in the box"),
    ("r_inf(eps), FGS unclipped", "fgs_accuracy", "linf", "fgs"),
    ("r_2, DeepFool", "mean_radius", "l2", "deepfool"),
    ("R_2, best attack", "mean_radius", "l2", "best"),
)


@dataclass(frozen=True)
class Verdict:
    """One judged claim; ``effect`` with its interval [low, high] is explained by ``what``."""

    claim: str
    family: str
    measure: str
    verdict: str
    effect: float
    low: float
    high: float
    what: str
    test: str
    p_value: float
    seeds: int
    violations: int | None
    note: str


def judge(table: pd.DataFrame) -> pd.DataFrame:
    """Judge every claim the network-level rows of a table speak of; one row per claim, family and measure.

    Raises: KeyError if the table lacks a documented column.
    """
    verdicts: list[Verdict] = []
    families = [str(family) for family in table["family"].unique()]
    for family in sorted(families, key=lambda name: (name not in LINEAR, families.index(name))):
        if family in LINEAR:
            verdicts += [_trend(table, family, measure) for measure in LINEAR_LINF]
            verdicts += [_no_improvement(table, family, measure) for measure in LINEAR_L2]
            continue
        for measure in RELU:
            verdicts.append(_some_improvement(table, family, measure))
            verdicts.append(_falls_again(table, family, measure))
        verdicts += [v for norm in ("linf", "l2") for v in _predictions(table, family, norm)]
    checks = table[table["kind"] == "check"]
    for claim, label, names in THEOREMS:
        rows = checks[checks["method"].astype(str).str.startswith(names)]
        if len(rows):
            verdicts.append(_theorem(rows, claim, label))
    frame = pd.DataFrame([asdict(verdict) for verdict in verdicts])
    frame.insert(1, "statement", frame["claim"].map(STATEMENTS))
    return frame.sort_values("claim", kind="stable", ignore_index=True)


def violations(content: pa.Table) -> pd.DataFrame:
    """Every case in which a theorem failed, the largest excess first; ``example`` is NA for a mean."""
    failed = content.filter((pc.field("kind") == "check") & (pc.field("quantity") == "excess"))
    named = ["method", "norm", "dataset", "family", "pruning", "sparsity", "seed", "example", "value"]
    frame = failed.select(named).to_pandas().rename(columns={"method": "theorem", "value": "excess"})
    return frame.sort_values("excess", ascending=False, ignore_index=True)


def curve(table: pd.DataFrame, family: str, pruning: str, measure: Measure) -> pd.DataFrame:
    """One measured quantity as seeds x sparsities."""
    return _curve(table, family, pruning, measure, ["measured", "identity"])


def _curve(
    table: pd.DataFrame, family: str, pruning: str, measure: Measure, kinds: list[str]
) -> pd.DataFrame:
    _, quantity, norm, method = measure
    chosen = table[
        (table["family"] == family)
        & (table["pruning"] == pruning)
        & (table["quantity"] == quantity)
        & (table["norm"] == norm)
        & (table["method"] == method)
        & table["kind"].isin(kinds)
    ]
    return chosen.pivot_table(index="seed", columns="sparsity", values="value", observed=True)


def _gains(table: pd.DataFrame, family: str, measure: Measure) -> pd.DataFrame:
    """Relative gain of magnitude pruning over the equally trained dense network, seeds x sparsities.

    Only sparsities above 0, without collapse, at which every dense network has some robustness.
    """
    kept, reference = (curve(table, family, pruning, ACCURACY).mean() for pruning in ("magnitude", "dense"))
    pruned, dense = (curve(table, family, pruning, measure) for pruning in ("magnitude", "dense"))
    gains = (pruned - dense) / dense.where(dense > 0)
    sound = (kept >= (1 - COLLAPSE) * reference) & gains.notna().all()
    return gains[[alpha for alpha in gains.columns if alpha != 0 and sound[alpha]]]


def _verdict(
    claim: str,
    family: str,
    measure: str,
    verdict: str,
    *,
    effect: float = np.nan,
    interval: tuple[float, float] = (np.nan, np.nan),
    what: str = "",
    test: str = "",
    p_value: float = np.nan,
    seeds: int = 0,
    failures: int | None = None,
    note: str = "",
) -> Verdict:
    low, high = (float(end) for end in interval)
    return Verdict(
        claim,
        family,
        measure,
        verdict,
        float(effect),
        low,
        high,
        what,
        test,
        float(p_value),
        seeds,
        failures,
        note,
    )


def _trend(table: pd.DataFrame, family: str, measure: Measure) -> Verdict:
    """C1: slope of the gain over sparsity, seed effects, errors clustered by seed."""
    gains = _gains(table, family, measure)
    seeds, label = len(gains), measure[0]
    if seeds < 2 or gains.shape[1] < 3:
        note = "a trend needs 2 seeds and 3 sparsities above 0 before collapse"
        return _verdict("C1", family, label, "inconclusive", seeds=seeds, note=note)
    long = gains.reset_index().melt(id_vars="seed", var_name="sparsity", value_name="gain").astype(float)
    design = pd.get_dummies(long["seed"], dtype=float).assign(sparsity=long["sparsity"])
    fit = sm.OLS(long["gain"], design).fit(cov_type="cluster", cov_kwds={"groups": long["seed"]}, use_t=True)
    low, high = fit.conf_int(LEVEL).loc["sparsity"]
    return _verdict(
        "C1",
        family,
        label,
        "supported" if low > 0 else "refuted" if high < 0 else "inconclusive",
        effect=fit.params["sparsity"],
        interval=(low, high),
        what="slope of the relative gain over sparsity",
        test="OLS, seed effects, errors clustered by seed",
        p_value=fit.pvalues["sparsity"],
        seeds=seeds,
        note=f"before collapse: up to sparsity {gains.columns.max():g}",
    )


@dataclass(frozen=True)
class _BestGain:
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
    detectable: float

    @property
    def counts(self) -> bool:
        """Whether the gain is significant and no smaller than the margin."""
        return self.p_value < LEVEL and self.gain >= MARGIN


def _best_gain(gains: pd.DataFrame) -> _BestGain:
    """Paired t statistics per sparsity: Bonferroni intervals, Holm-corrected one-sided p-values."""
    count, tried = gains.shape
    mean, error = gains.mean(), gains.std(ddof=1) / np.sqrt(count)
    reach = stats.t.ppf(1 - LEVEL / (2 * tried), count - 1) * error
    statistic = (mean / error).where(error > 0, np.sign(mean) * np.inf).fillna(0.0)
    p_values = np.asarray(multipletests(stats.t.sf(statistic, count - 1), method="holm")[1])
    significant = p_values < LEVEL
    candidates = np.where(significant | ~significant.any(), mean, -np.inf)
    best = int(candidates.argmax())
    size = TTestPower().solve_power(nobs=count, alpha=LEVEL / tried, power=0.8, alternative="larger")
    return _BestGain(
        sparsity=float(mean.index[best]),
        gain=float(mean.iloc[best]),
        low=float((mean - reach).iloc[best]),
        high=float((mean + reach).iloc[best]),
        highest=float((mean + reach).max()),
        p_value=float(p_values[best]),
        detectable=float(size * gains.iloc[:, best].std(ddof=1)),
    )


def _no_improvement(table: pd.DataFrame, family: str, measure: Measure) -> Verdict:
    """C2: every sparsity's simultaneous upper limit of the gain must lie below the margin."""
    gains, label = _gains(table, family, measure), measure[0]
    if len(gains) < 2 or gains.empty:
        return _verdict("C2", family, label, "inconclusive", seeds=len(gains), note=NO_TEST)
    best = _best_gain(gains)
    if best.highest < MARGIN:
        verdict = "supported"
    else:
        verdict = "refuted" if best.counts else "inconclusive"
    return _verdict(
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
        note=f"at sparsity {best.sparsity:g}; p is for a gain",
    )


def _some_improvement(table: pd.DataFrame, family: str, measure: Measure) -> Verdict:
    """C3: one-sided paired tests of a gain at every sparsity, Holm-corrected."""
    gains, label = _gains(table, family, measure), measure[0]
    if len(gains) < 2 or gains.empty:
        return _verdict("C3", family, label, "inconclusive", seeds=len(gains), note=NO_TEST)
    best = _best_gain(gains)
    note = f"at sparsity {best.sparsity:g}"
    if best.highest < MARGIN:
        verdict = "refuted"
        note += f"; no sparsity gains {MARGIN:.0%}"
    elif best.counts:
        verdict = "supported"
    else:
        verdict = "inconclusive"
        note += f"; 80 % power for a gain of {best.detectable:.1%}"
    return _verdict(
        "C3",
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


def _falls_again(table: pd.DataFrame, family: str, measure: Measure) -> Verdict:
    """C4: bootstrap over seeds of the best sparsity, and of the fall from there to the last one."""
    values, label = curve(table, family, "magnitude", measure), measure[0]
    grid, draws = values.columns.to_numpy(), values.to_numpy()
    if len(draws) < 2 or len(grid) < 3 or not draws.any():
        note = "an optimum inside the grid needs 2 seeds, 3 sparsities and some robustness"
        return _verdict("C4", family, label, "inconclusive", seeds=len(draws), note=note)
    rng = np.random.default_rng(0)
    means = draws[rng.integers(len(draws), size=(RESAMPLES, len(draws)))].mean(axis=1)
    best = grid[means.argmax(axis=1)]
    low, high = np.quantile(best, [LEVEL / 2, 1 - LEVEL / 2])
    falls = np.quantile(means[:, -1] / means.max(axis=1) - 1, [LEVEL / 2, 1 - LEVEL / 2])
    inside = grid[0] < low and high < grid[-1]
    verdict = "supported" if inside and falls[1] < -MARGIN else "inconclusive"
    mean = draws.mean(axis=0)
    fall = f"{mean[-1] / mean.max() - 1:+.0%} [{falls[0]:+.0%}, {falls[1]:+.0%}] at {grid[-1]:g}"
    note = f"then {fall}"
    if high == grid[0]:
        verdict, note = "refuted", f"no rise before the fall of {fall}"
    elif low == grid[-1]:
        verdict, note = "refuted", "best at the last sparsity: no fall seen"
    return _verdict(
        "C4",
        family,
        label,
        verdict,
        effect=float(grid[mean.argmax()]),
        interval=(low, high),
        what="best sparsity alpha*",
        test=f"bootstrap over seeds, {RESAMPLES} resamples",
        seeds=len(draws),
        note=note,
    )


def _predictions(table: pd.DataFrame, family: str, norm: str) -> list[Verdict]:
    """C9: the predicted mean radius against the measured one, of random masks and of retrained networks.

    The error at a sparsity is |predicted - measured| as a share of the measured radius without masks, all
    three means over seeds, which are resampled.
    """
    predicted = _curve(table, family, "random", ("", "mean_radius", norm, "moment propagation"), ["estimate"])
    verdicts = []
    for pruning in ("random", "random-retrained", "magnitude"):
        measured = curve(table, family, pruning, ("", "mean_radius", norm, "best"))
        grid = predicted.columns.intersection(measured.columns)
        seeds = predicted.index.intersection(measured.index)
        if len(grid) < 2 or grid[0] != 0 or not len(seeds):
            continue
        guess, truth = (frame.loc[seeds, grid].to_numpy() for frame in (predicted, measured))
        draws = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
        low, high = np.quantile(_prediction_error(guess[draws], truth[draws]), [LEVEL / 2, 1 - LEVEL / 2])
        holds = "supported" if high < PREDICTION_ERROR else "inconclusive"
        best = [grid[1 + int(values[:, 1:].mean(axis=0).argmax())] for values in (guess, truth)]
        verdicts.append(
            _verdict(
                "C9",
                family,
                f"R_{norm.removeprefix('l')}, {pruning}",
                "refuted" if low > PREDICTION_ERROR else holds,
                effect=float(_prediction_error(guess, truth)),
                interval=(low, high),
                what="mean error over the sparsities above 0, as a share of the radius at 0",
                test=f"bootstrap over seeds, {RESAMPLES} resamples, against {PREDICTION_ERROR:.0%}",
                seeds=len(seeds),
                note=f"best sparsity above 0: {best[0]:g} predicted, {best[1]:g} measured",
            )
        )
    return verdicts


def _prediction_error(guess: Float[Array, "*r s a"], truth: Float[Array, "*r s a"]) -> Float[Array, "*r"]:
    """Mean over sparsities of the error of the means over seeds, in units of the truth at the first one."""
    off = np.abs(guess.mean(axis=-2) - truth.mean(axis=-2))[..., 1:].mean(axis=-1)
    return np.asarray(off / np.maximum(truth.mean(axis=-2)[..., 0], np.finfo(float).tiny))


def _theorem(rows: pd.DataFrame, claim: str, label: str) -> Verdict:
    """C5, C7, C8: count the violations in the rows of the checks that belong to one theorem."""
    values = {str(quantity): part["value"] for quantity, part in rows.groupby("quantity", observed=True)}
    failures, cases = int(values["violations"].sum()), int(values["cases"].sum())
    if "relative_error" in values:
        effect, what = float(values["relative_error"].max()), "largest relative error"
    else:
        effect, what = float(values["tightness"].mean()), "mean of smaller side / larger side"
    families = sorted(set(rows["family"].astype(str)))
    return _verdict(
        claim,
        families[0] if len(families) == 1 else "all",
        label,
        "supported" if failures == 0 else "refuted",
        effect=effect,
        what=what,
        test=f"{cases:,} cases",
        seeds=rows["seed"].nunique(),
        failures=failures,
    )
