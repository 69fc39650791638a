"""Figures show the table's numbers, fit their canvas, and mark what must not be read as robustness."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from empirical.claims import verdicts
from empirical.cli.main import main as program
from paper_figures import (
    accuracy,
    activation_sparsity,
    attacks,
    controls,
    curves,
    gradient_masking,
    margin_gradient,
    mask_ladder,
    mask_prediction,
    robustness,
    sandwich,
    trade_off,
)
from paper_figures.axes import sparsity_axis
from paper_figures.command import DATA, figures
from paper_figures.curves import arithmetic
from paper_figures.files import BadTable, table_names
from paper_figures.gallery import ENTRIES, caption, drawn
from paper_figures.layout import WIDTHS
from tests.results_table import CONTROLS, network_table

_PIXEL = 1.0
_DENSE_GRID = (0.0, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.999, 1.0)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return network_table()


def _panels(figure: Figure | None) -> list[Axes]:
    """The panels of a figure that has something to show, row by row."""
    assert figure is not None
    return figure.axes


def _points(line: Line2D) -> np.ndarray:
    """(k, 2)."""
    return np.column_stack(line.get_data()).astype(float)


def _stars(axes: Axes) -> np.ndarray:
    """The starred points, (k, 2)."""
    return np.vstack([_points(line) for line in axes.lines if line.get_marker() == "*"])


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
                points = line.get_transform().transform(_points(line))
                assert not any(box.contains(*point) for point in points[np.isfinite(points).all(1)])
        assert not any(legend.get_window_extent().overlaps(panel) for legend in figure.legends)
        shown = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        if axes.xaxis.get_tick_params()["labelbottom"]:
            assert all(one.x1 < other.x0 for one, other in pairwise(sorted(shown, key=lambda box: box.x0)))


_LINEAR = ["robustness", "accuracy", "controls", "trade_off"]
_RELU = [*_LINEAR, "gradient_masking", "margin_gradient"]
_SHAPES = {
    "full": ({}, [entry.name for entry in ENTRIES if entry.name not in ("activation_sparsity", "attacks")]),
    "one network, two sparsities, one seed": (
        {"families": ("mlp",), "sparsities": (0.0, 0.3), "seeds": 1},
        [entry.name for entry in ENTRIES if entry.name not in ("activation_sparsity", "attacks")],
    ),
    "linear alone, dense grid": (
        {"families": ("linear",), "sparsities": _DENSE_GRID, "seeds": 2},
        _LINEAR,
    ),
    "convolutional, to 99.85 %": (
        {"families": ("lenet-5", "vgg", "resnet-32"), "sparsities": (*_DENSE_GRID[:-1], 0.9985), "seeds": 2},
        _RELU,
    ),
    "controls without dense": (
        {"families": ("lenet-5",), "conditions": CONTROLS[1:]},
        _RELU,
    ),
    "L1 terms alone": (
        {"families": ("mlp",), "conditions": ("dense", "activation"), "sparsities": (0.0, 1e-3, 0.1)},
        ["activation_sparsity"],
    ),
    "unknown names": ({"families": ("transformer",), "conditions": ("dense", "by hand")}, ["accuracy"]),
}
_NARROW = ("controls without dense", "L1 terms alone")


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        *((shape, "two-column") for shape in _SHAPES if shape not in _NARROW),
        *((shape, "one-column") for shape in ("full", *_NARROW)),
    ],
)
def test_what_a_table_holds_is_drawn_on_the_canvas_and_no_more(shape, width) -> None:
    settings, expected = _SHAPES[shape]
    table = network_table(**settings)
    found = {entry.name: figure for entry, figure in drawn(table, width=WIDTHS[width])}
    if shape == "unknown names":
        assert set(expected) <= set(found)
    else:
        assert list(found) == sorted(expected, key=[entry.name for entry in ENTRIES].index)
    for figure in found.values():
        assert figure.get_figwidth() == WIDTHS[width]
        assert all(axes.has_data() for axes in figure.axes)
        _assert_laid_out(figure)


def test_small_ticks_stand_below_every_panel_where_something_was_measured() -> None:
    """On the canvas: at the axis's lower end, at the places of the levels."""
    table = network_table(families=("linear",))
    figure = accuracy.figure(table)
    assert figure is not None
    (axes,), (ticks,) = figure.axes, figure.artists
    assert isinstance(ticks, Line2D)
    figure.draw_without_rendering()
    drawn_at = ticks.get_transform().transform(ticks.get_xydata())
    levels = np.unique(table["sparsity"])
    across = axes.transData.transform(np.column_stack([levels, np.ones_like(levels)]))[:, 0]
    np.testing.assert_allclose(drawn_at, np.column_stack([across, np.full_like(across, axes.bbox.y0)]))


