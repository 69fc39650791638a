"""The experiment file: TOML, read strictly, so that a misspelt key is an error and never a default."""

from __future__ import annotations

import reprlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from empirical.training.adversarial import Adversary
from empirical.training.augmentation import Augmentation
from empirical.training.recipe import Recipe, Schedule
from empirical.training.surgery import Surgery
from theory.types import InvalidInput, check_sparsity, count_removed

CATALOG = Path(__file__).with_name("catalog")
LINEAR_KINDS = ("linear-binary", "linear")
CONVOLUTIONAL_KINDS = ("lenet-5", "vgg", "resnet-32")
NETWORK_KINDS = (*LINEAR_KINDS, "mlp", *CONVOLUTIONAL_KINDS)
# How a network comes to a sparsity; empirical/experiments/conditions.py says what each does.
CONDITIONS = (
    "dense",
    "magnitude",
    "global",
    "n-of-4",
    "n-of-16",
    "n-of-4-shuffled",
    "n-of-16-shuffled",
    "units",
    "one-shot",
    "random",
    "random-retrained",
    "lottery",
    "small-dense",
    "surgery",
    "l1",
    "activation",
)
SCALED = ("units", "small-dense")  # conditions at the widths of a smaller dense network
HIDDEN = ("small-dense", "activation")  # conditions of networks with a hidden layer
# Conditions that prune groups of so many weights.
N_OF_M = {"n-of-4": 4, "n-of-16": 16, "n-of-4-shuffled": 4, "n-of-16-shuffled": 16}
# An experiment file is a page. The reader of TOML needs the square of a dotted key's length in memory.
_LARGEST, _LONGEST = 2**16, 1000
# More networks, masks or weights between two layers than any machine holds; a misprint, no experiment.
_MOST = {"seeds": 10**5, "masks": 10**6}
_MOST_WEIGHTS = 2**32
ATTACKS = ("fgs", "rfgs", "deepfool", "pgd", "ddn", "fmn", "fmn-init", "cw")
LOCAL = ("crown", "jacobian", "clever", "exact", "condition")


@dataclass(frozen=True)
class Network:
    """The architecture: ``kind``, hidden widths for an ``mlp``, ``scale`` of a convolutional one's channels.

    Raises: InvalidInput for an unknown kind, or widths or a scale that do not belong to it.
    """

    kind: str
    hidden: tuple[int, ...] = ()
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in NETWORK_KINDS:
            raise InvalidInput(f"network.kind is {self.kind!r}; choose one of {', '.join(NETWORK_KINDS)}")
        if (self.kind == "mlp") != bool(self.hidden) or any(width < 1 for width in self.hidden):
            remedy = "an mlp has widths >= 1: give such as hidden = [300, 100]"
            if self.kind != "mlp":
                remedy = f"a network of kind {self.kind!r} has none: leave hidden out"
            raise InvalidInput(f"network.hidden is {list(self.hidden)}; {remedy}")
        if max(map(prod, pairwise((1, *self.hidden, 1)))) > _MOST_WEIGHTS:
            raise InvalidInput(
                f"network.hidden is {list(self.hidden)}; at most {_MOST_WEIGHTS:,} weights "
                "may lie between two layers"
            )
        if not 0 < self.scale <= 1 or (self.scale != 1 and self.kind not in CONVOLUTIONAL_KINDS):
            raise InvalidInput(
                f"network.scale is {self.scale}; it must lie in (0, 1], and be 1 unless kind is one of "
                f"{', '.join(CONVOLUTIONAL_KINDS)}"
            )

    def widths(self, full: Sequence[int]) -> tuple[int, ...]:
        """Numbers of channels or units after scaling, at least 1 each."""
        return tuple(max(1, round(self.scale * width)) for width in full)


