"""The exact distance from a point to a half-space within a box, by sorting: an oracle for attacks."""

import math

import numpy as np


def distance_in_box(
    weight: np.ndarray, need: float, x: np.ndarray, *, p: float, box: tuple[float, float]
) -> float:
    """min ||d||_p with weight . d >= need > 0 and x + d in the box; inf where the box has no such point.

    The best d is min(t |weight_i|, room_i) in l_2, min(t, room_i) in l_inf, towards the weight's sign, for
    the smallest t that suffices: the gain is piecewise linear in t, with a kink where a feature hits a wall.
    """
    size = np.abs(weight)
    room = np.where(weight > 0, box[1] - x, x - box[0])[size > 0]
    size = size[size > 0]
    if need > size @ room * (1 - 1e-12):
        return math.inf
    speed = size if p == 2 else np.ones_like(size)  # of a feature in t
    kinks = room / speed
    order = np.argsort(kinks)
    gained, rate, at = 0.0, size @ speed, 0.0
    for i in order:
        step = (need - gained) / rate
        if at + step <= kinks[i]:
            break
        gained, at = gained + rate * (kinks[i] - at), kinks[i]
        rate = max(rate - size[i] * speed[i], 1e-300)
    t = at + (need - gained) / rate
    return float(np.linalg.norm(np.minimum(t * speed, room))) if p == 2 else float(t)


def radius_in_box(
    weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: int, *, p: float, box: tuple[float, float]
) -> float:
    """Smallest l_p perturbation within the box that changes a linear classifier's class; 0 if it is wrong."""
    scores = weight @ x + bias
    others = [k for k in range(len(bias)) if k != y]
    if any(scores[k] >= scores[y] for k in others):
        return 0.0
    return min(
        distance_in_box(weight[k] - weight[y], scores[y] - scores[k], x, p=p, box=box)
        if (weight[k] != weight[y]).any()
        else math.inf
        for k in others
    )