@pytest.mark.parametrize("seeds", [1, 3])
def test_captions_name_seeds_and_examples(seeds: int) -> None:
    table = network_table(families=("linear",), seeds=seeds)
    told = caption(ENTRIES[0], table)
    assert ("one seed" in told) == (seeds == 1)
    assert ("over 3 seeds, band: pointwise 95 % t-interval over seeds" in told) == (seeds == 3)
    assert told.endswith("n = 360 test examples.")


def test_captions_name_the_examples_that_were_looked_around() -> None:
    table = network_table(families=("mlp",))
    (entry,) = [entry for entry in ENTRIES if entry.name == "around_examples"]
    assert "of the first few test examples" in caption(entry, table)
    row = table.iloc[:1].assign(quantity="cases", method="CROWN <= attack", norm="l2", value=50.0)
    told = caption(entry, pd.concat([table, row], ignore_index=True))
    assert "of the first 50 test examples" in told
    assert "n = " not in told


def test_captions_name_the_steps_of_fgs() -> None:
    table = network_table(families=("mlp",))
    assert "FGS accuracy at eps = 0.1 (lines" in caption(ENTRIES[0], table)
    other = table["quantity"].eq("fgs_accuracy") & table["method"].eq("fgs")
    table.loc[other, "eps"] = 0.05
    assert "FGS accuracy at eps = 0.05, 0.1 (lines" in caption(ENTRIES[0], table)


def test_number_of_examples_follows_from_shares_where_no_check_counts_them() -> None:
    table = network_table(families=("lenet-5",))
    assert "test examples" not in caption(ENTRIES[0], table)  # no number of examples has such shares
    shares = table["quantity"].isin(["accuracy", "fgs_accuracy"])
    table.loc[shares, "value"] = (table.loc[shares, "value"] * 500).round() / 500
    assert caption(ENTRIES[0], table).endswith("n = 500 test examples.")


def _attacked_in(norm: str, **settings) -> pd.DataFrame:
    """Networks that no attack was asked for in the other norm; certificates and ceilings have both."""
    table = network_table(**settings)
    attacked = table["method"].isin(["fgs", "deepfool", "best"]) & (table["quantity"] != "fgs_accuracy")
    return table[~attacked | (table["norm"] == norm)]


def _not_measured(figure: Figure | None) -> list[bool]:
    """Which panels say so; these have no scale."""
    found = []
    for axes in _panels(figure):
        found.append([text.get_text() for text in axes.texts] == ["not measured"])
        assert found[-1] == (not len(axes.get_yticks()))
    return found


def test_a_norm_without_an_attack_is_left_out_or_said_not_to_be_measured() -> None:
    table = _attacked_in("linf", families=("mlp",))
    figure = robustness.figure(table)
    labels = [axes.get_ylabel() for axes in _panels(figure) if axes.get_ylabel()]
    assert labels[0] == r"mean radius $R_\infty$"
    assert not any(_not_measured(figure))
    assert _not_measured(margin_gradient.figure(table)) == [False] * 4 + [True, False]
    assert _not_measured(controls.figure(_attacked_in("l2", families=("mlp",)))) == [False, True, False]


