"""Every law of the catalogue holds on fresh cases, and rejects a broken formula."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from theory.laws.catalog import LAWS, law_named, select
from theory.laws.hunt import hunt_round
from theory.laws.law import Law
from theory.relu import column_sum_bound
from theory.types import BinaryLinear, InvalidInput

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

EXAMPLES = 30
# A broken formula that no case of so many exposes would count as a law that cannot fail.
SEARCH = 500


def times(factor: float) -> Callable[[Callable], Callable]:
    """The formula with every number it gives multiplied."""

    def scale(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(scale(item) for item in value)
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: scale(getattr(value, f.name)) for f in fields(value)})
        return np.where(value == 0, 0.0, factor * np.asarray(value))  # inf stays, 0 * inf does not arise

    return lambda formula: lambda *args, **kwargs: scale(formula(*args, **kwargs))


def plus_bias(radius):
    """No longer free of the scale of the classifier."""
    return lambda clf, x, y, *, p: radius(clf, x, y, p=p) + np.abs(np.asarray(clf.bias)).max()


def for_binary_only(radius):
    return lambda clf, x, y, *, p: (1 + isinstance(clf, BinaryLinear)) * radius(clf, x, y, p=p)


def shifted(formula):
    return lambda *args, **kwargs: formula(*args, **kwargs) + 1.0


def without_lower_half(bounds):
    """Intervals cut off below their middle."""
    return lambda *args, **kwargs: [((a + b) / 2, b) for a, b in bounds(*args, **kwargs)]


def of_what_is_kept(rung):
    """The density taken for the sparsity."""
    return lambda net, alphas, pair: rung(net, 1 - alphas, pair)


def with_what_is_off(rung):
    """The count of inactive units taken for that of the active ones."""
    return lambda net, alphas, pair, active: rung(
        net, alphas, pair, [max(len(w) - k, 0) for w, k in zip(net.weights, active, strict=False)]
    )


def of_the_first_class(rung):
    return lambda net, alphas, pair: rung(net, alphas, pair) * (1 + pair[0])


def of_constant(value):
    return lambda formula: lambda net, x, y: np.full(len(x), value)


def of_the_dense_network(moments):
    return lambda net, x, keep: moments(net, x, np.ones_like(keep))


def enlarged(factor):
    """Both sides of a solver's result multiplied, the rest as it is."""

    def scale(solve):
        def broken(*args, **kwargs):
            found = solve(*args, **kwargs)
            return replace(found, lower=factor * found.lower, upper=factor * found.upper)

        return broken

    return scale


def reversed_list(formula):
    return lambda *args, **kwargs: formula(*args, **kwargs)[::-1]


BY_KIND = {"bound": times(0.5), "identity": times(1.01)}  # too small a bound, an identity a little off
BROKEN: dict[str, Callable[[Callable], Callable]] = {
    "linear.radius-safe": times(2),
    "linear.radius-reached": times(0.5),
    "linear.radius-scale": plus_bias,
    "linear.two-rows": for_binary_only,
    "linear.markov-paper": times(2),  # these stand on the small side of <=
    "linear.jensen-sharpest": times(2),
    "linear.masks-radius": times(2),
    "linear.hoelder-order": reversed_list,
    "linear.ceiling-scale": shifted,
    "relu.norm-product-scale": shifted,
    "relu.path-norm-scale": shifted,
    "relu.lipschitz-scale": shifted,
    "relu.certificate": times(2),
    "relu.local-certificate": times(2),
    "relu.crown-certificate": times(2),
    "relu.margins": times(2),
    "relu.crown-margins": times(2),
    "relu.preactivations": without_lower_half,
    "relu.best-smallest": times(2),
    **{f"relu.{rung}-falls": of_what_is_kept for rung in ("F", "P2", "P1", "M")},
    **{f"relu.{rung}-pair": of_the_first_class for rung in ("F", "P2", "B", "P1", "M")},
    **{law.name: times(2) for law in LAWS if "<=" in law.name},
    **{f"masks.active-{rung}-grows": with_what_is_off for rung in ("F", "P1", "P2", "B")},
    "masks.radius-lower": times(2),
    "masks.kappa": of_constant(2.0),
    "masks.first-layer": of_the_dense_network,
    "masks.dense-prediction": times(1.01),
    **{law.name: enlarged(1.01) for law in LAWS if law.name.startswith("exact.")},
    "graph.nodes": without_lower_half,
    "graph.entries": without_lower_half,
    "graph.margins": times(2),
    "graph.margins-exact": times(2),
    "graph.certificate": times(2),
}
ALL = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)


@ALL
def test_law_holds(law: Law):
    tally = hunt_round(law, examples=EXAMPLES, entropy=0)
    assert tally.failure is None
    assert tally.examples >= EXAMPLES / 5
    if law.kind == "bound":
        assert tally.ratio >= 1
    assert (tally.tightest is None) == math.isnan(tally.ratio) == (law.kind == "property")


@ALL
def test_law_rejects_a_broken_formula(law: Law):
    broken = replace(law, formula=(BROKEN.get(law.name) or BY_KIND[law.kind])(law.formula))

    @settings(
        max_examples=SEARCH,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(broken.cases)
    def holds(case):
        broken.ratio(case)

    with pytest.raises(AssertionError):
        holds()


def test_names_are_unique_and_the_table_of_broken_formulas_has_no_stale_ones():
    names = {law.name for law in LAWS}
    assert len(names) == len(LAWS)
    assert set(BROKEN) <= names
    assert {law.kind for law in LAWS if law.name not in BROKEN} == {"bound", "identity"}


def test_laws_are_selected_by_name_and_pattern():
    assert select(()) == LAWS
    assert [law.name for law in select(("relu.M", "relu.P1"))] == ["relu.P1", "relu.M"]
    assert {law.name.split(".")[0] for law in select(("linear.*",))} == {"linear"}
    assert law_named("relu.M").formula is column_sum_bound
    with pytest.raises(InvalidInput, match="relu.N is no law; the nearest names are relu.M"):
        select(("relu.M", "relu.N"))
