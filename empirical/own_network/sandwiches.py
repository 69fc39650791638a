"""What is known of one network's radii: certified below, attacked above, and what no classifier can pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray as Array


@dataclass(frozen=True)
class Sandwich:
    """What is known of the radii in one norm: certified and attacked per example, and the ceiling of means.

    ``certified`` is None where nothing could be proved of the network; ``passable`` is the ceiling of the
    robust accuracy by radius. ``cap`` is the largest distance in the data's box: in means no radius counts
    more.
    """

    norm: str
    certified: Float[Array, " n"] | None
    attacked: Float[Array, " n"]
    ceiling: float
    passable: pd.Series
    mean_attacked: float
    cap: float

    @property
    def mean_certified(self) -> float | None:
        """The mean of the certified radii, a lower bound on the mean radius."""
        return None if self.certified is None else float(np.minimum(self.certified, self.cap).mean())

    def shares(self, radius: float) -> tuple[float | None, float, float]:
        """Shares of the examples certified at the radius, not broken within it, and at most robust there."""
        certain = None if self.certified is None else float((self.certified > radius).mean())
        most = float(self.passable[self.passable.index <= radius].iloc[-1])
        return certain, float((self.attacked > radius).mean()), most


def sandwiches(
    measured: pd.DataFrame, proved: pd.DataFrame | str, ceilings: pd.DataFrame, caps: Mapping[str, float]
) -> list[Sandwich]:
    """Both norms, as far as attacks measured them, from the rows of ``measure`` and ``bounds``.

    ``proved`` may be the reason why there are none of the latter; ``ceilings`` has those of
    :func:`empirical.own_network.bound_rows.ceiling_rows` at least.
    """
    found = []
    for norm, cap in caps.items():
        attacks = _radii(measured, norm, measured["method"].ne("best"))
        if attacks.empty:
            continue
        certified = None
        if isinstance(proved, pd.DataFrame):
            certified = _radii(proved, norm, proved["nature"].eq("lower bound")).max().to_numpy()
        rows = ceilings[(ceilings["norm"] == norm) & (ceilings["method"] == "universal ceiling")]
        ceiling = float(rows.loc[rows["quantity"] == "mean_radius", "value"].iloc[0])
        passable = rows[rows["quantity"] == "robust_accuracy"].set_index("radius")["value"].sort_index()
        mean = (measured["quantity"] == "mean_radius") & (measured["method"] == "best")
        best = float(measured.loc[mean & (measured["norm"] == norm), "value"].iloc[0])
        found.append(Sandwich(norm, certified, attacks.min().to_numpy(), ceiling, passable, best, cap))
    return found


def curves(parts: Sequence[Sandwich]) -> pd.DataFrame:
    """Robust accuracy as a function of the radius, as :mod:`paper_figures.robust_accuracy` draws it."""
    found = []
    for part in parts:
        for source, radii in (("certified", part.certified), ("attacked", part.attacked)):
            if radii is not None:
                at = np.unique(np.append(radii[np.isfinite(radii)], 0.0))
                share = 1 - np.sort(radii).searchsorted(at, side="right") / len(radii)
                found.append(
                    pd.DataFrame({"radius": at, "share": share, "source": source, "norm": part.norm})
                )
        rows = part.passable.rename("share").reset_index()
        found.append(rows.assign(source="ceiling", norm=part.norm))
    return pd.concat(found, ignore_index=True)


def _radii(rows: pd.DataFrame, norm: str, chosen: pd.Series) -> pd.DataFrame:
    """Methods x examples of the radii in one norm."""
    own = rows[(rows["quantity"] == "radius") & (rows["norm"] == norm) & rows["example"].notna() & chosen]
    plain = own.astype({"method": str, "example": int})
    return plain.pivot_table(index="method", columns="example", values="value", aggfunc="first")
