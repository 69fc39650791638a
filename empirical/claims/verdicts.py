"""A judged claim, and the curves and gains that claims are judged from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy import stats

from theory.types import InvalidInput

LEVEL = 0.05
# A change of less than this share of the robustness counts as none (C2, C3, C4, C6).
MARGIN = 0.05
# A sparsity has collapsed once one of its networks has lost this share of the dense network's accuracy: what
# is left is no classifier; one that gives every input the same class cannot even be attacked.
COLLAPSE = 0.10
RESAMPLES = 2000
ENUMERATED = 10  # seeds whose 92,378 resamples are all looked at
# Seeds below which percentiles of the resamples, three of two seeds, are no interval to print.
FEWEST_SEEDS = 5
# A spread below this share of the largest value, or of the dense network's share of 1, is rounding.
ROUNDING = 1e-12
ALIKE = "the seeds do not differ"  # why nothing can be tested
# Why a sparsity is left out.
LACKING, WITHSTOOD, COLLAPSED = "a network has no value", "an example withstood the attack", "collapsed there"

# What the effect is of a claim on gains, and of one on a curve's shape.
GAIN = "best relative gain over the sparsities"
OPTIMUM = "best sparsity alpha*"

Measure = tuple[str, str, str, str]  # label, quantity, norm, method
ACCURACY: Measure = ("accuracy", "accuracy", "", "clean")


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


def verdict_on(
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
    """A verdict with plain numbers, NaN where it has none."""
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


class Curves:
    """The quantities of a results table, each as seeds x sparsities.

    Rows are looked up once and a curve is made once: claims ask for the same ones again and again.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table
        names = ["family", "pruning", "quantity", "norm", "method"]
        self._places = table.groupby(names, observed=True).indices
        self._made: dict[tuple, pd.DataFrame] = {}

    def has(self, family: str, pruning: str, measure: Measure) -> bool:
        """Whether the table speaks of it at all: an attack that nobody asked for is no claim."""
        return (family, pruning, *measure[1:]) in self._places

    def measured(self, family: str, pruning: str, measure: Measure) -> pd.DataFrame:
        """One quantity from the rows of what was measured, exactly or not."""
        return self.of_kind(family, pruning, measure, ("measured", "identity"))

    def of_kind(self, family: str, pruning: str, measure: Measure, kinds: tuple[str, ...]) -> pd.DataFrame:
        """One quantity from the rows of these kinds.

        Raises: InvalidInput if a seed has several values at a sparsity: their mean would be nobody's.
        """
        _, quantity, _, method = measure
        place = (family, pruning, *measure[1:])
        if (place, kinds) in self._made:
            return self._made[place, kinds]
        rows = self._table.take(np.asarray(self._places.get(place, []), dtype=int))
        chosen = rows[rows["kind"].isin(kinds)]
        if chosen.duplicated(["seed", "sparsity"]).any():
            named = ", ".join(sorted(map(str, chosen["settings"].unique())))
            raise InvalidInput(
                f"table has several values of {quantity}, {method}, of {family}, {pruning}, for one seed and "
                f"sparsity, of the settings {named}; give the rows of one run"
            )
        self._made[place, kinds] = chosen.set_index(["seed", "sparsity"])["value"].dropna().unstack()
        return self._made[place, kinds]


