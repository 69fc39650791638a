"""The tables about one network, as a terminal, Markdown and a page show them: a header and lines of text."""

from __future__ import annotations

from itertools import product

import pandas as pd

NORMS = {"linf": "l_inf", "l2": "l_2"}
# Sparsities of the masks that are shown; the table has all.
_SHOWN = (0.0, 0.5, 0.9, 0.99)
_LINES = 8  # sparsities of which all are shown
Cells = tuple[str, ...]
Table = tuple[Cells, list[Cells]]


def bound_tables(rows: pd.DataFrame) -> list[Table]:
    """What bounds.parquet says: the network, each norm, and random masks where there are any."""
    whole = rows[rows["example"].isna()]
    facts = whole[whole["quantity"].isin(["accuracy", "sparsity"])]
    lines = [
        (f"{quantity}, {method}", f"{value:.4g}")
        for quantity, method, value in facts[["quantity", "method", "value"]].itertuples(index=False)
    ]
    tables: list[Table] = [(("network", ""), lines)]
    present = [norm for norm in NORMS if (whole["norm"] == norm).any()]
    tables += [_norm_table(whole[whole["norm"] == norm], norm) for norm in present]
    active = whole.loc[whole["quantity"] == "active_units", "value"].astype(int)
    masks = {
        "expected_lipschitz": "random masks",
        "expected_lipschitz_active": f"at most {', '.join(map(str, active))} active",
    }
    for norm, (quantity, told) in product(present, masks.items()):
        some = whole[(whole["quantity"] == quantity) & (whole["norm"] == norm)]
        if not some.empty:
            tables.append(_mask_table(some, f"{NORMS[norm]}, {told}"))
    return tables


def _mask_table(rows: pd.DataFrame, title: str) -> Table:
    """The rungs at all sparsities where these are few, else at those shown, if any was asked for."""
    if rows["sparsity"].nunique() > _LINES and rows["sparsity"].isin(_SHOWN).any():
        rows = rows[rows["sparsity"].isin(_SHOWN)]
    rungs = list(rows["method"].unique())
    lines = [
        (f"alpha = {alpha:g}", *(_value(rows, method=rung, sparsity=alpha) for rung in rungs))
        for alpha in sorted(rows["sparsity"].unique())
    ]
    return (f"{title}, classes {rows['pair'].iloc[0]}", *rungs), lines


def _norm_table(rows: pd.DataFrame, norm: str) -> tuple[Cells, list[Cells]]:
    """What is certified in one norm: radii, the share of examples certified at r, constants on balls."""
    rows = rows[rows["radius"].isna() | (rows["method"] != "universal ceiling")]  # its curve is too long
    radii = sorted(rows["radius"].dropna().unique())
    lines = []
    for quantity, title, extra in (
        ("mean_radius", "radius", "robust_accuracy"),
        ("lipschitz", "Lipschitz", "lipschitz"),
    ):
        some = rows[rows["quantity"] == quantity]
        for method, nature in some[["method", "nature"]].drop_duplicates().itertuples(index=False):
            own = rows[rows["method"] == method]
            at = [_value(own, quantity=extra, radius=radius) for radius in radii]
            mean = _value(own[own["radius"].isna()], quantity=quantity)
            median = _value(own, quantity="median_radius") if quantity == "mean_radius" else ""
            lines.append((f"{title}, {method}", nature.removesuffix(" bound"), mean, median, *at))
    return (NORMS[norm], "bound", "mean", "median", *(f"r={radius:g}" for radius in radii)), lines


def _value(rows: pd.DataFrame, **wanted: str | float) -> str:
    """The value of the one row with these entries; empty if there is none."""
    for column, entry in wanted.items():
        rows = rows[rows[column] == entry]
    if not len(rows):
        return ""
    value = float(rows["value"].iloc[0])
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.3g}"


def attack_tables(rows: pd.DataFrame) -> list[Table]:
    """What measure.parquet says: the network, then each norm's attacks."""
    clean = rows[(rows["quantity"] == "accuracy") & (rows["method"] == "clean")]["value"].iloc[0]
    lines = [
        ("sparsity", f"{rows['achieved_sparsity'].iloc[0]:.4g}"),
        ("accuracy, clean", f"{clean:.4g}"),
    ]
    fgs = rows[rows["quantity"] == "fgs_accuracy"].drop_duplicates("method")
    lines += [
        (f"accuracy, {method}, eps = {eps:g}", f"{value:.4g}")
        for method, eps, value in fgs[["method", "eps", "value"]].itertuples(index=False)
    ]
    tables: list[Table] = [(("network", ""), lines)]
    for norm, title in NORMS.items():
        of_norm = rows[(rows["norm"] == norm) & (rows["quantity"] == "mean_radius")]
        methods = list(of_norm["method"].unique())
        if methods:
            eps = rows.loc[(rows["norm"] == norm) & (rows["quantity"] == "robust_accuracy"), "eps"].iloc[0]
            header = (f"{title}, smallest found", "mean", "mean square", "not found", f"robust at {eps:g}")
            tables.append((header, [_attack_line(rows, norm, method) for method in methods]))
    return tables


def _attack_line(rows: pd.DataFrame, norm: str, method: str) -> Cells:
    own = rows[(rows["norm"] == norm) & (rows["method"] == method)].set_index("quantity")["value"]
    return (
        method,
        f"{own['mean_radius']:.4g}",
        f"{own['mean_squared_distance']:.4g}",
        f"{own['capped']:.0f}",
        f"{own['robust_accuracy']:.4g}",
    )