def test_a_family_that_was_attacked_less_says_so_beside_the_others() -> None:
    both = pd.concat([network_table(families=("linear",)), _attacked_in("linf", families=("mlp",))])
    figure = robustness.figure(both)
    assert _not_measured(figure) == [False, True] + [False] * 6
    assert figure is not None
    _assert_laid_out(figure)


def test_captions_say_that_surgery_leaves_less_than_its_thresholds_cut() -> None:
    for condition in ("surgery", "magnitude"):
        table = network_table(families=("mlp",), conditions=("dense", condition))
        assert ("thresholds cut at first" in caption(ENTRIES[0], table)) == (condition == "surgery")


def test_data_sets_of_one_family_stay_apart() -> None:
    tables = [network_table(families=("mlp",), dataset=name) for name in ("mnist", "cifar10")]
    tables[1]["value"] *= 2
    panels = _panels(robustness.figure(pd.concat(tables)))
    for axes, rows, name in zip((panels[1], panels[0]), tables, ("mnist", "cifar10"), strict=True):
        assert axes.get_title(loc="left").startswith(f"ReLU network, {name}")
        wanted = {"pruning": "magnitude", "quantity": "mean_radius", "method": "best", "norm": "l2"}
        np.testing.assert_allclose(_values(axes, "magnitude, retrained"), _means(rows, **wanted))


def test_robustness_draws_the_mean_over_seeds(table) -> None:
    panels = _panels(robustness.figure(table))
    titles = [axes.get_title(loc="left").strip() for axes in panels[:3]]
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
    np.testing.assert_allclose(_values(panels[8], "dense, equally trained"), clipped)


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


@pytest.mark.parametrize(("capped", "drawn"), [(0.0, True), (1.0, False)])
def test_collapsed_networks_never_look_robust(capped: float, drawn: bool) -> None:  # noqa: FBT001
    """Thin while none of their examples is capped, then absent; never inside the axis."""
    for axes in _panels(robustness.figure(_collapsed(capped=capped)))[:2]:
        label = "random, not retrained"
        assert np.isnan(_values(axes, label)[-1])
        colour = _line(axes, label).get_color()
        (thin,) = [line for line in axes.lines if line.get_alpha() and line.get_color() == colour]
        last = np.asarray(thin.get_ydata(), dtype=float)[-1]
        assert last == 50.0 if drawn else np.isnan(last)
        assert axes.get_ylim()[1] < 5


@pytest.mark.parametrize("pruning", ["magnitude", "dense"])
def test_one_capped_example_of_one_network_on_either_side_leaves_a_gain_out(pruning: str) -> None:
    table = network_table(families=("linear",))
    first = table["seed"] == table["seed"].min()
    one = first & (table["sparsity"] == 0.5) & (table["quantity"] == "capped") & (table["pruning"] == pruning)
    assert one.any()
    levels = np.array([0.0, 0.5, 0.9])
    for capped, lost in ((0.0, False), (1.0, True)):
        table.loc[one, "value"] = capped
        axes = _panels(controls.figure(table))[0]
        gain = _values(axes, "magnitude, retrained")
        np.testing.assert_array_equal(np.isnan(gain), lost & (levels == 0.5))


def test_figures_and_claims_mean_the_same_by_collapse() -> None:
    assert curves.COLLAPSE == verdicts.COLLAPSE


@pytest.mark.parametrize(("levels", "dots"), [([0.0], [True]), ([0.0, 0.5], [])])
def test_a_single_network_is_a_dot_and_a_curve_has_none(table, levels, dots) -> None:
    axes = _panels(accuracy.figure(table[table["sparsity"].isin(levels)]))[0]
    line = _line(axes, "dense, equally trained")
    assert len(_points(line)) == len(levels)
    assert list(line.get_markevery() if line.get_marker() == "o" else []) == dots  # type: ignore[arg-type]


