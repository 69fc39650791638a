"""The tables of docs/benchmarks.md, made of the results: ``python -m benchmarks.pages`` writes them.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. Times and ratios have two digits: a third
is noise. A table whose results have no origin beside them (:func:`benchmarks.tables.origin`) is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import pandas as pd

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results"
FGS = "smallest FGS step"
LATEX = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "": ""}
_BLOCK = re.compile(r"(<!-- table (.+?) -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)
Table = list[list[str]]  # the first row holds the headings


def two(number: str) -> str:
    """A number of the results with two digits; blank where there is none."""
    return f"{float(f'{float(number):.2g}'):g}" if number else ""


def spread(numbers: Sequence[str]) -> str:
    """The smallest and the largest, with two digits each."""
    values = sorted(float(number) for number in numbers)
    return f"{two(str(values[0]))}-{two(str(values[-1]))}"


def percent(share: str) -> str:
    """A share in percent, blank where it is all."""
    return "" if float(share) == 1 else f"{100 * float(share):.3g} %"


def certified(rows: pd.DataFrame) -> Table:
    """Every method on the dense network, both norms side by side."""
    rows = rows[(rows["task"] == "certified radius") & (rows["sparsity"] == "0.0") & (rows["seconds"] != "")]
    columns = ("seconds", "mean radius", "covered", "times products")
    table = [["", *(f"{LATEX[norm]}: {column}" for norm in ("linf", "l2") for column in columns)]]
    most = max(rows["examples"], key=int)
    for (method, examples), both in rows.groupby(["method", "examples"], sort=False):
        line = [str(method) if examples == most else f"{method}, {examples} images"]
        for norm in ("linf", "l2"):
            (here,) = both[both["norm"] == norm].to_dict("records")
            share = f"{100 * float(here['ratio']):.0f} %"
            line += [two(here["seconds"]), here["value"], share, two(here["times_products"])]
        table.append(line)
    return table


def constants(rows: pd.DataFrame) -> Table:
    """Every method's ratio at every radius, and the range of its times."""
    rows = rows[(rows["task"] == "local Lipschitz") & (rows["ratio"] != "")]
    radii = {norm: rows["radius"][rows["norm"] == norm].unique() for norm in ("linf", "l2")}
    heads = [f"{LATEX[norm]}, radius {' / '.join(found)}" for norm, found in radii.items()]
    table = [["", *heads, "seconds a radius", "times products"]]
    for method, here in rows.groupby("method", sort=False):
        ratios = [
            " / ".join(f"{float(r):.3g}" for r in here["ratio"][here["norm"] == norm]) for norm in radii
        ]
        is_timed = (here["seconds"] != "").all()
        times = [spread(list(here[column])) if is_timed else "" for column in ("seconds", "times_products")]
        table.append([str(method), *ratios, *times])
    return table


def by_sparsity(rows: pd.DataFrame) -> Table:
    """Certificate and best attack of both norms at every sparsity."""
    rows = rows.drop_duplicates(["task", "norm", "sparsity", "method"])
    columns = ("certificate", "best attack", "covered", "seconds")
    table = [["sparsity", *(f"{LATEX[norm]}: {column}" for norm in ("linf", "l2") for column in columns)]]
    for sparsity, here in rows[rows["sparsity"] != ""].groupby("sparsity"):
        line = [str(sparsity)]
        for norm in ("linf", "l2"):
            there = here[here["norm"] == norm]
            attack = there["value"][there["task"] == "best attack"].item()
            is_ours = (there["task"] == "certified radius") & (there["method"] == "theory.graph")
            (ours,) = there[is_ours].to_dict("records")
            line += [ours["value"], attack, f"{100 * float(ours['ratio']):.0f} %", two(ours["seconds"])]
        table.append(line)
    return table


def trained(rows: pd.DataFrame) -> Table:
    """Every way of training on every architecture."""
    heads = ["", "seconds a network", "times ours", "times floor", "test accuracy"]
    found = rows[["seconds", "ratio", "times_floor", "accuracy"]].to_numpy().tolist()
    names = rows["architecture"] + ", " + rows["method"]
    return [heads, *([name, two(s), *others] for name, (s, *others) in zip(names, found, strict=True))]


def attacked(rows: pd.DataFrame, *, network: str) -> Table:
    """Every method of every comparison on a network."""
    rows = rows[(rows["network"] == network) & (rows["success"] != "")]
    table = [["", "seconds", "passes", "times products", "success", "mean distance"]]
    for _, here in rows.groupby(["norm", rows["task"] == FGS], sort=False):
        first, compared = here.iloc[0], max(here["compared"][here["compared"] != ""], key=int)
        norm = f"{FGS}, {LATEX[first['norm']]}" if first["task"] == FGS else LATEX[first["norm"]]
        table.append([f"**{norm}, means over {compared} of {first['examples']} images**", *[""] * 5])
        for line in here.to_dict("records"):
            is_peer = line["method"].startswith(("adv-lib", "foolbox", "ART", "torchattacks"))
            name = line["method"] if is_peer else re.sub(r"^\w+", r"`\g<0>`", line["method"])
            if is_peer and line["task"] not in ("steps", FGS):
                name = f"{name}, {line['task']}"
            if line["examples"] != first["examples"]:
                name = f"{name}, {line['examples']} images"
            work = line["passes"], two(line["times_products"])
            table.append([name, two(line["seconds"]), *work, percent(line["success"]), line["mean"]])
    return table


