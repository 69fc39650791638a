"""The hunt finds planted false laws, shrinks what it finds, and is the same for a seed."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module

import numpy as np
import pytest
from hypothesis import strategies as st

from theory.laws import conjecture
from theory.laws.catalog import law_named, select
from theory.laws.claim import BadConjecture, load, shipped
from theory.laws.code import expression, reproduction, summary
from theory.laws.hunt import Tally, hunt, hunt_round
from theory.laws.law import Law
from theory.laws.measure import at_most, equal
from theory.laws.mutation import float_arrays, mutant, simplified
from theory.laws.strategies import arrays, relu_networks
from theory.relu import frobenius_bound
from theory.types import BinaryLinear, InvalidInput, ReLUNetwork

# The run-time shape checks pick random items of the tuples in a network, also while Hypothesis draws one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

NET = ReLUNetwork(
    (np.array([[0.1, -2.0], [1e-310, 3.0]]), np.array([[1.0, 2.0], [-0.0, 1 / 3]])),
    (np.array([0.0, 1.0]), np.array([0.5, math.pi])),
)
CASE = {
    "net": NET,
    "clf": BinaryLinear(np.array([2.0]), -1.5),
    "alphas": np.array([0.5, 1e-12]),
    "y": np.array([0, 1, 1]),
    "mask": np.array([True, False]),
    "bounds": np.array([[-np.inf, 0.25]]),
    "empty": np.zeros((0, 3)),
    "p": math.inf,
    "pair": (0, 1),
    "one": (np.ones(1),),
    "flag": True,
}


def run(code: str, folder) -> subprocess.CompletedProcess[str]:
    """Run a pasted program in a process of its own."""
    file = folder / "pasted.py"
    file.write_text(code)
    environment = {"PYTHONPATH": ":".join([str(folder), *filter(None, sys.path)])}
    return subprocess.run(
        [sys.executable, file], env=environment, capture_output=True, text=True, check=False
    )


def without_root(net, alphas, pair):
    """Rung F with 1 - alpha in place of its root: a planted mistake."""
    return frobenius_bound(net, np.zeros_like(alphas), pair) * np.prod(1 - alphas)


PLANTED = replace(law_named("relu.F"), formula=without_root)


def test_a_planted_false_law_is_found_shrunk_and_printed_as_a_program_that_fails(tmp_path):
    tally = hunt_round(PLANTED, examples=500, entropy=0)
    assert tally.failure is not None
    case = tally.failure.case
    assert [w.shape for w in case["net"].weights][-1][0] == 2
    weights = case["net"].weights
    assert sum(np.count_nonzero(w) for w in weights) <= len(weights) + 1  # one path to equal classes
    assert all(b.any() == np.False_ for b in case["net"].biases)
    (tmp_path / "planted.py").write_text(
        "from dataclasses import replace\n"
        "import numpy as np\n"
        "from theory.laws.catalog import law_named\n"
        "from theory.relu import frobenius_bound\n"
        "def without_root(net, alphas, pair):\n"
        "    return frobenius_bound(net, np.zeros_like(alphas), pair) * np.prod(1 - alphas)\n"
        "law = replace(law_named('relu.F'), formula=without_root)\n"
    )
    broken = run(reproduction(replace(PLANTED, source="from planted import law"), case), tmp_path)
    assert "AssertionError" in broken.stderr
    right = run(reproduction(law_named("relu.F"), case), tmp_path)
    assert right.returncode == 0, right.stderr
    assert right.stdout.startswith("(bound + rounding) / truth: ")


def test_mutants_find_what_draws_hardly_ever_meet():
    """The claim fails only where two reals agree to 1e-3, away from 0: the search climbs there."""

    def apart(formula, a):
        return at_most(formula, np.abs(a[0] - a[1]) / np.abs(a[0]) if abs(a[0]) > 1 else 1.0)

    entries = st.floats(-3, 3, width=32).filter(lambda v: v != round(v, 2))
    cases = st.fixed_dictionaries({"a": st.lists(entries, min_size=2, max_size=2, unique=True).map(np.array)})
    tally = hunt_round(Law("apart", "", "bound", apart, 1e-3, cases), examples=4000, entropy=3)  # type: ignore[arg-type]
    assert tally.failure is not None
    assert tally.examples > tally.drawn


def tagged(tallies):
    return [
        (
            law.name,
            tally.examples,
            tally.drawn,
            repr(tally.ratio),
            expression(tuple((tally.tightest or {}).items())),
        )
        for law, tally in tallies
    ]


def test_a_seed_gives_the_same_hunt_whatever_the_number_of_processes(monkeypatch):
    monkeypatch.setattr("theory.laws.hunt.ROUND", 60)
    load_two = partial(select, ("relu.P2<=F", "linear.radius-exact"))
    one, two, other = (
        tagged(hunt(load_two, examples=90, jobs=jobs, base=base)) for jobs, base in ((1, 5), (2, 5), (1, 6))
    )
    assert [row[:2] for row in one] == [
        (n, k) for k in (60, 30) for n in ("linear.radius-exact", "relu.P2<=F")
    ]
    assert one == two
    assert one != other


def test_a_seed_gives_the_same_round_whatever_modules_are_loaded(tmp_path, monkeypatch):
    """Hypothesis draws literals of the source of local modules, which an installed package does not have."""
    law = law_named("linear.gaussian")

    def told():
        return tagged([(law, hunt_round(law, examples=1000, entropy=3))])

    before = told()
    (tmp_path / "full_of_literals.py").write_text(f"LITERALS = {[k / 64 for k in range(-200, 200)]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_module("full_of_literals")
    try:
        assert told() == before
    finally:
        del sys.modules["full_of_literals"]


def false_and_true():
    return (replace(PLANTED, name="planted"), law_named("relu.P1<=M"))


def test_a_falsified_law_is_hunted_no_further_and_the_others_are(monkeypatch):
    monkeypatch.setattr("theory.laws.hunt.ROUND", 100)
    found = list(hunt(false_and_true, examples=300, jobs=2, base=1))
    assert [law.name for law, _ in found] == ["planted", *["relu.P1<=M"] * 3]
    assert [tally.failure is None for _, tally in found] == [False, True, True, True]


def test_tallies_add_up_and_keep_the_closest_case():
    law = law_named("relu.F")
    near, far = Tally(3, 1, 1.5, {"a": 1}, None, 1.0), Tally(4, 2, 2.0, {"a": 2}, None, 2.0)
    for total in (near.plus(far, law), far.plus(near, law)):
        assert (total.examples, total.drawn, total.ratio, total.tightest, total.seconds) == (
            7,
            3,
            1.5,
            {"a": 1},
            3.0,
        )
    assert Tally().plus(Tally(2), law).tightest is None
    assert law.closeness(1.5) > law.closeness(2.0) > law.closeness(math.inf) > law.closeness(math.nan)
    identity = law_named("relu.P1-exact")
    assert identity.closeness(1e-3) > identity.closeness(1e-9) > identity.closeness(0.0)


@pytest.mark.parametrize("name", ["expected_lipschitz_falls", "paper_bound_needs_no_biases"])
def test_false_conjectures_are_falsified_by_a_program_that_fails(name, tmp_path):
    (law,) = load(name)
    tally = hunt_round(law, examples=3000, entropy=0)
    assert tally.failure is not None
    assert "AssertionError" in run(reproduction(law, tally.failure.case), tmp_path).stderr


def test_a_true_conjecture_stands_and_its_tightest_case_is_printed_as_a_program(tmp_path):
    (law,) = load("linf_radius_is_smaller")
    tally = hunt_round(law, examples=500, entropy=0)
    assert tally.failure is None
    assert tally.tightest is not None
    assert tally.ratio == pytest.approx(1)  # a weight with one non-zero entry
    program = run(reproduction(law, tally.tightest), tmp_path)
    assert program.returncode == 0, program.stderr


def test_the_smallest_example_of_a_rising_expectation_is_one_by_hand():
    """Rows (1, 1), (1, -1) of units that add up: masks of a cancelling entry raise the l_1 norm from 2."""
    (law,) = load("expected_lipschitz_falls")
    hidden, v = np.array([[1.0, 1.0], [1.0, -1.0]]), np.ones(2)
    with pytest.raises(AssertionError, match="exceeds"):
        law.ratio({"hidden": hidden, "v": v, "alpha": 0.1, "p": math.inf})
    assert law.ratio({"hidden": np.abs(hidden), "v": v, "alpha": 0.1, "p": math.inf}) > 1


@conjecture(net=relu_networks(), x=arrays((1, 2)))
def a_bool(net, x):
    """Claims by a bool are checked too."""
    return not x.any()


def test_a_conjecture_may_return_a_bool_and_becomes_a_law():
    assert (a_bool.name, a_bool.statement) == ("a_bool", "Claims by a bool are checked too")
    assert math.isnan(a_bool.ratio({"net": NET, "x": np.zeros((1, 2))}))
    failure = hunt_round(a_bool, examples=100, entropy=0).failure
    assert failure is not None
    assert np.count_nonzero(failure.case["x"]) == 1
    assert len(failure.case["net"].weights) == 1


HEAD = "from theory.laws import conjecture, strategies as st\n@conjecture(p=st.attack_norms())\ndef c(p):\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "holds no conjecture"),
        ("x = (\n", "line 1: '\\(' was never closed"),
        ("1 / 0\n", "raised ZeroDivisionError"),
        (
            HEAD.replace("def c(p)", "def c(q)") + "    return True\n",
            "c takes \\['q'\\], @conjecture draws \\['p'\\]",
        ),
        (HEAD.replace("st.attack_norms()", "2.0") + "    return True\n", "p is 2.0; pass a strategy"),
        (HEAD + "    return 1 / 0\n", "c raised ZeroDivisionError: division by zero"),
        (HEAD + "    return 'yes'\n", "c returned 'yes'; return a pair"),
        (HEAD + "    return 1, 2, 3\n", "c returned \\(1, 2, 3\\); return a pair"),
        (HEAD + "    pass\n", "c returned None; return a pair"),
        (HEAD + "    return float('nan'), 1.0\n", "c returned \\(nan, 1.0\\), and NaN cannot be compared"),
    ],
)
def test_bad_conjectures_are_one_clear_message(text, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(BadConjecture, match=message):
        hunt_round(load(str(file))[0], examples=10, entropy=0)


def test_unknown_conjectures_name_the_shipped_ones():
    with pytest.raises(BadConjecture, match="nowhere.py is no file, and no shipped conjecture: expected_lip"):
        load("nowhere.py")
    assert len(shipped()) == 3


def test_nan_falsifies_and_rounding_does_not():
    assert at_most(0.3, 0.1 + 0.2 - 1e-16, slack=1e-15) >= 1
    assert at_most(0.0, math.inf) == at_most(math.inf, math.inf) == at_most(-1.0, 0.0) == math.inf
    for truth, bound in ((math.nan, 1.0), (1.0, math.nan), (2.0, 1.0), (math.inf, 1.0)):
        with pytest.raises(AssertionError):
            at_most(truth, bound)
    assert (
        equal(math.inf, math.inf, scale=1.0, tolerance=0.0) == equal(0.0, 0.0, scale=0.0, tolerance=0.0) == 0
    )
    assert equal([1.0, 2.0], [1.0, 2.5], scale=2.0, tolerance=0.25) == 0.25
    for value, truth in ((math.nan, 1.0), (math.inf, 1.0), (1.0, 1.1), (-math.inf, math.inf)):
        with pytest.raises(AssertionError):
            equal(value, truth, scale=1.0, tolerance=0.01)


def test_printed_cases_are_exact_to_the_last_bit():
    names = {"np": np, "ReLUNetwork": ReLUNetwork, "BinaryLinear": BinaryLinear}
    for name, value in CASE.items():
        back = eval(expression(value), names)  # our own text
        pairs = list(zip(float_arrays({name: value}), float_arrays({name: back}), strict=True))
        for (path, array), (other, found) in pairs:
            assert path == other
            np.testing.assert_array_equal(found, array)
            assert (np.signbit(found) == np.signbit(array)).all()
        assert pairs or np.array_equal(back, value)
        assert type(back) is type(value)
        if isinstance(value, np.ndarray):
            assert back.dtype == value.dtype
            assert back.shape == value.shape
    assert summary(CASE).startswith("net 2-2-2, clf (weight [2], bias -1.5), alphas [0.5 1e-12], y [0 1 1]")


def test_mutants_keep_labels_signs_fractions_and_sizes():
    rng = np.random.default_rng(0)
    case = {
        "net": NET,
        "alphas": np.array([0.5, 0.25]),
        "radius": np.array([0.0, 7.0]),
        "y": np.array([0, 1]),
    }
    seen = 0
    for _ in range(500):
        child = mutant(case, rng)
        seen += expression(tuple(child.items())) != expression(tuple(case.items()))
        assert child["y"] is case["y"]
        assert ((child["alphas"] >= 0) & (child["alphas"] <= 1)).all()
        assert ((child["radius"] >= 0) & (child["radius"] <= 7)).all()
        assert np.abs(child["net"].weights[0]).max() <= 3
    assert seen > 400
    assert NET.weights[0][0, 0] == 0.1  # the parent is not touched


def test_simplifying_keeps_the_failure_and_only_what_it_needs():
    case = {"net": NET, "x": np.array([[0.123, 5.0], [3.0, 7.123]]), "y": np.array([0, 1])}

    def fails(candidate):
        if len(candidate["y"]) == 0:
            raise InvalidInput("x is empty")
        return candidate["x"].max() > 6 and any(w.max() > 2.5 for w in candidate["net"].weights)

    small = simplified(case, fails)
    assert small["x"].tolist() == [[0.0, 7.0]]
    assert small["y"].tolist() == [1]
    assert [w.tolist() for w in small["net"].weights] == [[[0.0, 3.0]], [[0.0], [0.0]]]
    assert not any(b.any() for b in small["net"].biases)


def test_simplifying_leaves_probabilities_probabilities():
    """-1 would be simpler than 0.7, and fails too."""
    case = {"keep": np.array([0.7]), "weight": np.array([0.7, -0.2])}
    small = simplified(case, lambda candidate: candidate["keep"][0] in (0.7, -1.0))
    assert small["keep"].tolist() == [0.7]
    assert simplified(case, lambda candidate: candidate["weight"][0] in (0.7, -1.0))["weight"].tolist() == [
        -1.0,
        0.0,
    ]