@dataclass(frozen=True)
class Shares:
    """A pruning's robustness relative to the equally trained dense network's, before collapse.

    ``values`` is seeds x sparsities, without a gap. It leaves out the sparsities ``lacking``, at which a
    network is missing or its share is no number, and ``withstood``, at which an attack found nothing for an
    example: that counts as the largest distance in the box, many times the mean radius. ``most`` has the
    latter too if the examples are the pruned networks' alone: their shares are then too large, not too small.
    Neither has the sparsities ``fallen``, below others of theirs, at which a network has collapsed.
    """

    values: pd.DataFrame
    most: pd.DataFrame
    lacking: tuple[float, ...]
    withstood: tuple[float, ...]
    fallen: tuple[float, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether ``most`` has every sparsity before collapse, so that "none" can be said of them."""
        return set(self.lacking + self.withstood) <= set(self.most.columns)

    @property
    def left_out(self) -> str:
        """What a verdict's note must add."""
        return left_out(((self.fallen, COLLAPSED), (self.lacking, LACKING), (self.withstood, WITHSTOOD)))


def left_out(reasons: Iterable[tuple[Iterable[float], str]]) -> str:
    """Sparsities that a verdict leaves out, and why, as its note ends; nothing where there are none."""
    named = ((", ".join(f"{alpha:g}" for alpha in some), why) for some, why in reasons)
    return "".join(f"; without {some}: {why}" for some, why in named if some)


def gains(shares: pd.DataFrame) -> pd.DataFrame:
    """Relative gains over the dense network at the sparsities above 0."""
    return shares[[alpha for alpha in shares.columns if alpha != 0]] - 1


def share_of_dense(curves: Curves, family: str, measure: Measure, *, pruning: str = "magnitude") -> Shares:
    """The shares of the seeds that have networks of both kinds."""
    pruned, dense = (curves.measured(family, condition, measure) for condition in (pruning, "dense"))
    seeds, grid = pruned.index.intersection(dense.index), pruned.columns
    kept = accuracy_kept(curves, family, pruning).reindex(index=seeds, columns=grid)
    grid, fallen = before_collapse(kept)
    pruned, dense, kept = (frame.reindex(index=seeds, columns=grid) for frame in (pruned, dense, kept))
    shares = pruned / dense.where(dense > 0)
    known = _all(pd.DataFrame(np.isfinite(shares), seeds, grid) & kept.notna())
    withstood, withstood_on_dense = (
        withstands(curves, family, condition, measure, pruned) for condition in (pruning, "dense")
    )
    capped = withstood | withstood_on_dense
    values, most = shares[grid[known & ~capped]], shares[grid[known & ~withstood_on_dense]]
    return Shares(
        values, most, tuple(map(float, grid[~known])), tuple(map(float, grid[known & capped])), fallen
    )


def _all(holds: pd.DataFrame) -> Bool[Array, " sparsities"]:
    """Where something holds of every seed."""
    return np.asarray(holds.to_numpy(dtype=bool).all(axis=0))


def withstands(
    curves: Curves, family: str, pruning: str, measure: Measure, like: pd.DataFrame
) -> Bool[Array, " sparsities"]:
    """At which sparsities of ``like`` the attack found nothing for an example, where a mean radius counts it.

    Of any of its seeds.
    """
    _, quantity, norm, method = measure
    if quantity != "mean_radius":
        return np.zeros(like.shape[1], dtype=bool)
    capped = curves.measured(family, pruning, ("", "capped", norm, method))
    return ~_all(~(capped.reindex_like(like) > 0))


def accuracy_kept(curves: Curves, family: str, pruning: str) -> pd.DataFrame:
    """Accuracy relative to the equally trained dense network's, seeds with networks of both x sparsities."""
    kept, reference = (curves.measured(family, condition, ACCURACY) for condition in (pruning, "dense"))
    kept, reference = kept.align(reference, join="inner", axis=0)
    return kept / reference


def before_collapse(kept: pd.DataFrame) -> tuple[pd.Index, tuple[float, ...]]:
    """The sparsities at which no network has lost too much accuracy, and others below the last of these.

    One whose accuracy is not known has lost none.
    """
    fell = ~_all(~(kept < 1 - COLLAPSE))
    grid, lost = kept.columns[~fell], kept.columns[fell]
    return grid, tuple(map(float, lost[lost < grid.max()]))


def spread(values: Float[Array, "seeds *c"]) -> Float[Array, "*c"]:
    """Standard deviation over the seeds; NaN where they differ by rounding alone, which is no evidence.

    However exact the measure: networks are sampled, not measurements, and equal ones do not tell how far from
    them another one would lie.
    """
    found = values.std(axis=0, ddof=1)
    return np.where(found > ROUNDING * np.abs(values).max(initial=1.0), found, np.nan)


def t_interval(values: Float[Array, " seeds"]) -> tuple[float, float]:
    """The interval of level 1 - LEVEL for the mean over the seeds; NaN where :func:`spread` is."""
    reach = stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * float(spread(values)) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


@cache
def resamples(seeds: int) -> tuple[Float[Array, "r seeds"], Float[Array, " r"]]:
    """What share each seed has of a bootstrap's resample, and how probable that is.

    All resamples of few seeds, so that nothing hangs on their order; else RESAMPLES random ones.
    """
    if seeds > ENUMERATED:
        counts = np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
        return counts / seeds, np.full(RESAMPLES, 1 / RESAMPLES)
    drawn = combinations_with_replacement(range(seeds), seeds)
    counts = np.array([np.bincount(chosen, minlength=seeds) for chosen in drawn])
    return counts / seeds, stats.multinomial(seeds, np.full(seeds, 1 / seeds)).pmf(counts)


def percentiles(values: Float[Array, " r"], chances: Float[Array, " r"]) -> tuple[float, float]:
    """The interval that leaves LEVEL / 2 of a bootstrap's values out on either side; values of it alone."""
    ends = [LEVEL / 2, 1 - LEVEL / 2]
    low, high = np.quantile(values, ends, weights=chances, method="inverted_cdf")
    return float(low), float(high)


def bootstrap(seeds: int) -> str:
    """The test's name."""
    return f"bootstrap over seeds, {'all' if seeds <= ENUMERATED else RESAMPLES} resamples"
