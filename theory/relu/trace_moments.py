"""Moments of the singular values of a randomly masked matrix: E tr (X X')^p, by closed walks.

E||X||_2^{2p} <= E tr (X X')^p, and the trace is a sum over closed walks of length 2p on the entries of X. Two
ways to sum them, both polynomials in the keep probability whose coefficients depend on the weights alone, so
that one pass over the weights serves every sparsity:

- the fluctuation N = W * (M - k), whose entries are independent with mean 0, so a walk counts only if it uses
  each of its entries at least twice: a *bound* that sums over all walks of one shape by messages on a tree;
- a product Z = X_1 ... X_L of masked matrices with their means, by joint cumulants: an *identity* that sums
  over the set partitions of the steps in each layer, practical for (L, p) = (1, 4) and (2, 2).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.relu.lipschitz import EPS

# A rooted tree: for each child the number of times the walk uses its edge, and the child's own tree.
Tree: TypeAlias = tuple
Polynomial: TypeAlias = dict[tuple[int, ...], Array]
Choice: TypeAlias = tuple[tuple[int, ...], ...]  # one set partition of the steps per layer
Vertex: TypeAlias = tuple[int, int]
Name: TypeAlias = tuple
Sums: TypeAlias = dict[tuple[tuple[int, ...], ...], tuple[Array, int]]

# Orders p of the noise bound. Higher ones are tighter, until large entries dominate, and slower.
ORDERS = (1, 2, 4, 6)


@cache
def walk_shapes(p: int) -> Counter[tuple[Tree, tuple[int, ...]]]:
    """Closed bipartite walks of length 2p that use every edge at least twice, an identity: counts by shape.

    A walk starts at row 0 and names rows and columns in the order of their first visits. Its shape is the
    tree of the edges that discover a vertex, each with its number of uses, and the uses of the other edges.
    """
    found: Counter[tuple[Tree, tuple[int, ...]]] = Counter()
    uses: dict[tuple[int, int], int] = {}
    children: dict[tuple[int, int], list[tuple[tuple[int, int], int]]] = {}
    discovering: set[tuple[int, int]] = set()

    def tree(side: int, vertex: int) -> Tree:
        return tuple(sorted((uses[e], tree(1 - side, w)) for e, w in children.get((side, vertex), ())))

    def walk(step: int, here: int, seen: tuple[int, int], once: int) -> None:
        if once > 2 * p - step:  # the edges used once need a second use each
            return
        if step == 2 * p:
            others = tuple(sorted(uses[e] for e in uses if e not in discovering))
            found[tree(0, 0), others] += 1
            return
        side = step % 2  # 0: from a row to a column
        fresh = seen[1 - side]
        for there in (0,) if step == 2 * p - 1 else range(fresh + 1):
            edge = (here, there) if side == 0 else (there, here)
            if edge in uses:
                uses[edge] += 1
                walk(step + 1, there, seen, once - (uses[edge] == 2))
                uses[edge] -= 1
                continue
            uses[edge] = 1
            if there == fresh:
                discovering.add(edge)
                children.setdefault((side, here), []).append((edge, there))
                wider = (seen[0], fresh + 1) if side == 0 else (fresh + 1, seen[1])
                walk(step + 1, there, wider, once + 1)
                children[side, here].pop()
                discovering.discard(edge)
            else:
                walk(step + 1, there, seen, once + 1)
            del uses[edge]

    walk(0, 0, (1, 0), 0)
    return found


def noise_sums(weight: Float[Array, "*several r s"], p: int) -> Polynomial:
    """Coefficients of a bound of E tr (N N')^p: by the numbers of uses of the edges, sums over the walks.

    For each shape: its walks times sum over all labels of its vertices of prod |w_e|^uses, by messages up
    the discovering tree; an edge outside the tree counts max |w|^uses. Labels that coincide only add. Of
    ``several`` matrices at once, the coefficients are (*several). Scale the matrices first: powers 2 p of
    their largest entries must be floats, or the bound is lost.
    """
    plan, size = _messages(p), np.abs(weight)
    powers = dict(zip(range(1, 2 * p + 1), itertools.accumulate([size] * (2 * p), np.multiply), strict=True))
    # By side, for the rows and the columns: what reaches them from a tree, and what an edge passes on of it.
    several, ends = size.shape[:-2], size.shape[-2:]
    reach = [np.ones((*several, count, n)) for n, count in zip(ends, plan.trees, strict=True)]
    passed = [np.ones((*several, count, n)) for n, count in zip(ends, plan.edges, strict=True)]
    for level in plan.levels:
        for side, uses, children, edges in level.passing:
            power = powers[uses] if side else powers[uses].mT
            passed[side][..., edges, :] = reach[1 - side][..., children, :] @ power
        for side, trees, below in level.joining:
            reach[side][..., trees, :] = math.prod(passed[side][..., edges, :] for edges in below)
    largest = size.max(axis=(-2, -1))[..., None]
    walks = reach[0].sum(axis=-1)[..., plan.roots] * largest**plan.outside * plan.counts
    return {key: np.asarray(walks[..., shapes].sum(axis=-1)) for key, shapes in plan.keys.items()}


def noise_norm(
    sums: dict[int, Polynomial], keep: Float[Array, "*batch"], drop: Float[Array, "*batch"] | None = None
) -> Float[Array, "*several_batch"]:
    """sqrt( E||W * (M - k)||_2^2 ), a bound: the smallest (E tr (N N')^p)^{1/2p} of ``noise_sums`` by p.

    ``drop`` is 1 - k where the difference would round.
    Not rounded outward: all terms are positive, so the caller's count of roundings covers it.
    Reference: this project; the walk count is that of Füredi and Komlós 1981, kept for unequal entries.
    """
    best = np.full((), np.inf)
    for p, polynomial in sums.items():
        moments = {m: central_moment(keep, m, drop) for m in range(2, 2 * p + 1)}
        total = np.zeros(())
        for uses, coefficient in polynomial.items():
            total = total + np.multiply.outer(coefficient, math.prod(moments[m] for m in uses))
        best = np.minimum(best, total ** (1.0 / (2 * p)))
    return np.asarray(best)


def central_moment(
    keep: Float[Array, "*batch"], order: int, drop: Float[Array, "*batch"] | None = None
) -> Float[Array, "*batch"]:
    """|E (m - k)^order| of a Bernoulli(k) entry m, a bound: raised by what the difference may lose."""
    drop = 1.0 - keep if drop is None else drop
    inner = np.abs(drop ** (order - 1) + (-1.0) ** order * keep ** (order - 1))
    return np.asarray(keep * drop * (inner + (order + 2) * EPS))


def cumulant(keep: Float[Array, "*batch"], order: int) -> Float[Array, "*batch"]:
    """Cumulant of a Bernoulli(k) entry, an identity: kappa_1 = k, kappa_{n+1} = k (1-k) d kappa_n / dk."""
    if order == 1:
        return np.asarray(keep)
    # Near 1 the polynomial cancels; there the cumulant is that of 1 - m, up to its sign.
    upper = np.asarray(keep) > 0.5
    value = _cumulant_polynomial(order)(np.where(upper, 1.0 - keep, keep))
    return np.where(upper & (order % 2 == 1), -value, value)


@cache
def _cumulant_polynomial(order: int) -> np.polynomial.Polynomial:
    k = np.polynomial.Polynomial([0.0, 1.0])
    return k if order == 1 else k * (1 - k) * _cumulant_polynomial(order - 1).deriv()


def product_sums(weights: tuple[Float[Array, "*several _ _"], ...], p: int) -> Sums:
    """Coefficients of E tr (Z Z')^p, an identity: by the block sizes in every layer, sums over partitions.

    Z = X_1 ... X_L, X_l = W_l * M_l. The trace sums prod of the 2 p entries that a closed walk takes in every
    layer; their expectation is the sum over set partitions of prod of joint cumulants, which vanish unless
    all entries of a block are the same one. Each value is (sum, number of partitions); of ``several``
    products at once, the sum is (*several). Scale the matrices first: powers 2 p of their largest entries,
    and products of these over the layers, must be floats, or the sums are lost.
    """
    # Inner levels are summed out first, then the wider end.
    tall = weights[0].shape[-2] > weights[-1].shape[-1]
    ranks = (int(tall), *[2] * (len(weights) - 1), int(not tall))
    steps, wanted = _program(p, ranks)
    made: list[np.ndarray] = []
    for kind, first, second in steps:
        match kind:
            case "power":
                made.append(weights[first] ** second)
            case "T":
                made.append(made[first].mT)
            case "times":
                made.append(made[first] @ made[second].mT)
            case "entrywise":
                made.append(made[first] * made[second])
            case _:  # weighted: the rows of the first by the row sums of the second
                made.append(made[first] * made[second].sum(axis=-1)[..., None])
    sums: Sums = {}
    for blocks, numbers in wanted.items():
        value = sum(count * made[number].sum(axis=(-2, -1)) for number, count in numbers.items())
        sums[blocks] = (np.asarray(value), sum(numbers.values()))
    return sums


def product_moment(
    weights: tuple[Float[Array, "*several _ _"], ...], sums: Sums, keep: Float[Array, "*batch l"]
) -> tuple[Float[Array, "*several_batch"], Float[Array, "*several_batch"]]:
    """E tr (Z Z')^p from ``product_sums``, an identity, and a bound of what its cancellation may lose.

    No sum over walks exceeds (prod_l ||W_l||_F)^{2p}.
    """
    total, size = np.zeros(()), np.zeros(keep.shape[:-1])
    order = sum(next(iter(sums))[0])
    factors = {m: cumulant(keep, m) for m in range(1, order + 1)}
    for blocks, (value, number) in sums.items():
        term = math.prod(factors[m][..., j] for j, part in enumerate(blocks) for m in part)
        total, size = total + np.multiply.outer(value, term), size + number * np.abs(term)
    frobenius = np.prod([np.linalg.norm(weight, axis=(-2, -1)) for weight in weights], axis=0)
    roundings = 2 * order * sum(sum(weight.shape[-2:]) + 64 for weight in weights)
    return np.asarray(total), np.asarray(roundings * EPS * np.multiply.outer(frobenius**order, size))


def product_norm(
    weights: tuple[Float[Array, "*several _ _"], ...], low: Sums, high: Sums, keep: Float[Array, "*batch l"]
) -> Float[Array, "*several_batch"]:
    """sqrt( E||Z||_2^2 ), a bound from M_p = E tr (Z Z')^p (``low``) and M_2p (``high``).

    The n eigenvalues of (Z Z')^p have the mean m_p / n and the mean square m_2p / n, so the largest one is at
    most m_p / n + sqrt( (n-1)/n (m_2p - m_p^2 / n) ); its expectation follows with M for m by Jensen.
    Scale the matrices first: powers 4 p of their largest entries, and products of these over the layers, must
    be floats, or the bound is lost.

    Reference: Wolkowicz, Styan 1980, for one matrix; this project for the expectation.
    """
    first, lost = product_moment(weights, low, keep)
    second, more = product_moment(weights, high, keep)
    n = min(min(weight.shape[-2:]) for weight in weights)
    spread = second + more - np.maximum(first - lost, 0.0) ** 2 / n * (1 - 16 * EPS)
    largest = (first + lost) / n + np.sqrt((n - 1) / n * np.maximum(spread, 0.0))
    return np.asarray(np.maximum(largest, 0.0) ** (1.0 / sum(next(iter(low))[0])))


@cache
def _classes(layers: int, p: int) -> Counter[Choice]:
    """One of the choices that look alike from some start of the walk, and how many do."""
    found: Counter[Choice] = Counter()
    known: set[Choice] = set()
    for choice in itertools.product(_partitions(2 * p), repeat=layers):
        if choice not in known:
            alike = set(_images(choice))
            known |= alike
            found[choice] = len(alike)
    return found


@dataclass(frozen=True)
class _Level:
    """Trees of one height: the edges above others (side of the parent, uses, those trees, numbers), then
    their products (side, numbers, the first edges of all of them, the second ones, ...).
    """

    passing: list[tuple[int, int, list[int], slice]]
    joining: list[tuple[int, slice, list[list[int]]]]


@dataclass(frozen=True)
class _Messages:
    """The walk shapes as messages up their trees, by height; trees and edges are numbered on each side.

    Edge 0 passes on 1 and stands for those that a tree lacks. Of every shape its root's number, the uses
    outside the tree and the number of its walks; and which shapes use their edges how often.
    """

    trees: tuple[int, int]
    edges: tuple[int, int]
    levels: list[_Level]
    roots: Array
    outside: Array
    counts: Array
    keys: dict[tuple[int, ...], list[int]]


@cache
def _messages(p: int) -> _Messages:
    """All messages of order p, those of one height and number of uses together."""
    heights: list[dict[tuple[int, Tree], None]] = []

    def enter(tree: Tree, side: int) -> int:
        height = 1 + max((enter(child, 1 - side) for _, child in tree), default=-1)
        heights.extend({} for _ in range(height + 1 - len(heights)))
        heights[height][side, tree] = None
        return height

    def uses_of(tree: Tree) -> list[int]:
        return [n for uses, child in tree for n in (uses, *uses_of(child))]

    shapes = walk_shapes(p)
    for root, _ in shapes:
        enter(root, 0)
    number: dict[tuple[int, Tree], int] = {}
    edge: dict[tuple[int, int, Tree], int] = {}
    trees, edges, levels = [0, 0], [1, 1], []
    for height in heights:
        level = _Level([], [])
        fresh = {
            (side, *branch): None for side, tree in height for branch in tree if (side, *branch) not in edge
        }
        for side, uses in sorted({(side, uses) for side, uses, _ in fresh}):
            children = [child for one, many, child in fresh if (one, many) == (side, uses)]
            start, edges[side] = edges[side], edges[side] + len(children)
            edge |= {(side, uses, child): start + k for k, child in enumerate(children)}
            level.passing.append(
                (side, uses, [number[1 - side, child] for child in children], slice(start, edges[side]))
            )
        for side in (0, 1):
            own = [tree for one, tree in height if one == side]
            start, trees[side] = trees[side], trees[side] + len(own)
            number |= {(side, tree): start + k for k, tree in enumerate(own)}
            below = itertools.zip_longest(*([edge[side, *b] for b in tree] for tree in own), fillvalue=0)
            level.joining.append((side, slice(start, trees[side]), [list(numbers) for numbers in below]))
        levels.append(level)
    keys: dict[tuple[int, ...], list[int]] = {}
    for k, (root, others) in enumerate(shapes):
        keys.setdefault(tuple(sorted([*uses_of(root), *others])), []).append(k)
    return _Messages(
        trees=(trees[0], trees[1]),
        edges=(edges[0], edges[1]),
        levels=levels,
        roots=np.array([number[0, root] for root, _ in shapes]),
        outside=np.array([sum(others) for _, others in shapes]),
        counts=np.array(list(shapes.values()), dtype=np.float64),
        keys=keys,
    )


def _partitions(n: int) -> Iterator[tuple[int, ...]]:
    """Set partitions of n items: the block of each item, blocks named in order of appearance."""

    def extend(prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(prefix) == n:
            yield prefix
            return
        for block in range(max(prefix, default=-1) + 2):
            yield from extend((*prefix, block))

    return extend(())


def _images(choice: Choice) -> Iterator[Choice]:
    """The same partitions seen from every start and direction of the closed walk."""
    n = len(choice[0])
    for shift in range(0, n, 2):
        for order in (range(n), range(n - 1, -1, -1)):
            yield tuple(_renamed(part[(s + shift) % n] for s in order) for part in choice)


def _renamed(blocks: Iterator[int]) -> tuple[int, ...]:
    names: dict[int, int] = {}
    return tuple(names.setdefault(block, len(names)) for block in blocks)


@cache
def _program(
    p: int, ranks: tuple[int, ...]
) -> tuple[list[tuple[str, int, int]], dict[tuple[tuple[int, ...], ...], Counter[int]]]:
    """How to make every matrix of the graphs, parts first, each once however many graphs share it.

    And for each choice of block sizes the matrices whose sums make up its coefficient, by their numbers,
    with how often each counts. The levels of the highest rank are summed out first.
    """
    number: dict[Name, int] = {}
    steps: list[tuple[str, int, int]] = []

    def numbered(name: Name) -> int:
        if name not in number:
            kind, *parts = name
            first, second = (*parts, 0)[:2] if kind == "power" else (*map(numbered, parts), 0)[:2]
            steps.append((kind, first, second))
            number[name] = len(steps) - 1
        return number[name]

    wanted: dict[tuple[tuple[int, ...], ...], Counter[int]] = {}
    for choice, count in _classes(len(ranks) - 1, p).items():
        key = tuple(tuple(sorted(Counter(part).values())) for part in choice)
        wanted.setdefault(key, Counter())[numbered(_contracted(choice, ranks))] += count
    return steps, wanted


def _contracted(choice: Choice, ranks: tuple[int, ...]) -> Name:
    """The matrix whose sum is that over all vertex labels of prod over blocks W_l[upper, lower]^size.

    Vertices with two neighbours or one are summed out, those of the highest rank first: all
    graphs of (layers, p) = (1, 4) and (2, 2) can be contracted so.
    """
    edges: dict[tuple[Vertex, Vertex], Name] = {}
    root = _merged(choice)
    for layer, part in enumerate(choice):
        for block, size in Counter(part).items():
            upper, lower = (root[level, part.index(block)] for level in (layer, layer + 1))
            _join(edges, upper, lower, ("power", layer, size))
    while len(edges) > 1:
        degree = Counter(vertex for pair in edges for vertex in pair)
        vertex = min(degree, key=lambda v: (degree[v], -ranks[v[0]], v))
        parts = {pair: edges.pop(pair) for pair in list(edges) if vertex in pair}
        # From the neighbour to the vertex.
        into = [(a, name) if b == vertex else (b, _transposed(name)) for (a, b), name in parts.items()]
        if len(into) == 1:
            ((near, end),) = into
            a, b = next(pair for pair in edges if near in pair)
            if a == near:
                edges[a, b] = ("weighted", edges[a, b], end)
            else:
                edges[a, b] = _transposed(("weighted", _transposed(edges[a, b]), end))
        else:
            (a, first), (b, second) = into
            _join(edges, a, b, ("times", first, second))
    (name,) = edges.values()
    return name


def _join(edges: dict[tuple[Vertex, Vertex], Name], a: Vertex, b: Vertex, name: Name) -> None:
    """Add an edge; parallel edges become one by the entrywise product."""
    a, b, name = (a, b, name) if a < b else (b, a, _transposed(name))
    edges[a, b] = ("entrywise", edges[a, b], name) if (a, b) in edges else name


def _transposed(name: Name) -> Name:
    return name[1] if name[0] == "T" else ("T", name)


def _merged(choice: Choice) -> dict[Vertex, Vertex]:
    """A representative for each vertex of the closed walk, once the ends of every block are one.

    Vertex (level, s) is the end of step s at that level; the outer levels join neighbouring passes.
    """
    depth, steps = len(choice), len(choice[0])
    parent = {(level, s): (level, s) for level in range(depth + 1) for s in range(steps)}

    def find(vertex: Vertex) -> Vertex:
        while parent[vertex] != vertex:
            vertex = parent[vertex]
        return vertex

    def merge(a: Vertex, b: Vertex) -> None:
        parent[find(a)] = find(b)

    for s in range(0, steps, 2):
        merge((depth, s), (depth, s + 1))
        merge((0, s + 1), (0, (s + 2) % steps))
    for layer, part in enumerate(choice):
        for s, block in enumerate(part):
            for level in (layer, layer + 1):
                merge((level, s), (level, part.index(block)))
    return {vertex: find(vertex) for vertex in parent}
