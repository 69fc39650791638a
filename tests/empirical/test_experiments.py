"""Experiment files are read strictly, and every shipped one is sound."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from empirical.cli.main import main
from empirical.experiments import Experiment, catalog, read_experiment
from empirical.training.adversarial import Adversary
from empirical.training.augmentation import Augmentation
from empirical.training.recipe import Recipe, Schedule
from empirical.training.surgery import Surgery
from theory.types import InvalidInput

PLAIN = """
title = "Mine"
data = "digits"
sparsities = [0, 0.5]

[network]
kind = "mlp"
hidden = [8]
"""
LINEAR = '[0, 0.5]\nconditions = ["dense", "{}"]\n\n[network]\nkind = "linear"'
AUGMENTED = """[first]
epochs = 1
[retrain]
epochs = 1
[retrain.augmentation]
padding = 1
"""


@pytest.fixture
def written(tmp_path):
    """A function that writes an experiment file and returns its name."""

    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", catalog())
def test_shipped_experiments_are_sound(name):
    experiment = read_experiment(name)
    assert experiment.name == name
    few = {"structured-mnist": 5, "E6-short": 6, "two-of-four-mnist": 3}
    assert len(experiment.sparsities) >= few.get(name, 4 if "small-dense" in name else 8)
    if "[quick]" in catalog()[name].read_text():
        quick = read_experiment(name, quick=True)
        assert quick.network.kind == experiment.network.kind
        assert set(quick.sparsities) <= set(experiment.sparsities) | {0.99}
        assert quick.seeds < experiment.seeds


def test_a_file_is_read_as_written(written):
    experiment = read_experiment(written(PLAIN + "[first]\nepochs = 3\nlearning_rate = 1\n"))
    assert experiment.name == "mine"
    assert experiment.sparsities == (0.0, 0.5)
    assert experiment.network.hidden == (8,)
    assert experiment.first == Recipe(epochs=3, learning_rate=1.0)


def test_tables_of_a_recipe_are_read(written):
    schedule = '[first.schedule]\nshape = "inverse"\ndecay = 1e-4\npower = 0.75\n'
    adversary = "[first.adversary]\neps = 0.1\nstep = 0.1\nbox = [0, 1]\n"
    first = read_experiment(written(PLAIN + "[first]\nepochs = 3\n" + schedule + adversary)).first
    assert first.schedule == Schedule(shape="inverse", decay=1e-4, power=0.75)
    assert first.adversary == Adversary(eps=0.1, step=0.1)


def test_quick_replaces_entries_inside_tables(written):
    name = written(PLAIN + "[first]\nepochs = 30\nbatch_size = 7\n[quick]\nseeds = 2\nfirst = {epochs = 1}\n")
    assert read_experiment(name).first == Recipe(epochs=30, batch_size=7)
    quick = read_experiment(name, quick=True)
    assert quick.first == Recipe(epochs=1, batch_size=7)
    assert (read_experiment(name).seeds, quick.seeds) == (5, 2)


def test_surgery_is_given_its_schedule_and_older_ids_stay(written):
    surgery = PLAIN.replace("[0, 0.5]", '[0, 0.5]\nconditions = ["dense", "surgery"]')
    plain = read_experiment(written(surgery))
    falling = read_experiment(
        written(surgery.replace("data =", "surgery_decay = 1e-4\nsurgery_power = 2\ndata ="))
    )
    assert plain.retraining("surgery", level=1).surgery == Surgery(share=0.5)
    assert falling.retraining("surgery", level=1).surgery == Surgery(share=0.5, decay=1e-4, power=2.0)
    assert falling.retraining("dense", level=1) == falling.retrain
    # Among the entries of training, which --networks compares.
    told = falling.describe()
    schedule = {"surgery_decay": 1e-4, "surgery_power": 2.0}
    assert told.pop("retrain") == plain.describe()["retrain"] | schedule
    assert told == {key: value for key, value in plain.describe().items() if key != "retrain"}
    assert not any("surgery" in key for key in (*plain.describe(), *plain.describe()["retrain"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title =", "titel ="), "entry titel is unknown"),
        (('kind = "mlp"', 'kind = "mpl"'), "network.kind is 'mpl'"),
        (('kind = "mlp"', 'kind = "linear"'), "'linear' has none"),
        (("hidden = [8]", "hiden = [8]"), "entry network.hiden is unknown"),
        (("hidden = [8]", "hidden = [8.5]"), "network.hidden is 8.5"),
        (("hidden = [8]", "hidden = []"), "an mlp has widths >= 1: give such as hidden"),
        (("[0, 0.5]", "[0.1, 0.5]"), "rise from 0"),
        (("[0, 0.5]", "[0, 1.5]"), "sparsities is 1.5"),
        (("[0, 0.5]", "0.5"), "sparsities is 0.5; give a list, each entry a number"),
        (
            ("[0, 0.5]", '[0, 0.3]\nconditions = ["n-of-4"]'),
            "with n-of-4, one of the sparsities is 0.3; of 4",
        ),
        (('title = "Mine"', "title = 3"), "title is 3"),
        (('data = "digits"', ""), "data"),
        (("[network]", "seeds = 0\n[network]"), "seeds is 0"),
        (("[network]", "seeds = true\n[network]"), "seeds is True"),
        (("[network]", "masks = 1\n[network]"), "masks is 1"),
        (("[network]", "eps = nan\n[network]"), "eps is nan"),
        (("[network]", "pair = [1, 1]\n[network]"), r"pair is \[1, 1\]"),
        (
            ("[network]", "pair = [-1, 7]\n[network]"),
            r"pair is \[-1, 7\]; name two different classes",
        ),
        (("[network]", 'attacks = ["fsg"]\n[network]'), r"attacks is \['fsg'\]"),
        (("[network]", 'conditions = ["dense", "dense"]\n[network]'), "choose different ones"),
        (("[network]", "first = 3\n[network]"), "first is 3; it must be a table"),
        (("[network]", "box = [0, 1]\n[network]"), r"box is \[0, 1\]; give true or false"),
        (
            ("[network]", "first = {surgery = 3}\n[network]"),
            "first.surgery is 3; give none: conditions set it",
        ),
        (("[network]", "surgery_decay = 1\n[network]"), "surgery_decay is 1.0, but conditions is"),
        (("[network]", "surgery_decay = -1\n[network]"), "surgery_decay is -1.0; it must be finite"),
        (("[network]", "surgery_power = 0\n[network]"), "surgery_power is 0.0; it must be positive"),
        (("[network]", "surgery_power = 2\n[network]"), "surgery_power is 2.0, which does nothing without"),
        (
            ('[0, 0.5]\n\n[network]\nkind = "mlp"\nhidden = [8]', LINEAR.format("activation")),
            "activation is for a network with hidden layers",
        ),
        (
            ('[0, 0.5]\n\n[network]\nkind = "mlp"\nhidden = [8]', LINEAR.format("small-dense")),
            "small-dense is for a network with hidden layers",
        ),
        (("[network]", "first = {epochs = -1}\n[network]"), "epochs is -1"),
        (("[network]", "[network"), "is no TOML file"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_entries_are_named(written, change, message):
    assert change[0] in PLAIN
    with pytest.raises(InvalidInput, match=message):
        read_experiment(written(PLAIN.replace(*change)))


def test_bad_files_are_named(tmp_path, written):
    with pytest.raises(InvalidInput, match="experiment is 'E33'; choose one of E1"):
        read_experiment("E33")
    with pytest.raises(InvalidInput, match="no \\[quick\\] table"):
        read_experiment(written(PLAIN), quick=True)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="is no TOML file"):
        read_experiment(str(tmp_path / "binary.toml"))


@pytest.mark.parametrize("condition", ["units", "small-dense"])
@pytest.mark.usefixtures("unchecked")
def test_a_sparsity_that_no_widths_come_to_is_named_before_any_work(written, tmp_path, condition):
    out = tmp_path / "out"
    name = written(PLAIN.replace("[0, 0.5]", f'[0, 0.5, 0.999]\nconditions = ["dense", "{condition}"]'))
    result = CliRunner().invoke(main, ["run", name, "--workers", "1", "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert f"with {condition}, one of the sparsities is 0.999, which no widths come to" in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"digits"', '"THREE"'), "pair is (1, 7) in mine; the data has 3 classes"),
        (("data =", "test_examples = 1\ndata ="), "all of these are of one class"),
        (("[network]", AUGMENTED + "[network]"), "retrain.augmentation in mine shifts"),
        (
            ('kind = "mlp"\nhidden = [8]', 'kind = "lenet-5"'),
            "of shape (64,); network.kind 'lenet-5' takes",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_would_fail_once_networks_are_trained_is_named_before(written, tmp_path, change, message):
    x, y = np.random.default_rng(0).random((30, 4)), np.arange(30) % 3
    np.savez(tmp_path / "three.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    text = PLAIN.replace("[0, 0.5]", '[0, 0.5]\nconditions = ["dense", "random"]').replace(*change)
    name, out = written(text.replace("THREE", str(tmp_path / "three.npz"))), tmp_path / "out"
    result = CliRunner().invoke(main, ["run", name, "--workers", "1", "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("condition", "sparsities", "retrain", "message"),
    [
        ("surgery", "[0, 0.5, 1.0]", "", "with surgery, one of the sparsities is 1, .* share is 1.0"),
        ("surgery", "[0, 0.5]", "l1 = 0.001", "with surgery, one of the sparsities is 0.5, .* l1 is 0.001"),
        (
            "l1",
            "[0, 0.001]",
            'optimiser = "adam"',
            "with l1, one of the sparsities is 0.001, .* optimiser sgd",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_recipes_that_conditions_will_refuse_are_named(written, condition, sparsities, retrain, message):
    text = PLAIN.replace("[0, 0.5]", f'{sparsities}\nconditions = ["dense", "{condition}"]')
    with pytest.raises(
        InvalidInput, match=f"{message}.*; change retrain or sparsities, or leave {condition}"
    ):
        read_experiment(written(f"{text}[retrain]\nepochs = 1\n{retrain}\n"))


def test_the_experiments_that_the_docs_run_together_share_a_table():
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    together = re.findall(r"^sparse-robustness run (\w\S* \w\S*(?: \w\S*)*) --out", text, flags=re.MULTILINE)
    assert together
    for names in together:
        kinds = [read_experiment(name).network.kind for name in names.split()]
        assert len(set(kinds)) == len(kinds)


@pytest.mark.usefixtures("unchecked")
def test_experiments_that_one_table_cannot_tell_apart_are_refused(written, tmp_path):
    mine = written(PLAIN)
    (tmp_path / "other.toml").write_text(PLAIN)
    arguments = ["run", mine, str(tmp_path / "other.toml"), "--workers", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert "mine and other both have networks of kind 'mlp'" in result.output
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.toml").write_text(PLAIN.replace('"mlp"\nhidden = [8]', '"linear"'))
    arguments[2] = str(tmp_path / "there" / "mine.toml")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert "experiments are named mine, mine; give every one a name of its own" in result.output
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_no_unknown_name(tmp_path):
    for name in ("../nosuch.toml", str(tmp_path / "nosuch.toml")):
        result = CliRunner().invoke(main, ["run", name])
        assert (result.exit_code, result.stderr) == (2, f"Error: experiment is {name!r}; no such file\n")
    unknown = CliRunner().invoke(main, ["run", "digits-nothing"])
    assert (unknown.exit_code, "choose one of" in unknown.stderr) == (2, True)


@pytest.mark.usefixtures("undrawn")
def test_run_takes_a_users_file(written, tmp_path):
    name = written(PLAIN + "[first]\nepochs = 2\n[retrain]\nepochs = 1\n")
    out = tmp_path / "out"
    arguments = ["run", name, "--seeds", "1", "--test-examples", "20", "--workers", "1", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "C3" in result.output
    assert (out / "report.html").is_file()
    listed = CliRunner().invoke(main, ["run", "--list"])
    assert listed.exit_code == 0
    assert "E3" in listed.output
    assert CliRunner().invoke(main, ["run"]).exit_code == 2


def test_the_documentation_names_every_entry_and_its_file_is_an_experiment(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")
    section = page.split("## Entries of a file")[1].split("\n## ")[0]
    (tmp_path / "mine.toml").write_text(section.split("```toml\n")[1].split("```")[0])
    found = read_experiment(str(tmp_path / "mine.toml"))
    assert (found.network.hidden, found.first.epochs, found.first.schedule.shape) == ((100, 50), 10, "cosine")
    kinds = (Experiment, Recipe, Schedule, Augmentation, Adversary)
    entries = {field.name for kind in kinds for field in fields(kind)} - {"network", "first", "retrain"}
    entries -= {"surgery", "schedule", "augmentation", "adversary"}  # tables, and what `surgery` sets itself
    assert {name for name in entries if f"`{name}`" not in section} == set()
