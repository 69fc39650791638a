"""Verdicts follow the data: planted effects are found, planted nothing is not, and n = 1 decides nothing."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from statsmodels.stats.weightstats import DescrStatsW

from empirical.claims import judge, trends, verdicts, violations
from empirical.claims.judge import RELU
from empirical.claims.predictions import predictions
from empirical.claims.verdicts import Curves
from empirical.results import SCHEMA, Members, Rows, table
from theory.types import InvalidInput

PROVENANCE = {"settings": "s", "version": "0", "commit": "c", "device": "cpu", "dtype": "float64"}
SPARSITIES = (0.0, 0.3, 0.6, 0.9, 0.99)


def made_up(
    gain,
    *,
    seeds: int = 8,
    noise: float = 0.01,
    accuracy=lambda alpha: 0.95,
    training=lambda alpha: 1.0,
    draw: int = 0,
) -> pd.DataFrame:
    """A table in which magnitude pruning changes every robustness by the factor 1 + gain(alpha).

    ``training`` is the factor by which what is trained on, dense or pruned, is more robust.
    """
    rng = np.random.default_rng(draw)
    parts = []
    measures = [
        ("mean_radius", "linf", "exact", "identity"),
        ("mean_radius", "l2", "exact", "identity"),
        ("fgs_accuracy", "linf", "fgs in the box", "measured"),
        ("fgs_accuracy", "linf", "fgs", "measured"),
        ("mean_radius", "linf", "fgs", "measured"),
        ("mean_radius", "linf", "best", "measured"),
        ("mean_radius", "l2", "deepfool", "measured"),
        ("mean_radius", "l2", "best", "measured"),
    ]
    for family in ("linear", "mlp"):
        for alpha in SPARSITIES:
            for pruning, factor in (("dense", 1.0), ("magnitude", 1.0 + gain(alpha))):
                members = Members(
                    "d", family, [pruning] * seeds, [alpha] * seeds, [alpha] * seeds, range(seeds)
                )
                clean = np.full(seeds, accuracy(alpha) if pruning == "magnitude" else 0.95)
                parts.append(Rows(members, clean, "accuracy", "clean", "measured"))
                for quantity, norm, method, kind in measures:
                    values = factor * training(alpha) * 0.1 * (1 + noise * rng.normal(size=seeds))
                    parts.append(Rows(members, values, quantity, method, kind, norm))
    return table(parts, provenance=PROVENANCE).to_pandas()


BEST = ("R_inf, best attack", "mean_radius", "linf", "best")


def shown(shares: np.ndarray, grid=SPARSITIES, *, family: str = "mlp") -> pd.DataFrame:
    """A table of the best attack's radii, these shares (seeds x sparsities) of the dense networks'."""
    rows = [
        (family, pruning, alpha, seed, quantity, norm, method, "measured", "s", value)
        for (seed, j), share in np.ndenumerate(shares)
        for alpha in [grid[j]]
        for pruning, radius in (("dense", 1.0), ("magnitude", share))
        for quantity, norm, method, value in (BEST[1:] + (radius,), ("accuracy", "", "clean", 0.95))
    ]
    names = "family pruning sparsity seed quantity norm method kind settings value"
    return pd.DataFrame(rows, columns=names.split())


def verdicts_by_claim(frame: pd.DataFrame) -> dict[str, set[str]]:
    return {str(claim): set(found) for claim, found in judge(frame).groupby("claim")["verdict"]}


def test_a_rise_is_found():
    rising = made_up(lambda alpha: 0.3 * alpha, noise=1e-3)
    found = verdicts_by_claim(rising)
    assert found["C1"] == {"supported"}
    assert found["C2"] == {"refuted"}
    assert found["C3"] == {"supported"}
    # The best sparsity is the last one: no fall was seen, and none is ruled out.
    assert found["C4"] == {"inconclusive"}


def test_a_fall_is_found():
    falling = made_up(lambda alpha: -0.3 * alpha)
    found = verdicts_by_claim(falling)
    assert found["C1"] == {"refuted"}
    assert found["C2"] == {"supported"}
    assert found["C3"] == {"refuted"}
    assert found["C4"] == {"refuted"}


def test_a_rise_and_a_fall_are_found():
    assert verdicts_by_claim(made_up(lambda alpha: 0.8 * alpha * (1 - alpha)))["C4"] == {"supported"}


def test_the_best_of_noise_is_no_rise():
    """A flat curve that falls at its end: of 60, as good as none is said to rise before (nominally 5 %)."""
    flat = (made_up(lambda alpha: -0.3 * (alpha > 0.95), seeds=5, noise=6e-3, draw=k) for k in range(10))
    found = [trends.falls_again(Curves(frame), "mlp", measure) for frame in flat for measure in RELU]
    assert len(found) == 60
    assert sum(v.verdict == "supported" for v in found) <= 8
    assert np.mean([v.low > 0 for v in found]) > 0.2  # the bootstrap alone would say so of many
    small = made_up(lambda alpha: 0.03 * (0 < alpha < 0.95) - 0.3 * (alpha > 0.95), noise=6e-3)
    assert verdicts_by_claim(small)["C4"] == {"supported"}


def test_the_end_of_a_plateau_is_no_fall():
    """Of 25 curves that rise and stay up, among noise, as good as none is said to fall (nominally 5 %)."""
    grid = np.linspace(0, 0.99, 12)
    plateau = np.minimum(1 + 0.2 * np.arange(12), 1.6)
    rng, found = np.random.default_rng(0), []
    for _ in range(25):
        noise = 0.12 * rng.normal(size=(3, 12))
        found.append(trends.falls_again(Curves(shown(plateau + noise * (grid > 0), grid)), "mlp", BEST))
    assert sum(v.verdict == "supported" for v in found) <= 3
    refused = [v.note for v in found if " for a fall" in v.note]
    assert len(refused) >= 3
    assert all(float(note.rpartition("p = ")[2].partition(" for a fall")[0]) >= 0.05 for note in refused)
    hill = 1.3 - 0.015 * (np.arange(12) - 6) ** 2 + 0.02 * rng.normal(size=(5, 12))
    hill[:, 0] = 1
    assert trends.falls_again(Curves(shown(hill, grid)), "mlp", BEST).verdict == "supported"


def test_a_rise_that_the_dense_network_shares_is_training():
    frame = made_up(lambda alpha: -0.2 * alpha, training=lambda alpha: 1.5 if alpha else 1.0)
    found = verdicts_by_claim(frame)
    assert found["C3"] == {"refuted"}
    assert found["C4"] == {"refuted"}


def test_one_collapsed_network_disqualifies_a_sparsity():
    """What gives every input the same class cannot be attacked: no gain, whatever the mean accuracy."""
    frame = made_up(lambda alpha: 20.0 if alpha == 0.99 else -0.2 * alpha)
    assert verdicts_by_claim(frame)["C3"] == {"supported"}
    last = (frame["pruning"] == "magnitude") & (frame["sparsity"] == 0.99)
    lost = last & (frame["seed"] == 3) & (frame["quantity"] == "accuracy")
    assert lost.sum() == 2
    frame.loc[lost, "value"] = 0.5
    assert frame.loc[last & (frame["quantity"] == "accuracy"), "value"].mean() > 0.9 * 0.95
    found = verdicts_by_claim(frame)
    assert found["C3"] == {"refuted"}
    assert found["C4"] == {"refuted"}


@pytest.mark.parametrize("missing", ["dense", "magnitude"])
def test_a_condition_without_its_counterpart_decides_nothing(missing):
    frame = made_up(lambda alpha: 0.5 * alpha)
    judged = judge(frame[frame["pruning"] != missing])
    assert set(judged["verdict"]) <= {"inconclusive"}


def test_nothing_is_not_called_an_effect():
    flat = made_up(lambda alpha: 0.0)
    found = verdicts_by_claim(flat)
    assert found["C2"] == {"supported"}
    assert found["C3"] == {"refuted"}


def test_noise_is_inconclusive_and_says_what_could_be_seen():
    noisy = made_up(lambda alpha: 0.0, seeds=3, noise=0.3)
    assert verdicts_by_claim(noisy)["C2"] == {"inconclusive"}
    judged = judge(noisy)
    for claim, seen in (("C1", "slope"), ("C2", "gain"), ("C3", "gain")):
        notes = judged[(judged["claim"] == claim) & (judged["verdict"] == "inconclusive")]["note"]
        assert len(notes)
        assert notes.str.contains(f"80 % power for a {seen} of").all()


def test_a_gain_that_may_be_one_of_the_margin_says_so():
    judged = judge(made_up(lambda alpha: 0.045 * (alpha == 0.6)))
    rises = judged[judged["claim"] == "C3"]
    assert (rises["p_value"] < 1e-3).all()
    open_ones = rises[rises["verdict"] == "inconclusive"]
    assert len(open_ones)
    assert (open_ones["note"] == "at sparsity 0.6; a gain; whether of 5% is open").all()


def test_the_slope_that_could_be_seen_is_seen_four_times_in_five():
    """Slopes of the size that noise alone gives are found in 80 % of tables (limit: 4 standard errors)."""
    rng, measure, trials = np.random.default_rng(2), ("R", "mean_radius", "linf", "exact"), 60
    base = made_up(lambda alpha: 0.0, seeds=6, noise=0.0)
    rows = base["method"].isin(["exact"]) & (base["norm"] == "linf") & (base["pruning"] == "magnitude")

    def noisy(slope: float) -> pd.DataFrame:
        table = base.copy()
        noise = 0.1 * rng.normal(size=rows.sum())
        table.loc[rows, "value"] *= 1 + slope * table.loc[rows, "sparsity"] + noise
        return table

    notes = [trends.trend(Curves(noisy(0.0)), "linear", measure).note for _ in range(trials)]
    said = float(np.mean([float(note.rpartition("slope of ")[2]) for note in notes if "power" in note]))
    assert said > 0.05
    seen = [
        trends.trend(Curves(noisy(said)), "linear", measure).verdict == "supported" for _ in range(trials)
    ]
    assert abs(np.mean(seen) - 0.8) < 4 * (0.8 * 0.2 / trials) ** 0.5


@pytest.mark.parametrize("pruned_alone", [False, True])
def test_what_was_not_measured_is_no_claim(pruned_alone):
    """Attacks in l_2 that nobody asked for are no evidence that is lacking: nothing is said of them."""
    frame = made_up(lambda alpha: 0.3 * alpha)
    whole = judge(frame)
    lost = (frame["norm"] == "l2") & (frame["pruning"].eq("magnitude") | (not pruned_alone))
    told = judge(frame[~lost])
    l2 = whole["measure"].isin(["R_2, exact", "R_2, best attack", "r_2, DeepFool"])
    pd.testing.assert_frame_equal(told, whole[~l2].reset_index(drop=True))
    assert set(whole["claim"]) - set(told["claim"]) == {"C2"}
    assert judge(frame[frame["pruning"] == "dense"]).empty


def test_one_seed_decides_nothing():
    single = made_up(lambda alpha: 0.3 * alpha, seeds=1)
    judged = judge(single)
    assert set(judged["verdict"]) == {"inconclusive"}


def test_false_alarms_are_rare():
    """C3 on pure noise: Bonferroni keeps the share of false gains near 2.5 % (limit: 5 standard errors)."""
    rng = np.random.default_rng(1)
    trials = 400  # without the correction 26 % would be alarms
    grid = np.linspace(0.1, 0.99, 12)
    noise = [pd.DataFrame(rng.normal(size=(5, 12)), columns=grid) for _ in range(trials)]
    alarms = sum(trends.best_gain(gains).significant for gains in noise)
    assert alarms / trials < 0.025 + 5 * (0.025 * 0.975 / trials) ** 0.5


@settings(max_examples=50)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(-0.1, 0.1))
def test_p_values_and_intervals_say_the_same(seeds, tried, entropy, gain):
    """Both are those of a t-test in statsmodels, corrected for the sparsities tried."""
    drawn = gain + 0.05 * np.random.default_rng(entropy).normal(size=(seeds, tried))
    found = pd.DataFrame(drawn, columns=np.linspace(0.1, 0.9, tried))
    best = trends.best_gain(found)
    assert (best.p_value < verdicts.LEVEL) == best.significant == (best.low > 0)
    of = {alpha: DescrStatsW(found[alpha]) for alpha in found}
    _, one_sided, _ = of[best.sparsity].ttest_mean(0, alternative="larger")
    assert best.p_value == pytest.approx(min(1, 2 * tried * one_sided))
    limits = {alpha: of[alpha].tconfint_mean(verdicts.LEVEL / tried) for alpha in found}
    assert (best.low, best.high) == pytest.approx(limits[best.sparsity], rel=1e-6, abs=1e-9)
    assert best.significant == any(low > 0 for low, _ in limits.values())
    assert best.highest == pytest.approx(max(high for _, high in limits.values()), rel=1e-6, abs=1e-9)


def test_collapsed_sparsities_do_not_count_for_the_trend():
    """After collapse the radius of what is left is meaningless; a rise there must not support C1."""
    table_ = made_up(lambda a: 5.0 if a >= 0.99 else -0.3 * a, accuracy=lambda a: 0.5 if a >= 0.99 else 0.95)
    assert verdicts_by_claim(table_)["C1"] == {"refuted"}


def test_slope_and_gain_are_those_planted():
    judged = judge(made_up(lambda alpha: 0.3 * alpha, noise=1e-6))
    slopes = judged[judged["claim"] == "C1"]["effect"]
    assert slopes.tolist() == pytest.approx([0.3] * len(slopes), abs=1e-4)
    gains = judged[judged["claim"] == "C3"]["effect"]
    assert gains.tolist() == pytest.approx([0.3 * 0.99] * len(gains), abs=1e-4)


def test_violations_are_counted_and_named():
    members = Members("d", "mlp", ["magnitude"] * 2, [0.5, 0.9], [0.5, 0.9], [0, 1])
    excess = np.array([[0.0, 0.2, 0.0], [0.7, 0.0, 0.0]])
    name = "certificate <= attack"
    content = table(
        [
            Rows(members, np.array([3, 3]), "cases", name, "check", "l2"),
            Rows(members, np.array([1, 1]), "violations", name, "check", "l2"),
            Rows(members, np.array([0.5, 0.7]), "tightness", name, "check", "l2"),
            Rows(members, excess, "excess", name, "check", "l2", keep=excess > 0),
        ],
        provenance=PROVENANCE,
    )
    assert content.schema.equals(SCHEMA)
    named = violations(content)
    assert named["excess"].tolist() == [0.7, 0.2]
    assert named["example"].tolist() == [0, 1]
    assert named["sparsity"].tolist() == [0.9, 0.5]
    judged = judge(content.to_pandas())
    row = judged[judged["claim"] == "C7"].iloc[0]
    assert (row["verdict"], row["violations"], row["test"]) == ("refuted", 2, "6 cases")


def test_effect_and_p_value_belong_to_one_sparsity():
    """A sure gain of 0.1 % beside a wild one of +8 % supports nothing: no gain that counts is sure."""
    rng = np.random.default_rng(0)
    wild = rng.normal(size=8)
    gains = pd.DataFrame({0.1: 0.001 + 1e-5 * rng.normal(size=8), 0.9: 0.08 + wild - wild.mean()})
    best = trends.best_gain(gains)
    assert best.sparsity == 0.1
    assert best.low < best.gain < best.high < 0.002
    assert best.highest > 0.05
    assert not best.counts
    assert trends.best_gain(gains[[0.1]] + 0.06).counts


@pytest.mark.parametrize("gain", [lambda alpha: 0.8 * alpha * (1 - alpha), lambda alpha: -0.3 * alpha])
def test_few_seeds_have_no_interval_of_a_bootstrap(gain):
    """Of two there are three resamples, whose percentiles are next to nothing: the verdict does without."""
    two, five = (judge(made_up(gain, seeds=seeds, noise=1e-4)) for seeds in (2, 5))
    for judged, seeds in ((two, 2), (five, 5)):
        falls = judged[judged["claim"] == "C4"]
        assert (falls["low"].notna() & falls["high"].notna()).all() == (seeds == 5)
        assert falls["note"].str.contains("%, ", regex=False).all() == (seeds == 5)
        assert falls["note"].str.endswith(" at 0.99; an interval needs 5 seeds").all() == (seeds == 2)
    assert two["verdict"].tolist() == five["verdict"].tolist()
    assert two["effect"].tolist() == pytest.approx(five["effect"].tolist(), abs=1e-3)


def test_a_fall_too_small_to_count_is_not_one():
    def rise_and_dip(alpha):
        return 0.2 * min(alpha, 0.6) - (0.001 if alpha > 0.95 else 0.0)

    assert verdicts_by_claim(made_up(rise_and_dip, noise=1e-5))["C4"] <= {"inconclusive", "refuted"}


def test_networks_without_any_robustness_are_inconclusive():
    nothing = made_up(lambda alpha: -1.0)
    nothing.loc[nothing["quantity"] != "accuracy", "value"] = 0.0
    judged = judge(nothing)
    assert set(judged["verdict"]) == {"inconclusive"}


def masked(factor, *, accuracy=lambda alpha: 0.95) -> pd.DataFrame:
    """Radii of networks under random masks, predicted too large by a factor, beside dense networks."""
    parts, rng = [], np.random.default_rng(1)
    for alpha in SPARSITIES:
        dense, members = (
            Members("d", "mlp", [pruning] * 6, [alpha] * 6, [alpha] * 6, range(6))
            for pruning in ("dense", "random")
        )
        truth = (0.2 - 0.1 * alpha) * (1 + 0.01 * rng.normal(size=6))
        parts.append(Rows(dense, np.full(6, 0.95), "accuracy", "clean", "measured"))
        parts.append(Rows(members, np.full(6, accuracy(alpha)), "accuracy", "clean", "measured"))
        parts.append(Rows(members, truth, "mean_radius", "best", "measured", "l2"))
        parts.append(Rows(members, factor * truth, "mean_radius", "moment propagation", "estimate", "l2"))
    return table(parts, provenance=PROVENANCE).to_pandas()


@pytest.mark.parametrize(("factor", "verdict"), [(1.03, "supported"), (1.5, "refuted")])
def test_predictions_are_held_against_what_they_predict(factor, verdict):
    judged = judge(masked(factor))
    row = judged[judged["claim"] == "C9"].iloc[0]
    assert row["verdict"] == verdict
    assert row["low"] <= row["effect"] * (1 + 1e-12)
    assert row["effect"] <= row["high"] * (1 + 1e-12)
    assert row["measure"] == "R_2, random"
    wanted = (factor - 1) * np.mean([0.2 - 0.1 * alpha for alpha in SPARSITIES[1:]]) / 0.2
    assert row["effect"] == pytest.approx(wanted, rel=0.02)
    assert row["note"].startswith("before collapse: up to sparsity 0.99;")


@pytest.mark.parametrize("factor", [1.03, 1.5])
def test_a_single_seed_decides_nothing_on_a_prediction(factor):
    """Nor has its error an interval, which a bootstrap would give the width 0."""
    frame = masked(factor)
    judged = judge(frame[frame["seed"] == 0])
    row = judged[judged["claim"] == "C9"].iloc[0]
    assert row["verdict"] == "inconclusive"
    assert np.isfinite(row["effect"])
    assert np.isnan([row["low"], row["high"]]).all()
    assert row["note"].startswith("an interval needs 2 seeds; before collapse")


def test_two_seeds_seldom_decide_on_a_prediction():
    """Errors of just the 10 % that count, among noise: either verdict would be chance (2.5 % each)."""
    rng, frame = np.random.default_rng(0), masked(1.0)
    frame = frame[frame["seed"] < 2]
    guesses = frame["kind"] == "estimate"
    told = []
    for _ in range(30):
        errors = 0.2 * (0.1 + 0.03 * rng.normal(size=2))
        changed = frame["value"].where(~guesses, frame["value"] + errors[frame["seed"]])
        told += [verdict.verdict for verdict in predictions(Curves(frame.assign(value=changed)), "mlp", "l2")]
    assert len(told) == 30
    assert told.count("inconclusive") >= 24


def test_predictions_that_err_alike_on_every_seed_decide_nothing():
    frame = masked(1.0)
    frame.loc[frame["quantity"] == "mean_radius", "value"] = 0.2
    (told,) = predictions(Curves(frame), "mlp", "l2")
    assert told.verdict == "inconclusive"
    assert told.note.startswith("the seeds do not differ; before collapse")


def test_predictions_of_collapsed_networks_count_for_nothing():
    """Networks that give every input one class have a radius that anybody predicts."""
    judged = judge(masked(1.5, accuracy=lambda alpha: 0.95 if alpha < 0.5 else 0.1))
    row = judged[judged["claim"] == "C9"].iloc[0]
    assert row["effect"] == pytest.approx(0.5 * (0.2 - 0.1 * 0.3) / 0.2, rel=0.02)
    collapsed = judge(masked(1.0, accuracy=lambda alpha: 0.95 if alpha == 0 else 0.1))
    row = collapsed[collapsed["claim"] == "C9"].iloc[0]
    assert row["verdict"] == "inconclusive"
    assert row["note"] == "no sparsity above 0 before collapse"
    assert np.isnan(row["effect"])


def test_activation_sparsity_is_judged_by_its_own_claim():
    """A rise and a fall under the activation condition support C6 twice, and say nothing of C3 and C4."""
    frame = made_up(lambda alpha: 0.8 * alpha * (1 - alpha), noise=1e-3)
    frame = frame[frame["family"] == "mlp"]
    frame = frame.assign(pruning=frame["pruning"].cat.rename_categories({"magnitude": "activation"}))
    judged = judge(frame)
    assert set(judged["claim"]) == {"C6"}
    assert set(judged[judged["measure"].str.endswith("rise")]["verdict"]) == {"supported"}
    assert set(judged[judged["measure"].str.endswith("fall")]["verdict"]) == {"supported"}


@pytest.mark.parametrize(
    ("condition", "mark"),
    [
        ("surgery", "surgery"),
        ("n-of-4", "N:4"),
        ("n-of-16", "N:16"),
        ("n-of-4-shuffled", "N:4 shuffled"),
        ("n-of-16-shuffled", "N:16 shuffled"),
        ("units", "units"),
    ],
)
def test_other_ways_of_pruning_are_judged_beside_magnitude(condition, mark):
    """Each as C3 and C4, by its own rows: here it rises and falls where magnitude pruning does not."""
    flat, hill = (
        frame[frame["family"] == "mlp"]
        for frame in (made_up(lambda _: 0.0, noise=1e-3), made_up(lambda a: 0.8 * a * (1 - a), noise=1e-3))
    )
    named = hill[hill["pruning"] == "magnitude"]
    named = named.assign(pruning=named["pruning"].cat.rename_categories({"magnitude": condition}))
    judged = judge(pd.concat([flat.astype({"pruning": str}), named.astype({"pruning": str})]))
    own = judged["measure"].str.endswith(f", {mark}")
    assert set(judged[own]["claim"]) == {"C3", "C4"}
    assert set(judged[own]["verdict"]) == {"supported"}
    assert "supported" not in set(judged[~own & judged["claim"].isin(["C3", "C4"])]["verdict"])


def at(frame: pd.DataFrame, pruning: str, sparsity: float, seed: int = 3) -> pd.Series:
    return (frame["pruning"] == pruning) & (frame["sparsity"] == sparsity) & (frame["seed"] == seed)


HOLES = {
    "a network is missing": lambda frame, rows: frame[~rows],
    "its radius is infinite": lambda frame, rows: frame.assign(
        value=frame["value"].where(~rows | (frame["quantity"] == "accuracy"), np.inf)
    ),
    "its accuracy is not known": lambda frame, rows: frame[~rows | (frame["quantity"] != "accuracy")],
}


@pytest.mark.parametrize("hole", HOLES)
def test_a_sparsity_with_a_hole_is_named_and_no_claim_on_all_is_made(hole):
    """The gain stands at this sparsity alone: without it nothing gains, and nothing may say so."""
    frame = made_up(lambda alpha: 0.3 * (alpha == 0.9), noise=1e-3)
    assert verdicts_by_claim(frame)["C3"] == {"supported"}
    judged = judge(HOLES[hole](frame, at(frame, "magnitude", 0.9)))
    told = judged[judged["claim"].isin(["C2", "C3", "C4"])]
    assert set(told["verdict"]) == {"inconclusive"}
    assert told["note"].str.endswith("; without 0.9: a network has no value").all()
    assert judged["note"].str.contains("; without 0.9: a network has no value").all()


@pytest.mark.parametrize("pruning", ["dense", "magnitude"])
def test_a_seed_without_its_counterpart_does_not_count(pruning):
    frame = made_up(lambda alpha: 0.8 * alpha * (1 - alpha))
    whole = judge(frame[frame["seed"] != 3])
    lost = judge(frame[(frame["seed"] != 3) | (frame["pruning"] != pruning)])
    pd.testing.assert_frame_equal(lost, whole)
    assert set(whole["seeds"]) == {7}


@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_a_dense_network_without_robustness_leaves_its_sparsity_open(sparsity):
    """No gain over nothing is a number; nor is there a rise or fall without the networks at 0."""
    frame = made_up(lambda alpha: 0.3 * (alpha == 0.3) - 0.3 * (alpha > 0.95), noise=1e-3)
    frame.loc[at(frame, "dense", sparsity) & (frame["quantity"] != "accuracy"), "value"] = 0.0
    judged = judge(frame)
    falls = judged[judged["claim"] == "C4"]
    assert set(falls["verdict"]) == ({"inconclusive"} if sparsity == 0 else {"supported"})
    assert judged["note"].str.contains(f"; without {sparsity:g}: a network has no value").all()


def one(judged: pd.DataFrame, claim: str, measure: str) -> pd.Series:
    """The verdict on one measure."""
    (row,) = (row for _, row in judged.iterrows() if (row["claim"], row["measure"]) == (claim, measure))
    return row


def with_capped(frame: pd.DataFrame, pruning: str, sparsity: float) -> pd.DataFrame:
    """As the best attack in l_inf sees it when one example of one network withstands it."""
    rows = frame[at(frame, pruning, sparsity) & (frame["method"] == "best") & (frame["norm"] == "linf")]
    return pd.concat([frame.astype({"quantity": str}), rows.assign(quantity="capped", value=1.0)])


def test_a_gain_that_may_be_the_caps_supports_nothing():
    frame = made_up(lambda alpha: 0.3 * (alpha == 0.6), noise=1e-3)
    judged = judge(with_capped(frame, "magnitude", 0.6))
    told = one(judged, "C3", "R_inf, best attack")
    assert told["verdict"] == "inconclusive"
    assert told["note"].endswith("; without 0.6: an example withstood the attack")
    assert one(judged, "C3", "R_2, best attack")["verdict"] == "supported"


@pytest.mark.parametrize(("pruning", "verdict"), [("magnitude", "refuted"), ("dense", "inconclusive")])
def test_where_the_cap_can_only_add_to_a_gain_there_is_none_without_it(pruning, verdict):
    frame = with_capped(made_up(lambda alpha: -0.3 * alpha, noise=1e-3), pruning, 0.9)
    judged = judge(frame)
    for claim in ("C3", "C4"):
        assert one(judged, claim, "R_inf, best attack")["verdict"] == verdict
        assert one(judged, claim, "R_2, best attack")["verdict"] == "refuted"


def test_no_verdict_hangs_on_the_order_of_seeds():
    """Nor does an interval of the best sparsity name one that was not measured."""
    frame = made_up(lambda alpha: 0.1 * alpha * (1 - alpha), seeds=5, noise=0.05)
    judged = judge(frame)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        again = judge(frame.assign(seed=frame["seed"].map(dict(enumerate(order)))))
        pd.testing.assert_frame_equal(again, judged)
    best = judged[judged["claim"] == "C4"]
    assert set(best["low"]) | set(best["high"]) <= set(SPARSITIES)
    assert (best["low"] < best["high"]).any()


@pytest.mark.parametrize("seeds", [2, 5, 10, 12])
def test_resamples_are_those_of_the_bootstrap(seeds):
    shares, chances = verdicts.resamples(seeds)
    assert chances.sum() == pytest.approx(1)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    tolerance = 1e-9 if seeds <= 10 else 5 / (seeds * len(shares)) ** 0.5
    np.testing.assert_allclose(chances @ shares, np.full(seeds, 1 / seeds), atol=tolerance)
    # One seed's share is binomial.
    variance = (1 / seeds) * (1 - 1 / seeds) / seeds
    np.testing.assert_allclose(
        chances @ shares**2 - 1 / seeds**2, variance, rtol=1e-9 if seeds <= 10 else 0.2
    )


def test_the_gain_that_could_be_seen_is_that_of_the_sparsity_in_doubt():
    rng = np.random.default_rng(0)
    sure, wild = 0.01 * rng.normal(size=5), 0.1 * rng.normal(size=5)
    best = trends.best_gain(pd.DataFrame({0.3: sure - sure.mean() + 0.004, 0.6: wild - wild.mean()}))
    assert (best.sparsity, best.high < 0.05) == (0.3, True)
    assert best.doubt.endswith(" at 0.6")
    assert float(best.doubt.partition("gain of ")[2].partition("%")[0]) / 100 > wild.std()


def test_a_gain_below_the_margin_is_never_said_to_be_seen():
    """It may be significant in nearly every table, and would count in few."""
    noise = np.random.default_rng(0).normal(size=12)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    best = trends.best_gain(pd.DataFrame({0.5: 0.022 + 0.045 * noise}))
    said = float(best.doubt.partition("80 % power for a gain of ")[2].partition("%")[0]) / 100
    assert trends.detectable(0.045, 12, 0.025) < 0.045 < 0.055 < said


def test_a_flat_curve_neither_rises_nor_falls():
    shares = 1 + 1e-3 * np.outer([0, 0, -1, -2, 0], [0, 1, 2, 1, 2])
    found = trends.falls_again(Curves(shown(shares)), "mlp", BEST)
    assert (found.verdict, found.note) == ("refuted", "no rise; then -0% [-0%, +0%] at 0.99")


@pytest.mark.parametrize("gain", [0.25, 0.1, 0.3, -0.1])
@pytest.mark.parametrize("seeds", [2, 5])
def test_seeds_that_do_not_differ_decide_nothing(gain, seeds):
    """Equal networks do not tell how far from them another one would lie: neither a slope nor a gain."""
    shares = np.full((seeds, 5), 1 + gain)
    shares[:, 0] = 1
    table_ = shown(shares)
    slope = trends.trend(Curves(table_), "mlp", BEST)
    assert (slope.verdict, slope.note) == (
        "inconclusive",
        "before collapse: up to sparsity 0.99; the seeds do not differ",
    )
    assert np.isnan([slope.low, slope.high, slope.p_value]).all()
    for found in (
        trends.some_improvement(Curves(table_), "mlp", BEST),
        trends.no_improvement(Curves(table_), "mlp", BEST),
        trends.falls_again(Curves(table_), "mlp", BEST),
    ):
        assert (found.verdict, found.p_value) == ("inconclusive", 1.0)
        assert "; the seeds do not differ at 0.3, 0.6, 0.9" in found.note


def test_gains_of_a_quantised_measure_that_agree_by_chance_are_no_proof():
    shares = np.array([[1, 1.0, 1.06, 1.01, 0.9], [1, 0.9, 1.06, 0.97, 0.8]])
    found = trends.some_improvement(Curves(shown(shares)), "mlp", BEST)
    assert found.verdict == "inconclusive"
    assert found.note == "at sparsity 0.6; the seeds do not differ at 0.6"


def test_two_seeds_that_may_hide_a_rise_refute_none():
    """Of 60 curves that rise by 2 % among noise of 10 %, none is said not to."""
    hidden = (made_up(lambda alpha: 0.02 * (0 < alpha < 0.95), seeds=2, noise=0.1, draw=k) for k in range(10))
    found = [trends.falls_again(Curves(frame), "mlp", measure) for frame in hidden for measure in RELU]
    assert sum(v.verdict == "refuted" for v in found) == 0
    assert any(v.effect == 0 for v in found)  # the best of both seeds alone would say so of this one


def test_the_trend_is_a_t_test_of_the_seeds_slopes():
    frame = made_up(lambda alpha: 0.1 * alpha, seeds=4, noise=0.05)
    found = trends.trend(Curves(frame), "linear", ("R", "mean_radius", "linf", "exact"))
    rows = frame[(frame["family"] == "linear") & (frame["method"] == "exact") & (frame["norm"] == "linf")]
    values = rows.pivot_table(index="seed", columns=["pruning", "sparsity"], values="value", observed=True)
    gain = (values["magnitude"] / values["dense"] - 1)[list(SPARSITIES)]
    slopes = np.array([np.polyfit(SPARSITIES, row, 1)[0] for row in gain.to_numpy()])
    expected = DescrStatsW(slopes)
    assert found.effect == pytest.approx(expected.mean)
    assert found.p_value == pytest.approx(expected.ttest_mean(0)[1])
    assert (found.low, found.high) == pytest.approx(expected.tconfint_mean(0.05))


def test_a_rise_of_what_never_reaches_the_dense_network_is_no_rise_with_sparsity():
    shares = np.tile([1, 0.5, 0.55, 0.6, 0.65], (5, 1)) + 1e-3 * np.arange(5)[:, None] * [0, 1, 0, 2, 1]
    assert trends.trend(Curves(shown(shares)), "mlp", BEST).verdict == "refuted"


def test_a_fall_that_may_be_too_small_is_said_to_be_open():
    shares = np.tile([1, 1.1, 1.2, 1.3, 1.24], (5, 1))
    shares[:, 1:-1] += 1e-3 * np.random.default_rng(0).normal(size=(5, 3))
    shares[:, -1] += [0.03, -0.03, 0.02, -0.02, 0.0]
    found = trends.falls_again(Curves(shown(shares)), "mlp", BEST)
    assert (found.verdict, found.note) == (
        "inconclusive",
        "then -5% [-6%, -3%] at 0.99; whether the fall is 5% is open",
    )


def test_a_theorem_without_a_case_is_not_supported():
    members = Members("d", "mlp", ["magnitude"], [0.5], [0.5], [0])
    parts = [
        Rows(members, np.array([number]), quantity, "universal ceiling", "check", "l2")
        for quantity, number in (("cases", 0), ("violations", 0), ("tightness", np.nan))
    ]
    judged = judge(table(parts, provenance=PROVENANCE).to_pandas())
    (told,) = judged[judged["claim"] == "C7"].itertuples()
    assert (told.verdict, told.test) == ("inconclusive", "0 cases")


def test_data_sets_are_not_pooled():
    frame = made_up(lambda alpha: 0.3 * alpha)
    with pytest.raises(InvalidInput, match="table has linear on d, other; give the rows of one data set"):
        judge(pd.concat([frame, frame.assign(dataset="other")]))


def test_networks_of_several_runs_are_not_compared():
    frame = made_up(lambda alpha: 0.3 * alpha)
    for rows in (
        pd.concat([frame, frame.assign(settings="t")]),
        frame.assign(settings=np.where(frame["seed"] < 4, "s", "t")),
        frame.assign(settings=np.where(frame["pruning"] == "dense", "s", "t")),
    ):
        with pytest.raises(InvalidInput, match="table has linear of the settings s, t; give the rows of one"):
            judge(rows)
    with pytest.raises(InvalidInput, match="magnitude, for one seed and sparsity, of the settings s; give"):
        judge(pd.concat([frame, frame]))


def of_seed(frame: pd.DataFrame, pruning: str) -> pd.Series:
    return (frame["pruning"] == pruning) & (frame["seed"] == 5)


@pytest.mark.parametrize("pruning", ["random", "dense"])
def test_a_seed_without_its_counterpart_predicts_nothing(pruning):
    frame = masked(1.5)
    (whole,) = predictions(Curves(frame[frame["seed"] != 5]), "mlp", "l2")
    (lost,) = predictions(Curves(frame[~of_seed(frame, pruning)]), "mlp", "l2")
    assert lost == whole
    assert (whole.verdict, whole.seeds) == ("refuted", 5)


@pytest.mark.parametrize("pruning", ["random", "dense"])
def test_a_prediction_without_its_networks_accuracy_is_left_out_by_name(pruning):
    frame = masked(1.5)
    hole = of_seed(frame, pruning) & (frame["sparsity"] == 0.6) & (frame["quantity"] == "accuracy")
    (told,) = predictions(Curves(frame[~hole]), "mlp", "l2")
    assert told.note.endswith("; without 0.6: a network has no value")
    wanted = 0.5 * np.mean([0.2 - 0.1 * alpha for alpha in (0.3, 0.9, 0.99)]) / 0.2
    assert told.effect == pytest.approx(wanted, rel=0.02)


def test_a_prediction_of_a_cap_is_left_out_by_name():
    """As one example of one network withstands every attack in l_2."""
    frame = masked(1.5)
    rows = frame[at(frame, "random", 0.6) & (frame["method"] == "best") & (frame["norm"] == "l2")]
    capped = rows.assign(quantity="capped", value=(rows["seed"] == 3).astype(float))
    (told,) = predictions(Curves(pd.concat([frame.astype({"quantity": str}), capped])), "mlp", "l2")
    assert told.note.endswith("; without 0.6: an example withstood the attack")
    (without,) = predictions(Curves(frame[frame["sparsity"] != 0.6]), "mlp", "l2")
    assert (told.effect, told.low, told.high) == (without.effect, without.low, without.high)


def test_a_sparsity_of_collapse_below_others_is_left_out_by_name():
    """Networks that recover at a higher sparsity: "before collapse" alone would count the lower one in."""
    judged = judge(made_up(lambda alpha: 0.3 * alpha, accuracy=lambda alpha: 0.1 if alpha == 0.6 else 0.95))
    told = judged[judged["claim"] == "C1"]["note"]
    assert told.str.startswith("before collapse: up to sparsity 0.99; without 0.6: collapsed there").all()
    last = judge(made_up(lambda alpha: 0.3 * alpha, accuracy=lambda alpha: 0.1 if alpha > 0.9 else 0.95))
    assert set(last[last["claim"] == "C1"]["note"]) == {"before collapse: up to sparsity 0.9"}


@pytest.mark.parametrize("gone", [(0.3, 0.6), (0.3, 0.6, 0.9), SPARSITIES[1:]])
def test_where_every_pruned_network_withstood_an_example_none_gains_all_the_same(gone):
    frame = made_up(lambda alpha: -0.3 * (alpha > 0), noise=1e-3)
    for alpha in gone:
        frame = with_capped(frame, "magnitude", alpha)
    judged = judge(frame)
    left_out = f"; without {', '.join(map(str, gone))}: an example withstood the attack"
    for claim in ("C3", "C4"):
        told = one(judged, claim, "R_inf, best attack")
        assert (told["verdict"], told["note"].endswith(left_out)) == ("refuted", True)
    gain = one(judged, "C3", "R_inf, best attack")["effect"]
    assert gain == pytest.approx(-0.3, abs=0.01)


def test_where_every_pruned_network_withstood_an_example_none_is_said_to_gain():
    frame = made_up(lambda alpha: 0.3 * (alpha > 0), noise=1e-3)
    for alpha in SPARSITIES[1:]:
        frame = with_capped(frame, "magnitude", alpha)
    told = one(judge(frame), "C3", "R_inf, best attack")
    assert (told["verdict"], np.isnan(told["effect"])) == ("inconclusive", True)
    assert told["note"].startswith(
        "a paired test needs 2 seeds and a sparsity above 0 at which their networks"
    )


@settings(max_examples=20)
@given(st.integers(2, 12), st.floats(1e-3, 0.2), st.floats(0.01, 10))
@example(2, 0.05 / 12, 1.0)
def test_what_counts_is_what_statsmodels_says_where_all_of_it_does(seeds, alpha, spread):
    expected = trends.detectable(spread, seeds, alpha)
    assert trends.countable(spread, seeds, alpha, least=0.0) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("seeds", "spread"), [(5, 0.02), (12, 0.045), (3, 0.2)])
def test_the_gain_that_could_be_seen_is_seen_four_times_in_five(seeds, spread):
    """As one that counts: significant, and of 5 % or more (limit: 4 standard errors)."""
    trials, rng = 1500, np.random.default_rng(3)
    said = trends.countable(spread, seeds, 0.025)
    found = [
        trends.best_gain(pd.DataFrame({0.5: said + spread * rng.normal(size=seeds)})).counts
        for _ in range(trials)
    ]
    assert abs(np.mean(found) - 0.8) < 4 * (0.8 * 0.2 / trials) ** 0.5


@pytest.mark.parametrize("kind", ["measured", "estimate"])
def test_predictions_leave_out_sparsities_with_a_hole(kind):
    frame = masked(1.5)
    hole = at(frame, "random", 0.6) & (frame["kind"] == kind) & (frame["quantity"] == "mean_radius")
    told = judge(frame[~hole])
    row = told[told["claim"] == "C9"].iloc[0]
    assert row["verdict"] == "refuted"
    assert row["note"].endswith("; without 0.6: a network has no value")
    wanted = 0.5 * np.mean([0.2 - 0.1 * alpha for alpha in (0.3, 0.9, 0.99)]) / 0.2
    assert row["effect"] == pytest.approx(wanted, rel=0.02)
