"""The report stands alone, says what was judged, and cannot be broken by what it shows."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from empirical.claims import judge
from empirical.claims.verdicts import GAIN
from empirical.report import SHOWN, claims_markdown, claims_table, summary, write_report
from tests.browser import assert_readable
from tests.results_table import network_table

_HOSTILE = '<script>alert("1")</script>'
_SETTINGS: dict[str, object] = {
    "data": "digits",
    "seeds": 1,
    "first": {"epochs": 40},
    "sparsities": [0.0, 0.9],
}
_FIGURES = ("robustness", "accuracy", "controls", "trade_off")  # what a table of a linear family has to show
_VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """Sources, targets and cells of a page; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _claims() -> pd.DataFrame:
    """A claim with two verdicts, one with neither effect nor interval, and a violated theorem."""
    named = ["claim", "statement", "measure", "verdict", "effect", "low", "high", "p_value", "violations"]
    none = np.nan
    rows = [
        ("C3", "ReLU gains", "R_inf, best attack", "supported", 0.05, 0.01, 0.09, 0.004, none),
        ("C3", "ReLU gains", "R_2, best attack", "refuted", -0.01, -0.02, 0.0, 1.0, none),
        ("C4", "falls again", "R_2, best attack", "inconclusive", none, none, none, none, none),
        ("C5", "E[L] <= c", "l2", "refuted", 0.1, none, none, none, 60),
    ]
    frame = pd.DataFrame(rows, columns=named)
    return frame.assign(family="mlp", what=GAIN, test="paired t", seeds=5, note="at sparsity 0.5")


def _failed(count: int) -> pd.DataFrame:
    """Violations as the claims' module lists them, the example NA where a mean failed."""
    return pd.DataFrame(
        {
            "theorem": ["universal ceiling"] * count,
            "norm": ["l2"] * count,
            "dataset": [_HOSTILE] * count,
            "family": ["mlp"] * count,
            "pruning": ["magnitude"] * count,
            "sparsity": [0.9] * count,
            "seed": range(count),
            "example": pd.array([None, *range(1000, 999 + count)][:count], dtype="Int32"),
            "excess": np.linspace(0.777, 0.001, count),
        }
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    table = network_table(families=("linear",), sparsities=(0.0, 0.9), seeds=1, dataset=_HOSTILE)
    folder = tmp_path_factory.mktemp("run")
    write_report(folder, table, _claims(), _failed(60), _SETTINGS)
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(report) -> str:
    return report.read_text(encoding="utf-8")


def test_report_needs_nothing_but_itself(page) -> None:
    parser = Page()
    parser.feed(page)
    assert not parser.open
    assert len(parser.links) == 2 * len(_FIGURES)  # for a window, and for a phone
    assert all(link.startswith("data:image/svg+xml;base64,") for link in parser.links)
    assert not re.search(r"<script|@import|url\(", page)


def test_figures_lie_beside_the_report_and_in_it(report, page) -> None:
    for name in _FIGURES:
        svg = (report.parent / "figures" / f"{name}.svg").read_bytes()
        narrow = (report.parent / "figures" / f"{name}-narrow.svg").read_bytes()
        assert base64.b64encode(svg).decode() in page
        assert base64.b64encode(narrow).decode() in page
        assert (report.parent / "figures" / f"{name}.png").stat().st_size > 1000
    assert sorted(path.name for path in report.parent.iterdir()) == ["figures", "report.html"]


def test_the_page_in_a_browser(report, tmp_path) -> None:
    assert_readable(report, tmp_path, figures=len(_FIGURES))


def test_hostile_names_are_escaped(page) -> None:
    assert _HOSTILE not in page
    assert "&lt;script&gt;alert" in page


def test_report_shows_verdicts_and_offending_rows(page) -> None:
    text = re.sub(r"\s+", " ", page)
    for shown in (
        "✓ supported",
        "✗ refuted",
        "? inconclusive",
        "+5.0 [+1.0, +9.0] %",
        "0.004",
        "at sparsity 0.5",
    ):
        assert shown in text
    rows = text.split('id="violations"')[1].split("</table>")[0]
    assert rows.count("<tr>") == 1 + SHOWN
    for shown in (">mean<", ">1000<", ">0.777<", ">magnitude<"):
        assert shown in rows
    assert f"{SHOWN} of 60 cases" in text
    assert "exact &lt;= attack" in text.split('id="checks"')[1]
    for shown in ("epochs 40", "0.0, 0.9", "abcdef", "1.2.3"):
        assert shown in text.split('id="settings"')[1]


def test_summary_says_what_holds_and_what_fails() -> None:
    table = network_table(families=("mlp",), sparsities=(0.0,), seeds=1)
    told = summary(table, _claims(), _failed(3))
    assert told.startswith("3 of 1,440 checked cases violate a theorem: universal ceiling.")
    assert "Refuted in every measure: E[L] <= c (C5)." in told
    assert "Inconclusive in every measure: falls again (C4)." in told
    assert "ReLU gains (C3) is supported for “R_inf, best attack”; refuted for “R_2, best attack”." in told
    assert summary(table, _claims(), _failed(0)).startswith("No theorem was violated in 1,440 checked cases.")


@pytest.mark.parametrize("width", [80, 100])
def test_terminal_table_fits(width) -> None:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(claims_table(_claims()))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for shown in (
        "supported",
        "refuted",
        "inconclusive",
        "+5.0 [+1.0, +9.0] %",
        "60 violations",
        "E[L] <= c",
    ):
        assert shown in text


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_table_says_where_an_effect_is(width) -> None:
    """And what could have been seen: as the Markdown's remarks, in the same words."""
    remark = "at sparsity 0.98; 80 % power for a gain of 16.0% at 0.98"
    claims = _claims().assign(note=remark, family="linear-binary")
    console = Console(width=width)
    with console.capture() as captured:
        console.print(claims_table(claims))
    words = captured.get().split("\n\n")[0].split()
    assert all(words.count(word) >= 3 for word in remark.split())
    if width == 200:
        assert captured.get().count(remark) == 3
    assert remark in claims_markdown(claims)


def test_a_run_without_claims_says_so(tmp_path) -> None:
    table = network_table(families=("mlp",), conditions=("dense",), sparsities=(0.0,), seeds=1)
    none = judge(table).iloc[:0]
    write_report(tmp_path, table, none, _failed(0), _SETTINGS)
    assert "None is judged" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_names_of_families_are_shown_as_they_are() -> None:
    """Also such as a terminal's or Markdown's tables would obey."""
    hostile = judge(network_table(families=("net[/]",))).assign(family="net[/] a|b\nc")
    console = Console(width=200)
    with console.capture() as shown:
        console.print(claims_table(hostile))
    assert "net[/] a|b" in shown.get()
    rows = [line for line in claims_markdown(hostile).splitlines() if line.startswith("| C")]
    assert len(rows) == len(hostile)
    assert all(line.count("|") == 8 and "net[/] a&#124;b c" in line for line in rows)
