"""What a condition, a family and a norm are called, and how they look: the same in every figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.typing import LineStyleType

GREY = "#767676"
BOUND = "#009E73"
NORM = {"l2": r"$\ell_2$", "linf": r"$\ell_\infty$"}
LINEAR = ("linear-binary", "linear")
FAMILIES = {
    "linear-binary": "Linear, two classes",
    "linear": "Linear, all classes",
    "mlp": "ReLU network",
    "lenet-5": "LeNet-5",
    "vgg": "VGG",
    "resnet-32": "ResNet-32",
}


@dataclass(frozen=True)
class Look:
    """A curve's label, colour and line style."""

    label: str
    colour: str
    line: LineStyleType


# Colours of Okabe and Ito and of Tol, which remain apart for the colour-blind; line styles for print in grey.
# What is not trained after pruning is dotted.
CONDITIONS = {
    "dense": Look("dense, equally trained", "#000000", (0, (5, 1.5))),
    "magnitude": Look("magnitude, retrained", "#0072B2", "solid"),
    "global": Look("one threshold, retrained", "#56B4E9", (0, (7, 1.2))),
    "n-of-4": Look("N:4, retrained", "#AA4499", (0, (4, 1.2, 1.2, 1.2, 1.2, 1.2))),
    "n-of-16": Look("N:16, retrained", "#44AA99", (0, (2.5, 1.2, 2.5, 1.2, 1.2, 1.2))),
    "n-of-4-shuffled": Look("N:4 of shuffled inputs", "#AA4499", (0, (6, 1.2))),
    "n-of-16-shuffled": Look("N:16 of shuffled inputs", "#44AA99", (0, (6, 1.2))),
    "units": Look("whole units, retrained", "#CC3311", (0, (7, 1.2, 2.5, 1.2))),
    "random-retrained": Look("random, retrained", "#D55E00", (0, (5, 1.2, 1.2, 1.2))),
    "lottery": Look("magnitude, rewound", "#882255", (0, (3, 1))),
    "surgery": Look("network surgery", "#117733", "solid"),
    "l1": Look("L1 term on weights", "#332288", (0, (7, 1.2, 1.2, 1.2))),
    "activation": Look("L1 term on activations", "#009E73", "solid"),
    "small-dense": Look("smaller dense network", "#999933", (0, (5, 1, 1.2, 1, 1.2, 1))),
    "one-shot": Look("magnitude, not retrained", "#E69F00", (0, (2, 1))),
    "random": Look("random, not retrained", "#CC79A7", (0, (1.2, 1.2))),
}
_UNKNOWN = ("#DDCC77", "#999999")


def look_of(condition: str) -> Look:
    """The look of a condition; one that is not listed keeps its name and gets a colour by its letters."""
    if condition in CONDITIONS:
        return CONDITIONS[condition]
    colour = _UNKNOWN[sum(map(ord, condition)) % len(_UNKNOWN)]
    return Look(condition, colour, (0, (6, 1.2, 2, 1.2)))


def in_order(names: set[str], known: Mapping[str, object]) -> list[str]:
    """Names in the order of ``known``, then the others by the alphabet."""
    return [name for name in known if name in names] + sorted(names - set(known))


# The attack of the paper in each norm, and what it and the strongest one look like beside each other.
WEAK = {"linf": ("fgs", "FGS"), "l2": ("deepfool", "DeepFool")}
WEAK_LOOK = Look("FGS or DeepFool", "#E69F00", (0, (4, 1.2)))
STRONG_LOOK = Look("strongest attack", "#332288", "solid")
