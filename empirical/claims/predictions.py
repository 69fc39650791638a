"""Claim C9: moment propagation against measurement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from empirical.claims.verdicts import (
    ALIKE,
    COLLAPSED,
    LACKING,
    WITHSTOOD,
    Curves,
    Verdict,
    accuracy_kept,
    before_collapse,
    left_out,
    t_interval,
    verdict_on,
    withstands,
)

# A prediction holds if its mean error over the sparsities is below this share of the dense radius.
PREDICTION_ERROR = 0.10


def predictions(curves: Curves, family: str, norm: str) -> list[Verdict]:
    """C9: the predicted mean radius against the measured one, of random masks and of retrained networks.

    The error at a sparsity is |predicted - measured| as a share of the measured radius without masks, all
    three means over seeds; the t-interval is that of what every seed adds to it. Sparsities at which a
    network has collapsed do not count: the radius of one that gives every input the same class is the cap,
    whatever the theory. Nor do those at which an example withstood every attack, which counts as the cap too.
    """
    predicted = curves.of_kind(
        family, "random", ("", "mean_radius", norm, "moment propagation"), ("estimate",)
    )
    verdicts = []
    for pruning in ("random", "random-retrained", "magnitude"):
        measured = curves.measured(family, pruning, ("", "mean_radius", norm, "best"))
        shared = predicted.columns.intersection(measured.columns)
        kept = accuracy_kept(curves, family, pruning)
        seeds = predicted.index.intersection(measured.index).intersection(kept.index)
        if len(shared) < 2 or shared[0] != 0 or not len(seeds):
            continue
        label = f"R_{norm.removeprefix('l')}, {pruning}"
        kept = kept.reindex(index=seeds, columns=shared)
        grid, fallen = before_collapse(kept)
        every = predicted.loc[seeds, grid] + measured.loc[seeds, grid] + kept[grid]
        lost = np.asarray((~np.isfinite(every.to_numpy())).any(axis=0))
        capped = ~lost & withstands(curves, family, pruning, ("", "mean_radius", norm, "best"), every)
        gaps = left_out(((fallen, COLLAPSED), (grid[lost], LACKING), (grid[capped], WITHSTOOD)))
        grid = grid[~lost & ~capped]
        if len(grid) < 2 or grid[0] != 0:
            note = f"no sparsity above 0 before collapse{gaps}"
            verdicts.append(verdict_on("C9", family, label, "inconclusive", seeds=len(seeds), note=note))
            continue
        guess, truth = (frame.loc[seeds, grid].to_numpy() for frame in (predicted, measured))
        best = [grid[1 + int(values[:, 1:].mean(axis=0).argmax())] for values in (guess, truth)]
        note = (
            f"before collapse: up to sparsity {grid[-1]:g}; best above 0: {best[0]:g} predicted, "
            f"{best[1]:g} measured{gaps}"
        )
        errors = _errors(guess, truth)
        found = verdict_on(
            "C9",
            family,
            label,
            "inconclusive",
            effect=errors.mean(),
            what="mean error over the sparsities above 0, as a share of the radius at 0",
            seeds=len(seeds),
            note=note if len(seeds) > 1 else f"an interval needs 2 seeds; {note}",
        )
        if len(seeds) > 1:
            low, high = t_interval(errors)
            holds = "supported" if high < PREDICTION_ERROR else "inconclusive"
            found = replace(
                found,
                verdict="refuted" if low > PREDICTION_ERROR else holds,
                low=low,
                high=high,
                test=f"t-interval over seeds, against {PREDICTION_ERROR:.0%}",
                note=f"{ALIKE}; {note}" if np.isnan(low) else note,
            )
        verdicts.append(found)
    return verdicts


def _errors(guess: Float[Array, "seeds a"], truth: Float[Array, "seeds a"]) -> Float[Array, " seeds"]:
    """What every seed adds to the mean over the sparsities above 0 of the error, in units of the truth at 0.

    Their mean is the error of the means over seeds, whose signs are held fixed and whose denominator is
    linearised: a bootstrap of the few seeds there are would make it look more certain than it is.
    """
    signs = np.where((guess - truth).mean(axis=0) < 0, -1.0, 1.0)
    off = ((guess - truth) * signs)[:, 1:].mean(axis=1)
    unit = max(truth[:, 0].mean(), np.finfo(float).tiny)
    error = off.mean() / unit
    return error + (off - error * truth[:, 0]) / unit
