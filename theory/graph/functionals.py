"""Many linear functionals of a node at once, each with a middle and a spread around it.

A functional stands in a column: then a few values meet all functionals in one fast product, (v, n) by (n, r),
and the entries that a node needs alone are whole rows of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scaled:
    """Coefficients, a functional in each column (1 or k, n, r), times factors (k, n, 1), None for 1: a dense
    layer behind takes the factors into its weights, which are fewer."""

    columns: Tensor
    factor: Tensor | None = None

    def whole(self) -> Tensor:
        """The coefficients."""
        return self.columns if self.factor is None else self.columns * self.factor

    def at(self, values: Tensor) -> Tensor:
        """The functionals of (1 or k, n, v), (1 or k, v, r)."""
        rows, columns = (values if self.factor is None else values * self.factor).mT, self.columns
        if len(columns) > 1 or len(rows) == 1:
            return rows @ columns
        return (rows.flatten(0, 1) @ columns[0]).unflatten(0, rows.shape[:2])  # one product for all


@dataclass(frozen=True)
class Functionals:
    """Coefficients middle +- spread of functionals above and below, (1 or k, n, r) each.

    Entries of ``spread`` have any sign; None stands for 0. Of ``entries`` of the node alone, where the others
    are 0; None for all.
    """

    middle: Scaled
    spread: Scaled | None = None
    entries: Tensor | None = None

    def through(self, step: Callable[[Scaled], Tensor], entries: Tensor | None = None) -> Functionals:
        """Both, after a linear step that gives all entries, or some, of another node."""
        spread = None if self.spread is None else Scaled(step(self.spread))
        return Functionals(Scaled(step(self.middle)), spread, entries)

    def everywhere(self, count: int) -> Functionals:
        """With the entries that are 0, ``count`` in all."""
        entries = self.entries
        if entries is None:
            return self

        def filled(some: Scaled) -> Tensor:
            here = some.whole()
            return here.new_zeros(len(here), count, here.shape[2]).index_copy_(1, entries, here)

        return self.through(filled)

    def among(self, entries: Tensor | None, count: int) -> Functionals:
        """Some of the entries, None for all ``count``."""
        if entries is self.entries:
            return self
        here = self.everywhere(count)
        if entries is None:
            return here
        return here.through(lambda every: every.whole().index_select(1, entries), entries)

    def plus(self, other: Functionals, count: int) -> Functionals:
        """The sum of the functionals, of all entries of a node."""
        here, there = self.everywhere(count), other.everywhere(count)
        spreads = [side.spread.whole() for side in (here, there) if side.spread is not None]
        spread = Scaled(sum(spreads[1:], spreads[0])) if spreads else None
        return Functionals(Scaled(here.middle.whole() + there.middle.whole()), spread)
