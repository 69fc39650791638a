"""The report of a run: figures, and one HTML page that needs nothing but itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from empirical.claims.verdicts import GAIN, OPTIMUM
from empirical.pages import Picture, save_picture, setting, write_page
from empirical.runs.locations import Location, make_folder
from paper_figures.gallery import caption, drawn
from paper_figures.layout import WIDTHS

# Offending rows shown in the report; the results table has all.
SHOWN = 50
_VERDICTS = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
_SIGNS = {"supported": "✓", "refuted": "✗", "inconclusive": "?"}
_NORMS = {"l2": "l_2", "linf": "l_inf", "": "–"}
_PROVENANCE = {
    "datasets": "dataset",
    "settings id": "settings",
    "version": "version",
    "commit": "commit",
    "device": "device",
    "measured in": "dtype",
}


def write_report(
    out: Location,
    table: pd.DataFrame,
    claims: pd.DataFrame,
    failed: pd.DataFrame,
    settings: dict[str, object],
) -> Location:
    """Write figures/*.svg, figures/*.png and report.html into ``out``; returns the report's path.

    ``table`` holds the rows about whole networks, ``claims`` the verdicts, ``failed`` every case in which a
    theorem failed.
    """
    path = out / "report.html"
    content = {
        "datasets": sorted(table["dataset"].unique()),
        "summary": summary(table, claims, failed),
        "claims": [_claim(row) for _, row in claims.iterrows()],
        "figures": _figures(out / "figures", table),
        "checks": _checks(table),
        "failed": [_offence(row) for _, row in failed.head(SHOWN).iterrows()],
        "failures": len(failed),
        "settings": {name: setting(value) for name, value in settings.items()}
        | {label: ", ".join(map(str, table[name].unique())) for label, name in _PROVENANCE.items()},
    }
    write_page(path, "report.html.j2", content)
    return path


def claims_table(claims: pd.DataFrame) -> Table:
    """The verdicts for a terminal of 80 columns or more, remarks below effects, statements below all."""
    statements = claims.drop_duplicates("claim")
    legend = "\n".join(f"{row['claim']}  {row['statement']}" for _, row in statements.iterrows())
    shown = Table(
        box=None, pad_edge=False, padding=(0, 1), caption=Text("\n" + legend), caption_justify="left"
    )
    shown.add_column("", no_wrap=True)
    shown.add_column("Family", no_wrap=True)
    shown.add_column("Measure", overflow="fold")
    shown.add_column("Verdict", no_wrap=True)
    shown.add_column("Effect [95 %], remark", overflow="fold")
    shown.add_column("p", no_wrap=True, justify="right")
    for _, row in claims.iterrows():
        told = _claim(row)
        shown.add_row(
            told["claim"],
            Text(told["family"]),
            Text(told["measure"]),
            Text(told["verdict"], style=_VERDICTS[told["verdict"]]),
            _effect_and_remark(told),
            told["p"],
        )
    return shown


def _effect_and_remark(told: dict[str, str]) -> Text:
    """Both in one cell: a column for remarks leaves narrow terminals no room."""
    if told["violations"] != "–":
        return Text(told["remark"])
    remark = Text(told["remark"], style="dim")
    return Text("\n").join([Text(told["effect"]), remark] if remark else [Text(told["effect"])])


def claims_markdown(claims: pd.DataFrame) -> str:
    """The judged claims as a Markdown table."""
    lines = [
        "| claim | family | measure | verdict | effect [95 %] | p | remark |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in map(_claim, (row for _, row in claims.iterrows())):
        cells = [row[name] for name in ("claim", "family", "measure", "verdict", "effect", "p", "remark")]
        lines.append(f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in cells)} |")
    lines.append("")
    for claim, statement in claims[["claim", "statement"]].drop_duplicates().itertuples(index=False):
        lines.append(f"- {claim}: {statement}")
    return "\n".join(lines)


def summary(table: pd.DataFrame, claims: pd.DataFrame, failed: pd.DataFrame) -> str:
    """One paragraph: whether any theorem failed, which claims hold, which do not, which are mixed."""
    cases = int(table.loc[(table["kind"] == "check") & (table["quantity"] == "cases"), "value"].sum())
    if failed.empty:
        sentences = [f"No theorem was violated in {cases:,} checked cases."]
    else:
        theorems = ", ".join(sorted(failed["theorem"].astype(str).unique()))
        sentences = [f"{len(failed):,} of {cases:,} checked cases violate a theorem: {theorems}."]
    uniform: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    mixed = []
    for claim, rows in claims.groupby("claim", sort=False):
        found = rows["verdict"].unique()
        named = f"{rows['statement'].iloc[0]} ({claim})"
        if len(found) == 1:
            uniform[found[0]].append(named)
            continue
        parts = []
        for verdict in _VERDICTS:
            of_verdict = rows[rows["verdict"] == verdict]
            if len(of_verdict):
                several = rows["family"].nunique() > 1
                measures = [
                    f"“{row['measure']}” ({row['family']})" if several else f"“{row['measure']}”"
                    for _, row in of_verdict.iterrows()
                ]
                parts.append(f"{verdict} for {', '.join(measures)}")
        mixed.append(f"{named} is {'; '.join(parts)}")
    for verdict, named in uniform.items():
        if named:
            sentences.append(f"{verdict.capitalize()} in every measure: {'; '.join(named)}.")
    sentences += [f"{text}." for text in mixed]
    return " ".join(sentences)


def _claim(row: pd.Series) -> dict[str, str]:
    """A verdict as text, ready to show."""
    violations = "–" if pd.isna(row["violations"]) else f"{int(row['violations']):,}"
    return {
        "claim": row["claim"],
        "statement": row["statement"],
        "family": row["family"],
        "measure": _norm(row["measure"]),
        "verdict": row["verdict"],
        "sign": _SIGNS[row["verdict"]],
        "effect": _effect(row),
        "what": row["what"],
        "test": row["test"],
        "p": _p_value(row["p_value"]),
        "seeds": str(row["seeds"]),
        "violations": violations,
        "note": row["note"],
        "remark": row["note"] if violations == "–" else f"{violations} violations, {row['test']}",
    }


def _effect(row: pd.Series) -> str:
    """A slope with its sign, a gain in percent, or whatever else with its interval."""
    if np.isnan(row["effect"]):
        return "–"
    form, scale, unit = "{:.3g}", 1, ""
    if row["claim"] == "C1":
        form = "{:+.2f}"
    elif row["what"] == GAIN:
        form, scale, unit = "{:+.1f}", 100, " %"
    elif row["what"] == OPTIMUM:
        form = "{:g}"
    text = form.format(scale * row["effect"])
    if np.isfinite([row["low"], row["high"]]).all():
        text += f" [{form.format(scale * row['low'])}, {form.format(scale * row['high'])}]"
    return text + unit


def _norm(name: str) -> str:
    return _NORMS.get(name, name)


def _p_value(value: float) -> str:
    if np.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _checks(table: pd.DataFrame) -> list[dict[str, str]]:
    """Every theorem and norm that was checked: families, cases, violations, tightness or error."""
    checks = table[table["kind"] == "check"]
    found = []
    for (theorem, norm), rows in checks.groupby(["method", "norm"], observed=True, sort=False):
        by_quantity = rows.groupby("quantity", observed=True)["value"]
        total = by_quantity.sum()
        if "relative_error" in total:
            agreement = f"largest relative error {by_quantity.max()['relative_error']:.2g}"
        else:
            agreement = f"mean tightness {by_quantity.mean().get('tightness', np.nan):.2g}"
        found.append(
            {
                "theorem": str(theorem),
                "norm": _norm(str(norm)),
                "families": ", ".join(map(str, rows["family"].unique())),
                "cases": f"{int(total['cases']):,}",
                "violations": f"{int(total['violations']):,}",
                "agreement": agreement,
            }
        )
    return found


def _offence(row: pd.Series) -> dict[str, str]:
    """A case in which a theorem failed, as text."""
    told = {name: str(row[name]) for name in ("theorem", "dataset", "family", "pruning", "seed")}
    return told | {
        "norm": _norm(str(row["norm"])),
        "sparsity": f"{row['sparsity']:g}",
        "example": "mean" if pd.isna(row["example"]) else str(int(row["example"])),
        "excess": f"{row['excess']:.3g}",
    }


def _figures(folder: Location, table: pd.DataFrame) -> list[dict[str, str | Picture]]:
    """Write every figure in every format; returns titles, captions and pictures."""
    make_folder(folder)
    shown: list[dict[str, str | Picture]] = []
    for entry, wide in drawn(table):
        narrow = entry.draw(table, width=WIDTHS["one-column"])
        assert narrow
        picture = save_picture(folder, entry.name, wide=wide, narrow=narrow)
        shown.append({"title": entry.title, "caption": caption(entry, table), "picture": picture})
    return shown