def test_accuracy_shows_where_curves_fade(table) -> None:
    axes = _panels(accuracy.figure(table))[0]
    dense = _means(table, family="linear-binary", pruning="dense", quantity="accuracy")
    np.testing.assert_allclose(_values(axes, "dense, equally trained"), dense)
    assert any(np.allclose(line.get_ydata(), 0.9 * dense) for line in axes.lines)


def test_mask_ladder_draws_geometric_means(table) -> None:
    l2, linf = _panels(mask_ladder.figure(table))
    for axes, norm, label, method in [
        (l2, "l2", "P2: second moments", "P2"),
        (linf, "linf", "M: largest absolute sums", "M"),
    ]:
        expected = _means(table, "geometric", quantity="expected_lipschitz", norm=norm, method=method)
        np.testing.assert_allclose(_values(axes, label), expected)
        assert axes.get_yscale() == "log"


def test_sandwich_shows_certificate_and_attack(table) -> None:
    axes = _panels(sandwich.figure(table))[1]
    for label, method in [("certificate", "certificate"), ("best attack", "best")]:
        expected = _means(
            table, "geometric", family="mlp", pruning="magnitude", quantity="mean_radius", norm="linf",
            method=method,
        )  # fmt: skip
        np.testing.assert_allclose(_values(axes, label), expected)


def test_sandwich_ends_where_networks_have_collapsed_or_the_cap_rules() -> None:
    table = network_table(families=("mlp",))
    own = (table["pruning"] == "magnitude") & (table["sparsity"] == 0.9)
    table.loc[own & (table["quantity"] == "accuracy"), "value"] = 0.1
    axes = _panels(sandwich.figure(table))[1]
    for label in ("certificate", "best attack", "universal ceiling"):
        assert np.isnan(_values(axes, label)).tolist() == [False, False, True]
    assert np.isfinite(_faded_ends(axes)).tolist() == [True] * 5  # one for each method
    capped = own & (table["quantity"] == "capped") & (table["method"] == "best")
    table.loc[capped, "value"] = 360
    assert np.isfinite(_faded_ends(_panels(sandwich.figure(table))[1])).sum() == 4


def _faded_ends(axes: Axes) -> np.ndarray:
    """Where the thin lines of what has collapsed end."""
    thin = [line for line in axes.lines if str(line.get_label()).startswith("_")]
    return np.array([np.asarray(line.get_ydata())[-1] for line in thin])


def test_margin_over_gradient_stands_beside_the_radius(table) -> None:
    axes = _panels(margin_gradient.figure(table))[4]
    wanted = {"family": "mlp", "pruning": "dense"}
    parts = [
        _means(table, "geometric", **wanted, quantity=quantity, norm=norm)
        for quantity, norm in [("accuracy", ""), ("margin", "l2"), ("gradient_norm", "l2")]
    ]
    crosses = [line.get_ydata() for line in axes.lines if line.get_marker() == "x"]
    assert any(np.allclose(values, parts[0] * parts[1] / parts[2]) for values in crosses)


def _ratio(table: pd.DataFrame, condition: str, *, first: bool = False, **wanted: str) -> pd.DataFrame:
    """A condition over the dense networks of the same seed: at the same sparsity, or at the first."""
    for column, value in wanted.items():
        table = table[table[column] == value]
    own, dense = (
        table[table["pruning"] == name].pivot(index="seed", columns="sparsity", values="value")
        for name in (condition, "dense")
    )
    return own.div(own[0.0], axis=0) if first else own / dense