@dataclass(frozen=True)
class Experiment:
    """Everything that decides an experiment's numbers.

    ``seeds`` networks are trained for every condition and taken through ``sparsities``; ``first`` trains the
    dense network, ``retrain`` runs after every further sparsity, for dense references too. ``pair`` are the
    classes of a binary problem and of the random-mask theorem, whose Monte Carlo draws ``masks`` masks.
    Networks are trained on the first ``train_examples`` and attacked at the first ``test_examples``; all
    where that is not given. Attacks keep to the data's box where ``box`` says so, which theory does not.
    ``further_eps`` are steps of the fast gradient sign that no claim is judged at. With ``compact``, networks
    are rounded to half precision after every training and only those that others start from stay on disk.
    ``local`` names what is computed around the first ``local_examples`` test examples of every network
    (:mod:`empirical.local_comparison`); ``local_radii`` are those of the balls of its Lipschitz constants, in
    l_2 and in l_inf. At step t of its training ``surgery`` updates its masks with probability
    (1 + ``surgery_decay`` t)^-``surgery_power``.
    Raises: InvalidInput naming the entry that is out of range.
    """

    name: str
    title: str
    data: str
    network: Network
    sparsities: tuple[float, ...]
    conditions: tuple[str, ...] = ("dense", "magnitude")
    seeds: int = 5
    first: Recipe = field(default_factory=lambda: Recipe(epochs=40))
    retrain: Recipe = field(default_factory=lambda: Recipe(epochs=12))
    attacks: tuple[str, ...] = ("fgs", "deepfool")
    eps: float = 0.1
    further_eps: tuple[float, ...] = ()
    box: bool = False
    pair: tuple[int, int] = (1, 7)
    masks: int = 100
    train_examples: int | None = None
    test_examples: int | None = None
    compact: bool = False
    local: tuple[str, ...] = ()
    local_examples: int = 20
    local_radii: tuple[float, float] = (0.5, 0.05)
    surgery_decay: float = 0.0
    surgery_power: float = 1.0

    def __post_init__(self) -> None:
        for name, low in (
            ("seeds", 1),
            ("masks", 2),
            ("train_examples", 2),
            ("test_examples", 1),
            ("local_examples", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InvalidInput(f"{name} is {value}; it must be at least {low}")
            if value is not None and value > _MOST.get(name, value):
                raise InvalidInput(f"{name} is {value}; it must be at most {_MOST[name]:,}")
        if not self.name.isprintable() or not self.name.strip(".") or set(self.name) & set("/\\"):
            raise InvalidInput(f"name is {self.name!r}; files are named after it, so it must be plain text")
        for alpha in self.sparsities:
            check_sparsity("sparsities", alpha)
        rising = all(a < b for a, b in zip(self.sparsities[:-1], self.sparsities[1:], strict=True))
        if not self.sparsities or self.sparsities[0] != 0 or not rising:
            raise InvalidInput(f"sparsities is {list(self.sparsities)}; give values that rise from 0")
        for condition in (name for name in HIDDEN if name in self.conditions):
            if self.network.kind in LINEAR_KINDS:
                raise InvalidInput(
                    f"conditions is {list(self.conditions)}; {condition} is for a network with hidden layers"
                )
        if "units" in self.conditions and self.network.kind != "mlp":
            raise InvalidInput(f"conditions is {list(self.conditions)}; units are pruned of an mlp only")
        for condition in (name for name in N_OF_M if name in self.conditions):
            for alpha in self.sparsities:
                count_removed(f"with {condition}, one of the sparsities", alpha, N_OF_M[condition])
        for name, known in (("conditions", CONDITIONS), ("attacks", ATTACKS), ("local", LOCAL)):
            chosen = getattr(self, name)
            unknown = [entry for entry in chosen if entry not in known]
            if unknown or not (chosen or name == "local") or len(set(chosen)) < len(chosen):
                raise InvalidInput(f"{name} is {list(chosen)}; choose different ones of {', '.join(known)}")
        for condition in self.conditions:
            for level, alpha in enumerate(self.sparsities[1:], start=1):
                try:
                    self.retraining(condition, level=level)
                except InvalidInput as error:
                    raise InvalidInput(
                        f"with {condition}, one of the sparsities is {alpha:g}, at which retrain would be "
                        f"refused: {error}; change retrain or sparsities, or leave {condition} out"
                    ) from error
        if len(self.pair) != 2 or self.pair[0] == self.pair[1] or min(self.pair) < 0:
            raise InvalidInput(f"pair is {list(self.pair)}; name two different classes, from 0 on")
        for name, steps in (("eps", (self.eps,)), ("further_eps", self.further_eps)):
            if not all(0 < step < float("inf") for step in steps):
                raise InvalidInput(
                    f"{name} is {getattr(self, name)}; steps of the fast gradient sign must be positive"
                )
        self._check_surgery()
        self._check_local()

    def _check_surgery(self) -> None:
        if not 0 <= self.surgery_decay < float("inf"):
            raise InvalidInput(f"surgery_decay is {self.surgery_decay}; it must be finite and not negative")
        if not 0 < self.surgery_power < float("inf"):
            raise InvalidInput(f"surgery_power is {self.surgery_power}; it must be positive and finite")
        if self.surgery_decay and "surgery" not in self.conditions:
            raise InvalidInput(
                f"surgery_decay is {self.surgery_decay}, but conditions is {list(self.conditions)}: "
                "leave it out, or add surgery"
            )
        if self.surgery_power != 1 and not self.surgery_decay:
            raise InvalidInput(
                f"surgery_power is {self.surgery_power}, which does nothing without a positive "
                "surgery_decay: give one, or leave it out"
            )

    def _check_local(self) -> None:
        if len(self.local_radii) != 2 or not all(0 < radius < float("inf") for radius in self.local_radii):
            raise InvalidInput(
                f"local_radii is {list(self.local_radii)}; give two positive radii, in l_2 and in l_inf"
            )
        if self.local and self.box:
            raise InvalidInput(
                f"box is true, but local is {list(self.local)}, which no box bounds; leave one out"
            )
        if self.local and self.network.kind in LINEAR_KINDS:
            raise InvalidInput(
                f"local is {list(self.local)}; {self.network.kind!r} has no hidden layer, and exact radii "
                "anyway: leave local out"
            )
        if "exact" in self.local and self.network.kind != "mlp":
            raise InvalidInput(
                f"local is {list(self.local)}; exact radii can be had of a small mlp, not of a network of "
                f"kind {self.network.kind!r}: leave exact out"
            )

    def retraining(self, condition: str, *, level: int) -> Recipe:
        """How ``condition`` is retrained at sparsity number ``level`` >= 1.

        Those that start there from dense networks are trained as long as all retraining up to it together.
        Raises: InvalidInput if the sparsity is out of range for the condition, or excluded by ``retrain``.
        """
        s, longer = self.sparsities[level], {"epochs": self.retrain.epochs * level}
        match condition:
            case "small-dense":
                return replace(self.retrain, **longer)
            case "surgery":
                cuts = Surgery(share=s, decay=self.surgery_decay, power=self.surgery_power)
                return replace(self.retrain, **longer, surgery=cuts)
            case "l1":
                return replace(self.retrain, l1=s)
            case "activation":
                return replace(self.retrain, activation_l1=s)
        return self.retrain

    def describe(self) -> dict[str, Any]:
        """The experiment as plain JSON values, without later settings that are unused: ids outlive them."""
        plain = asdict(self) | {"first": self.first.describe(), "retrain": self.retrain.describe()}
        schedule = {name: plain.pop(name) for name in ("surgery_decay", "surgery_power")}
        if self.surgery_decay:
            plain["retrain"] |= schedule  # of training, so that --networks compares it
        unused = {name for name in ("further_eps", "compact", "local") if not plain[name]}
        if not self.local:
            unused |= {"local_examples", "local_radii"}
        return {name: value for name, value in plain.items() if name not in unused}


def catalog() -> dict[str, Path]:
    """The shipped experiments: name to file."""
    return {path.stem: path for path in sorted(CATALOG.glob("*.toml"))}


def read_experiment(name: str, *, quick: bool = False) -> Experiment:
    """A shipped experiment by name, or one from the user's own ``.toml`` file.

    ``quick`` applies the file's ``[quick]`` table, a reduced size to try it out.
    Raises: InvalidInput for an unknown name, a damaged file, an unknown or missing entry, a value out of
    range, or ``quick`` where the file has no such table.
    """
    path = catalog().get(name, Path(name))
    if path.suffix != ".toml" or not path.is_file():
        raise InvalidInput(
            f"experiment is {name!r}; choose one of {', '.join(catalog())}, or give an existing .toml file"
        )
    content = _parsed(name, path)
    smaller = content.pop("quick", None)
    if quick:
        if not isinstance(smaller, dict):
            raise InvalidInput(f"experiment {name!r} has no [quick] table; run it without --quick")
        content = _merged(content, smaller)
    return _build(Experiment, {"name": path.stem} | content, where="")


def _parsed(name: str, path: Path) -> dict[str, Any]:
    """The file's entries. Raises: InvalidInput if it is no TOML, or far longer than an experiment."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        text = path.read_text(encoding="utf-8")
        longest = max(map(len, text.split("\n")))
        if longest > _LONGEST:
            raise ValueError(f"a line has {longest:,} characters, more than {_LONGEST:,}")
        return tomllib.loads(text)
    except (ValueError, RecursionError, OSError) as error:  # bad TOML, UTF-8 and numbers are ValueErrors
        raise InvalidInput(f"experiment {name!r} is no TOML file ({error})") from error


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the entries of ``changes`` in their place, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if inner else value
    return merged


_TABLES = {
    "network": Network,
    "first": Recipe,
    "retrain": Recipe,
    "schedule": Schedule,
    "augmentation": Augmentation,
    "adversary": Adversary,
}


def _build(kind: type, content: Mapping[str, Any], *, where: str) -> Any:
    """A dataclass from a table whose keys are its fields, tables inside tables."""
    types = {f.name: str(f.type) for f in fields(kind)}
    for key in content:
        if key not in types:
            raise InvalidInput(
                f"the entry {_shown(where + key)} is unknown; the entries are {', '.join(types)}"
            )
    values = {}
    for key, value in content.items():
        if key in _TABLES:
            if not isinstance(value, dict):
                raise InvalidInput(f"{where}{key} is {reprlib.repr(value)}; it must be a table")
            values[key] = _build(_TABLES[key], value, where=f"{where}{key}.")
        else:
            values[key] = _checked(f"{where}{key}", value, types[key])
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidInput(f"the experiment is incomplete: {str(error).partition('__() ')[2]}") from error


def _checked(name: str, value: Any, wanted: str) -> Any:
    """A TOML value as the field's type; lists become tuples. Raises: InvalidInput if it is another type."""
    options = [part.strip() for part in wanted.split("|")]
    single = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    for option in options:
        if (
            option in single
            and isinstance(value, single[option])
            and isinstance(value, bool) == (option == "bool")
        ):
            return _float(name, value) if option == "float" else value
        if option.startswith("tuple[") and isinstance(value, list):
            item = option.removeprefix("tuple[").partition(",")[0]
            return tuple(_checked(name, entry, item) for entry in value)
    raise InvalidInput(f"{name} is {reprlib.repr(value)}; give {_said(options[0])}")


def _said(wanted: str) -> str:
    """A field's type as TOML writes its values."""
    if wanted.startswith("tuple["):
        return f"a list, each entry {_said(wanted.removeprefix('tuple[').partition(',')[0])}"
    names = {"int": "a whole number", "float": "a number", "str": "a text in quotes", "bool": "true or false"}
    return names.get(wanted, "none: conditions set it")


def _float(name: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidInput(f"{name} is a whole number of too many digits") from error


def _shown(key: str) -> str:
    """A key as it is, or quoted if it is not plain."""
    return key if key.isprintable() else repr(key)