def passes(rows: pd.DataFrame) -> Table:
    """A step's work on both networks."""
    rows = rows[rows["task"] == "logits and gradient"]
    table = [["", "milliseconds", "times products"]]
    for line in rows.to_dict("records"):
        name = f"{line['network']}, {line['examples']} images, {line['method']}"
        table.append([name, two(str(1000 * float(line["seconds"]))), two(line["times_products"])])
    return table


def compacted(rows: pd.DataFrame) -> Table:
    """How many times slower the whole network is, by task and sparsity, and the dense one."""
    rows = rows[rows["peer"].isin(["dense, whole network", "dense product", "whole network"])]
    seconds = rows.pivot(index="task", columns="sparsity", values="seconds").astype(float)
    head, *lines = _ratios(rows, "task")
    dense, last = head[1], head[-1]
    beside = head[2:][-2:]
    table = [[*head, *(f"dense, beside {sparsity}" for sparsity in beside), f"seconds at {last}"]]
    for task, *ratios in lines:
        saved = [two(str(seconds[dense][task] / seconds[sparsity][task])) for sparsity in beside]
        table.append([task, *ratios, *saved, two(str(seconds[last][task]))])
    return table


def scores(rows: pd.DataFrame) -> Table:
    """CLEVER by both implementations."""
    table = [["sparsity", "seconds", "ART's seconds", "score", "ART's", "at most"]]
    for line in rows[rows["task"] == "CLEVER"].to_dict("records"):
        times = two(line["seconds"]), two(line["peer_seconds"])
        table.append([line["sparsity"], *times, line["score"], line["peer_score"], line["most_score"]])
    return table


def convolved(rows: pd.DataFrame) -> Table:
    """How many times slower the whole LeNet-5 is, by attack and sparsity, and what is left of it."""
    head, *lines = _ratios(rows, "attack")
    left = rows.drop_duplicates("sparsity")["channels"]
    return [head, ["channels and hidden units left", *left], *lines]


def hidden(rows: pd.DataFrame) -> Table:
    """Both ways in both precisions."""
    table = [["", "seconds", "a gradient for every class", "ratio"]]
    for line in rows.to_dict("records"):
        given = "nearest boundary at x known" if line["given"] == "True" else "from the start"
        times = two(line["seconds"]), two(line["gradients"]), two(line["ratio"])
        table.append([f"{line['precision']}, {given}", *times])
    return table


def _ratios(rows: pd.DataFrame, name: str) -> Table:
    found = rows.pivot(index=name, columns="sparsity", values="ratio").loc[rows[name].unique()]
    lines = zip(found.index, found.to_numpy().tolist(), strict=True)
    return [["sparsity", *found.columns], *([task, *map(two, ratios)] for task, ratios in lines)]


TABLES: dict[str, tuple[str, Callable[[pd.DataFrame], Table]]] = {
    "certified radii": ("certificates", certified),
    "local constants": ("certificates", constants),
    "certificates by sparsity": ("certificates", by_sparsity),
    "training": ("training", trained),
    "attacks on LeNet-300-100": ("attacks", partial(attacked, network="784-300-100-10")),
    "attacks on LeNet-5": ("attacks", partial(attacked, network="LeNet-5")),
    "one pass": ("attacks", passes),
    "hidden norms": ("hidden_norms", hidden),
    "compaction": ("compaction", compacted),
    "convolutions": ("convolutions", convolved),
    "CLEVER": ("compaction", scores),
}


def markdown(table: Table) -> str:
    """The table as Markdown."""
    head, *lines = (" ".join(["|", *(f"{cell} |".lstrip() for cell in line)]) for line in table)
    return "\n".join([head, "|---" * len(table[0]) + "|", *lines])


def filled(text: str, results: Path = RESULTS) -> str:
    """The page with its tables as the results have them."""

    def block(found: re.Match[str]) -> str:
        name, make = TABLES[found[2]]
        if not (results / f"{name}.json").exists():
            return found[0]
        rows = pd.read_csv(results / f"{name}.csv", dtype=str, keep_default_na=False)
        return found[1] + markdown(make(rows)) + found[3]

    return _BLOCK.sub(block, text)


@click.command()
def main() -> None:
    """Write the tables of docs/benchmarks.md."""
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