@pytest.mark.parametrize(
    ("condition", "label", "first"),
    [
        ("global", "one threshold, retrained", False),
        ("small-dense", "smaller dense network", False),
        ("one-shot", "magnitude, not retrained", True),
        ("lottery", "magnitude, rewound", True),
    ],
)
def test_controls_are_held_against_networks_trained_as_long(condition: str, label: str, first: bool) -> None:  # noqa: FBT001
    table = network_table(families=("mlp",), conditions=CONTROLS)
    l2, linf, clean = _panels(controls.figure(table))
    for axes, norm in ((l2, "l2"), (linf, "linf")):
        ratio = _ratio(table, condition, first=first, quantity="mean_radius", method="best", norm=norm)
        gain = 100 * (ratio - 1)
        np.testing.assert_allclose(_values(axes, label), gain.mean(), atol=1e-9)
        low, high = stats.t.interval(0.95, 2, loc=gain[0.9].mean(), scale=stats.sem(gain[0.9]))
        ends = {
            y
            for band in axes.collections
            for x, y in np.asarray(band.get_paths()[0].vertices)
            if np.isclose(x, 0.9)
        }
        assert all(np.isclose(list(ends), end).any() for end in (low, high))
    rows = table[table["quantity"] == "accuracy"]
    rows = rows[rows["method"] == "clean"].pivot(
        index="seed", columns=["pruning", "sparsity"], values="value"
    )
    against = rows[condition][[0.0]].to_numpy() if first else rows["dense"]
    np.testing.assert_allclose(_values(clean, label), (100 * (rows[condition] - against)).mean(), atol=1e-9)


@pytest.mark.parametrize(
    ("condition", "label", "first"),
    [("global", "one threshold, retrained", False), ("lottery", "magnitude, rewound", True)],
)
def test_a_gain_stands_over_the_accuracy_that_it_costs(condition: str, label: str, first: bool) -> None:  # noqa: FBT001
    table = network_table(families=("mlp",), conditions=CONTROLS)
    rows = table[(table["quantity"] == "accuracy") & (table["method"] == "clean")]
    rows = rows.pivot(index="seed", columns=["pruning", "sparsity"], values="value")
    against = rows[condition][[0.0]].to_numpy() if first else rows["dense"]
    lost = 100 * (against - rows[condition])
    kept = (rows[condition] >= 0.9 * rows["dense"]).all()
    assert kept.any()
    for axes, norm in zip(_panels(trade_off.figure(table)), ("l2", "linf"), strict=True):
        ratio = _ratio(table, condition, first=first, quantity="mean_radius", method="best", norm=norm)
        (bars,) = [bars for bars in axes.containers if bars.get_label() == label]
        assert isinstance(bars, ErrorbarContainer)
        line, _, (reach,) = bars.lines
        expected = np.column_stack([lost.mean(), 100 * (ratio - 1).mean()])[kept]
        np.testing.assert_allclose(_points(line), expected, atol=1e-9)
        half = [np.ptp(segment[:, 1]) / 2 for segment in reach.get_segments()]
        spread = 100 * stats.sem(ratio.loc[:, kept]) * stats.t.ppf(0.975, len(ratio) - 1)
        np.testing.assert_allclose(half, spread, atol=1e-9)


def test_controls_without_dense_networks_leave_out_what_was_trained_longer() -> None:
    table = network_table(families=("mlp",), conditions=CONTROLS[1:])
    shown = {line.get_label() for line in _panels(controls.figure(table))[0].lines}
    assert {"magnitude, not retrained", "magnitude, rewound", "random, not retrained"} <= shown
    assert not {"one threshold, retrained", "smaller dense network", "random, retrained"} & shown


def _attacked_often() -> pd.DataFrame:
    """Networks attacked by FMN and C&W too, with values of their own."""
    table = network_table(families=("mlp", "linear"))
    again = table[table["quantity"].isin(["mean_radius", "capped"]) & (table["method"] == "deepfool")]
    more = [again.assign(method="fmn", value=again["value"] / 2)]
    more.append(again[again["norm"] == "l2"].assign(method="cw", value=lambda rows: rows["value"] / 3))
    more = [rows.assign(value=rows["value"].where(rows["quantity"] != "capped", 0.0)) for rows in more]
    return pd.concat([table, *more], ignore_index=True)


