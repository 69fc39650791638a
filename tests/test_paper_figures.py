"""Figures show the table's numbers, fit their canvas, and mark what must not be read as robustness."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from paper_figures import accuracy, margin_gradient, mask_ladder, robustness, sandwich
from paper_figures.__main__ import main
from paper_figures.curves import arithmetic
from paper_figures.gallery import ENTRIES, caption
from tests.results_table import network_table

_PIXEL = 1.0
_DENSE_GRID = (0.0, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.999, 1.0)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return network_table()


def _line(axes: Axes, label: str) -> Line2D:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


def _values(axes: Axes, label: str) -> np.ndarray:
    return np.asarray(_line(axes, label).get_ydata(), dtype=float)


def _means(table: pd.DataFrame, how: str = "mean", **wanted: str) -> np.ndarray:
    for column, value in wanted.items():
        table = table[table[column] == value]
    by_sparsity = table.groupby("sparsity")["value"]
    means = by_sparsity.mean() if how == "mean" else by_sparsity.apply(stats.gmean)
    return means.to_numpy()


def _assert_laid_out(figure: Figure) -> None:
    """All ink lies on the canvas, legends touch no panel, tick labels do not touch each other."""
    figure.draw_without_rendering()
    ink = figure.get_tightbbox()
    assert ink.x0 >= -_PIXEL / figure.dpi
    assert ink.y0 >= -_PIXEL / figure.dpi
    assert ink.x1 <= figure.get_figwidth() + _PIXEL / figure.dpi
    assert ink.y1 <= figure.get_figheight() + _PIXEL / figure.dpi
    for axes in figure.axes:
        panel = axes.get_tightbbox()
        assert panel is not None
        legends = [*figure.legends, *([axes.get_legend()] if axes.get_legend() else [])]
        for legend in legends:
            assert legend is not None
            box = legend.get_window_extent()
            for line in axes.lines:
                points = line.get_transform().transform(np.column_stack(line.get_data()).astype(float))
                assert not any(box.contains(*point) for point in points[np.isfinite(points).all(1)])
        assert not any(legend.get_window_extent().overlaps(panel) for legend in figure.legends)
        shown = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        if axes.xaxis.get_tick_params()["labelbottom"]:
            assert all(one.x1 < other.x0 for one, other in pairwise(sorted(shown, key=lambda box: box.x0)))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"families": ("mlp",), "sparsities": (0.0, 0.3), "seeds": 1},
        {"families": ("linear",), "sparsities": _DENSE_GRID, "seeds": 2},
    ],
    ids=["full", "one network, two sparsities, one seed", "linear alone, dense grid"],
)
def test_every_figure_fits_its_canvas(entry, shape) -> None:
    table = network_table(**shape)
    _assert_laid_out(entry.draw(table))
    assert ("one seed" in caption(entry, table)) == (shape.get("seeds") == 1)


def test_sparsity_labels_of_narrow_panels_do_not_touch() -> None:
    _assert_laid_out(accuracy.figure(network_table(sparsities=_DENSE_GRID, seeds=1)))


def test_robustness_draws_the_mean_over_seeds(table) -> None:
    panels = robustness.figure(table).axes
    titles = [axes.get_title(loc="left") for axes in panels[:3]]
    assert titles == ["Linear, two classes", "Linear, all classes", "ReLU network"]
    for axes, family in zip(panels[:3], ("linear-binary", "linear", "mlp"), strict=True):
        expected = _means(
            table, family=family, pruning="magnitude", quantity="mean_radius", method="best", norm="l2"
        )
        np.testing.assert_allclose(_values(axes, "magnitude, retrained"), expected)
    exact = _means(
        table, family="linear", pruning="dense", quantity="mean_radius", method="exact", norm="linf"
    )
    assert any(line.get_marker() == "o" and np.allclose(line.get_ydata(), exact) for line in panels[4].lines)
    clipped = _means(table, family="mlp", pruning="dense", quantity="fgs_accuracy", method="fgs in the box")
    np.testing.assert_allclose(_values(panels[8], "dense, trained equally long"), clipped)


def test_band_is_a_t_interval() -> None:
    draws = pd.DataFrame({0.0: [1.0, 2.0, 4.0], 0.5: [3.0, 3.0, 3.0]})
    curve = arithmetic(draws)
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    np.testing.assert_allclose([curve.low[0], curve.high[0]], [low, high])
    np.testing.assert_allclose([curve.low[1], curve.high[1]], [3.0, 3.0])


def test_mean_is_absent_where_a_seed_has_no_finite_value() -> None:
    curve = arithmetic(pd.DataFrame({0.0: [1.0, np.inf], 0.5: [1.0, np.nan], 0.9: [1.0, 3.0]}))
    np.testing.assert_array_equal(np.isnan(curve.mean), [True, True, False])


def _collapsed(*, capped: float) -> pd.DataFrame:
    """Random masks have destroyed the networks of the last sparsity, whose mean radius became huge."""
    table = network_table(families=("linear",))
    here = (table["pruning"] == "random") & (table["sparsity"] == 0.9)
    for quantity, value in {"accuracy": 0.1, "capped": capped, "mean_radius": 50.0}.items():
        table.loc[here & (table["quantity"] == quantity), "value"] = value
    return table


@pytest.mark.parametrize(("capped", "drawn"), [(3.0, True), (4.0, False)])
def test_collapsed_networks_never_look_robust(capped: float, drawn: bool) -> None:  # noqa: FBT001
    """Thin while at most 1 % of the 360 examples are capped, then absent; never inside the axis."""
    for axes in robustness.figure(_collapsed(capped=capped)).axes[:2]:
        label = "random, not retrained"
        assert np.isnan(_values(axes, label)[-1])
        colour = _line(axes, label).get_color()
        (thin,) = [line for line in axes.lines if line.get_alpha() and line.get_color() == colour]
        last = np.asarray(thin.get_ydata(), dtype=float)[-1]
        assert last == 50.0 if drawn else np.isnan(last)
        assert axes.get_ylim()[1] < 5


def test_accuracy_shows_where_curves_fade(table) -> None:
    axes = accuracy.figure(table).axes[0]
    dense = _means(table, family="linear-binary", pruning="dense", quantity="accuracy")
    np.testing.assert_allclose(_values(axes, "dense, trained equally long"), dense)
    assert any(np.allclose(line.get_ydata(), 0.9 * dense) for line in axes.lines)


def test_mask_ladder_draws_geometric_means(table) -> None:
    l2, linf = mask_ladder.figure(table).axes
    for axes, norm, label, method in [
        (l2, "l2", "P2: second moments", "P2"),
        (linf, "linf", "M: largest absolute sums (the paper's)", "M"),
    ]:
        expected = _means(table, "geometric", quantity="expected_lipschitz", norm=norm, method=method)
        np.testing.assert_allclose(_values(axes, label), expected)
        assert axes.get_yscale() == "log"


def test_sandwich_shows_certificate_and_attack(table) -> None:
    axes = sandwich.figure(table).axes[1]
    for label, method in [("certificate", "certificate"), ("best attack", "best")]:
        expected = _means(
            table, "geometric", family="mlp", pruning="magnitude", quantity="mean_radius", norm="linf",
            method=method,
        )  # fmt: skip
        np.testing.assert_allclose(_values(axes, label), expected)


def test_margin_over_gradient_stands_beside_the_radius(table) -> None:
    axes = margin_gradient.figure(table).axes[4]
    wanted = {"family": "mlp", "pruning": "dense"}
    parts = [
        _means(table, "geometric", **wanted, quantity=quantity, norm=norm)
        for quantity, norm in [("accuracy", ""), ("margin", "l2"), ("gradient_norm", "l2")]
    ]
    crosses = [line.get_ydata() for line in axes.lines if line.get_marker() == "x"]
    assert any(np.allclose(values, parts[0] * parts[1] / parts[2]) for values in crosses)


def test_command_writes_every_figure(tmp_path: Path) -> None:
    source = tmp_path / "results.parquet"
    network = network_table(families=("linear",), seeds=1)
    examples = network.assign(example=pd.array([0] * len(network), dtype="Int32"), value=1e6)
    pd.concat([network, examples]).to_parquet(source)
    result = CliRunner().invoke(main, [str(source), "--out", str(tmp_path / "figures")])
    assert result.exit_code == 0, result.output
    for entry in ENTRIES:
        assert (tmp_path / "figures" / f"{entry.name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in (tmp_path / "figures" / f"{entry.name}.svg").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "not parquet", "another table", "a folder"])
def test_command_refuses_a_bad_table_in_one_line(tmp_path: Path, damage: str) -> None:
    source = tmp_path / "results.parquet"
    if damage == "not parquet":
        source.write_bytes(b"nothing")
    elif damage == "another table":
        pd.DataFrame({"example": pd.array([None], dtype="Int32"), "value": [1.0]}).to_parquet(source)
    elif damage == "a folder":
        source.mkdir()
    result = CliRunner().invoke(main, [str(source), "--out", str(tmp_path / "figures")])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert str(source) in result.stderr