def test_every_attack_has_its_curve(table) -> None:
    assert attacks.figure(table) is None  # two attacks and the strongest of them
    shown = _attacked_often()
    l2, linf, l2_excess, linf_excess = _panels(attacks.figure(shown))
    assert len(l2.lines) == 2 * 5  # faded lines too; nothing of the linear classifiers
    for axes, norm, label, wanted in [
        (l2, "l2", "dense, equally trained", {"pruning": "dense", "method": "best"}),
        (l2, "l2", "C&W", {"pruning": "magnitude", "method": "cw"}),
        (l2, "l2", "strongest attack", {"pruning": "magnitude", "method": "best"}),
        (linf, "linf", "FGS, smallest step", {"pruning": "magnitude", "method": "fgs"}),
        (linf, "linf", "FMN", {"pruning": "magnitude", "method": "fmn"}),
    ]:
        expected = _means(shown, family="mlp", quantity="mean_radius", norm=norm, **wanted)
        np.testing.assert_allclose(_values(axes, label), expected)
    assert "C&W" not in [line.get_label() for line in linf.lines]
    ours = shown[(shown["family"] == "mlp") & (shown["pruning"] == "magnitude")]
    ours = ours[ours["quantity"] == "mean_radius"]
    for axes, norm, label, method in [(l2_excess, "l2", "C&W", "cw"), (linf_excess, "linf", "FMN", "fmn")]:
        of = ours[ours["norm"] == norm].pivot_table(
            index=["seed", "sparsity"], columns="method", values="value"
        )
        excess = 100 * (of[method] / of["best"] - 1)
        np.testing.assert_allclose(_values(axes, label), excess.groupby("sparsity").mean())
        assert axes.get_ylim()[0] > 0
        assert "strongest attack" not in [line.get_label() for line in axes.lines]


_WEAK = (1.0, 1.1, 1.2, 1.15, 1.1)
_STRONG = (1.0, 0.9, 1.05, 1.06, 1.01)


def _masked_gradients() -> pd.DataFrame:
    """FGS sees gains from 10 to 20 %, the strongest attack a loss of 10 % at first, then gains below 10 %."""
    sparsities = (0.0, 0.5, 0.9, 0.95, 0.97)
    table = network_table(families=("mlp",), conditions=("dense", "magnitude"), sparsities=sparsities)
    radius = (table["quantity"] == "mean_radius") & (table["norm"] == "linf")
    for method, values in {"fgs": _WEAK, "best": _STRONG}.items():
        for sparsity, value in zip(sparsities, values, strict=True):
            here = radius & (table["method"] == method) & (table["sparsity"] == sparsity)
            table.loc[here, "value"] = np.where(table.loc[here, "pruning"] == "magnitude", value, 1.0)
    return table


def test_gradient_masking_shows_both_attacks_and_where_they_differ() -> None:
    _, above, _, below = _panels(gradient_masking.figure(_masked_gradients()))
    np.testing.assert_allclose(_values(above, "FGS or DeepFool"), _WEAK)
    np.testing.assert_allclose(_values(above, "strongest attack"), _STRONG)
    np.testing.assert_allclose(_stars(above), [(0.9, 1.2), (0.95, 1.06)])
    (shade,) = [band for band in above.collections if band.get_gid() == "disagreement"]
    (outline,) = shade.get_paths()
    # As far as half way to the neighbours of 0.5, in the logarithm of what remains.
    ends = [1 - np.sqrt(1 - 0.5), 1 - np.sqrt((1 - 0.5) * (1 - 0.9))]
    np.testing.assert_allclose(np.unique(np.asarray(outline.vertices)[:, 0].round(12)), ends)
    np.testing.assert_allclose(
        _values(below, "magnitude, retrained"), 100 * (np.divide(_WEAK, _STRONG) - 1), atol=1e-9
    )


def test_attacks_that_agree_are_not_shaded() -> None:
    table = _masked_gradients()
    weak = (table["method"] == "fgs") & (table["quantity"] == "mean_radius")
    strong = (table["method"] == "best") & (table["norm"] == "linf") & (table["quantity"] == "mean_radius")
    table.loc[weak, "value"] = 1.02 * table.loc[strong, "value"].to_numpy()
    above = _panels(gradient_masking.figure(table))[1]
    (shade,) = [band for band in above.collections if band.get_gid() == "disagreement"]
    assert not shade.get_paths()


def test_mask_prediction_stands_beside_the_measured_radius(table) -> None:
    l2, linf, clean = _panels(mask_prediction.figure(table))
    wanted = {"family": "mlp", "pruning": "random", "quantity": "mean_radius"}
    for axes, norm in ((l2, "l2"), (linf, "linf")):
        stars = _stars(axes)[:, 0]
        for label, method, star in zip(
            ("measured, best attack", "moment propagation"),
            ("best", "moment propagation"),
            stars,
            strict=True,
        ):
            means = _means(table, **wanted, norm=norm, method=method)
            np.testing.assert_allclose(_values(axes, label), means)
            assert star == (0.0, 0.5, 0.9)[means.argmax()]
    measured = _means(table, family="mlp", pruning="random", quantity="accuracy", method="clean")
    np.testing.assert_allclose(_values(clean, "measured, best attack"), measured)


def test_alpha_star_never_stands_where_accuracy_collapsed(table) -> None:
    damaged = table.copy()
    here = (damaged["pruning"] == "random") & (damaged["sparsity"] == 0.9) & (damaged["family"] == "mlp")
    damaged.loc[here & (damaged["quantity"] == "accuracy"), "value"] = 0.1
    damaged.loc[here & (damaged["quantity"] == "mean_radius"), "value"] = 50.0
    for axes in _panels(mask_prediction.figure(damaged))[:2]:
        stars = _stars(axes)[:, 0]
        assert len(stars) == 2
        assert max(stars) < 0.9


def test_activation_sparsity_is_drawn_against_the_achieved_share() -> None:
    table = network_table(families=("mlp",), conditions=("dense", "activation"), sparsities=(0.0, 1e-3, 0.1))
    panels = _panels(activation_sparsity.figure(table))
    own = table[table["pruning"] == "activation"]
    shares = own.groupby("sparsity")["achieved_sparsity"].mean()
    weak, strong = "FGS or DeepFool", "strongest attack"
    for axes, norm, attack in zip(panels, ("l2", "linf"), ("deepfool", "fgs"), strict=False):
        for label, method in {weak: attack, strong: "best"}.items():
            radii = table[(table["quantity"] == "mean_radius") & (table["method"] == method)]
            radii = radii[radii["norm"] == norm].pivot_table(
                index="seed", columns=["pruning", "sparsity"], values="value", observed=True
            )
            np.testing.assert_allclose(_points(_line(axes, label))[:, 0], shares)
            np.testing.assert_allclose(
                _values(axes, label), (radii["activation"] / radii["dense"]).mean(), rtol=1e-12
            )
    for condition, label in {
        "activation": "L1 term on activations",
        "dense": "dense, equally trained",
    }.items():
        means = _means(table, pruning=condition, quantity="accuracy", method="clean", norm="")
        np.testing.assert_allclose(_values(panels[3], label), means)


def test_a_sparsity_of_one_leaves_room_for_the_others() -> None:
    axes = Figure().add_subplot()
    levels = np.array([0.0, 0.5, 0.9, 1.0])
    axes.plot(levels, levels)
    sparsity_axis(axes, levels)
    places = axes.transAxes.inverted().transform(axes.transData.transform(np.c_[levels, levels]))[:, 0]
    assert np.all(np.diff(places) > 0.04)
    assert places[0] >= 0
    assert places[-1] <= 1


def test_networks_of_an_l1_term_never_stand_on_the_axis_of_sparsities() -> None:
    pruned = network_table(families=("mlp",), sparsities=(0.0, 0.5, 0.9))
    penalised = network_table(families=("mlp",), conditions=("dense", "activation"), sparsities=(1e-3, 0.1))
    axes = _panels(robustness.figure(pd.concat([pruned, penalised])))[0]
    for line in axes.lines:
        assert set(_points(line)[:, 0]) <= {0.0, 0.5, 0.9, 1.0}  # 0 and 1 are the ends of a horizontal line
    assert "L1 term on activations" not in {line.get_label() for line in axes.lines}


def _write(path: Path, **shape) -> Path:
    network = network_table(**shape)
    examples = network.assign(example=pd.array([0] * len(network), dtype="Int32"), value=1e6)
    path.parent.mkdir(exist_ok=True)
    pd.concat([network, examples]).to_parquet(path)
    return path


@pytest.mark.parametrize(("command", "arguments"), [(figures, []), (program, ["figures"])])
def test_command_writes_every_figure(tmp_path: Path, command, arguments) -> None:
    source = _write(tmp_path / "results.parquet", families=("linear",), seeds=1)
    out = tmp_path / "figures"
    result = CliRunner().invoke(command, [*arguments, str(source), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["captions.md", *(f"{name}.{format}" for name in _LINEAR for format in ("svg", "png"))]
    )
    for name in _LINEAR:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in (out / f"{name}.svg").read_bytes()
        assert f"`{name}`" in (out / "captions.md").read_text(encoding="utf-8")


def test_command_without_a_table_draws_all_committed_ones(tmp_path: Path, monkeypatch) -> None:
    for name in ("one", "other"):
        _write(tmp_path / "data" / f"{name}.parquet", families=("linear",), sparsities=(0.0, 0.5), seeds=1)
    monkeypatch.setattr("paper_figures.command.DATA", tmp_path / "data")
    result = CliRunner().invoke(figures, ["--out", str(tmp_path / "figures"), "--width", "one-column"])
    assert result.exit_code == 0, result.output
    for name in ("one", "other"):
        assert (tmp_path / "figures" / name / "accuracy.png").is_file()


def test_tables_of_runs_are_named_after_their_folders(tmp_path: Path) -> None:
    paths = [tmp_path / run / "results.parquet" for run in ("E1", "E2")]
    assert table_names([*paths, tmp_path / "digits.parquet"]) == ["E1", "E2", "digits"]
    with pytest.raises(BadTable, match="named E1"):
        table_names([paths[0], tmp_path / "E1.parquet"])


@pytest.mark.parametrize("damage", ["missing", "not parquet", "another table", "a folder"])
def test_command_refuses_a_bad_table_in_one_line(tmp_path: Path, damage: str) -> None:
    source = tmp_path / "results.parquet"
    if damage == "not parquet":
        source.write_bytes(b"nothing")
    elif damage == "another table":
        pd.DataFrame({"example": pd.array([None], dtype="Int32"), "value": [1.0]}).to_parquet(source)
    elif damage == "a folder":
        source.mkdir()
    result = CliRunner().invoke(figures, [str(source), "--out", str(tmp_path / "figures")])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert str(source) in result.stderr


def test_a_table_of_bounds_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "paper_figures" / "data" / "bounds" / "digits-net.parquet"
    result = CliRunner().invoke(figures, [str(source), "--out", str(tmp_path / "figures")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: {source} is a table of bounds, not of results; the command bounds draws its figure, beside "
        "the table that it writes\n"
    )


def test_every_table_has_a_folder_of_its_own_unless_one_is_given(monkeypatch, tmp_path):
    monkeypatch.setattr("paper_figures.files.write_all", lambda paths, outs, **_: outs)
    tables = [str(path) for path in sorted(DATA.glob("*.parquet"))[:2]]
    names = [Path(path).stem for path in tables]
    for arguments, expected in (
        (tables[:1], [Path("figures", names[0])]),
        ([*tables[:1], "--out", str(tmp_path)], [tmp_path]),
        ([*tables, "--out", str(tmp_path)], [tmp_path / name for name in names]),
    ):
        result = CliRunner().invoke(figures, arguments)
        assert result.output.splitlines() == list(map(str, expected))
