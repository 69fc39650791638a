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
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from theory.relu.lipschitz import EPS

# A rooted tree: for each child the number of times the walk uses its edge, and the child's own tree.
Tree: TypeAlias = tuple[tuple[int, "Tree"], ...]
Polynomial: TypeAlias = dict[tuple[int, ...], float]
Choice: TypeAlias = tuple[tuple[int, ...], ...]  # one set partition of the steps per layer
Vertex: TypeAlias = tuple[int, int]
Name: TypeAlias = tuple
Sums: TypeAlias = dict[tuple[tuple[int, ...], ...], tuple[float, int]]

# Orders p of the noise bound. Higher ones are tighter until large entries dominate; p = 7 has 1039 shapes.
ORDERS = (1, 2, 4, 6, 7)


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


def noise_sums(weight: Float[Array, "r s"], p: int) -> Polynomial:
    """Coefficients of a bound of E tr (N N')^p: by the numbers of uses of the edges, sums over the walks.

    For each shape: its walks times sum over all labels of its vertices of prod |w_e|^uses, by messages up
    the discovering tree; an edge outside the tree counts max |w|^uses. Labels that coincide only add.
    """
    size = np.abs(weight)
    powers = {m: size**m for m in range(2, 2 * p + 1)}
    largest = float(size.max())
    known: dict[tuple[Tree, int], np.ndarray] = {}

    def message(tree: Tree, side: int) -> np.ndarray:
        if (tree, side) not in known:
            total = np.ones(size.shape[side])
            for uses, child in tree:
                matrix = powers[uses] if side == 0 else powers[uses].T
                total = total * (matrix @ message(child, 1 - side))
            known[tree, side] = total
        return known[tree, side]

    sums: Polynomial = {}
    for (tree, others), count in walk_shapes(p).items():
        key = tuple(sorted([*_edge_uses(tree), *others]))
        sums[key] = sums.get(key, 0.0) + count * float(message(tree, 0).sum()) * largest ** sum(others)
    return sums


def noise_norm(sums: dict[int, Polynomial], keep: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """sqrt( E||W * (M - k)||_2^2 ), a bound: the smallest (E tr (N N')^p)^{1/2p} of ``noise_sums`` by p.

    Not rounded outward: all terms are positive, so the caller's count of roundings covers it.
    Reference: this project; the walk count is that of Füredi and Komlós 1981, kept for unequal entries.
    """
    best = np.full(keep.shape, np.inf)
    for p, polynomial in sums.items():
        total = np.zeros(keep.shape)
        for uses, coefficient in polynomial.items():
            total += coefficient * np.prod([central_moment(keep, m) for m in uses], axis=0)
        best = np.minimum(best, total ** (1.0 / (2 * p)))
    return best


def central_moment(keep: Float[Array, "*batch"], order: int) -> Float[Array, "*batch"]:
    """|E (m - k)^order| of a Bernoulli(k) entry m, a bound: raised by what the difference may lose."""
    drop = 1.0 - keep
    inner = np.abs(drop ** (order - 1) + (-1.0) ** order * keep ** (order - 1))
    return np.asarray(keep * drop * (inner + (order + 2) * EPS))


def cumulant(keep: Float[Array, "*batch"], order: int) -> Float[Array, "*batch"]:
    """Cumulant of a Bernoulli(k) entry, an identity: kappa_1 = k, kappa_{n+1} = k (1-k) d kappa_n / dk."""
    return np.asarray(_cumulant_polynomial(order)(keep))


@cache
def _cumulant_polynomial(order: int) -> np.polynomial.Polynomial:
    k = np.polynomial.Polynomial([0.0, 1.0])
    return k if order == 1 else k * (1 - k) * _cumulant_polynomial(order - 1).deriv()


def product_sums(weights: tuple[Float[Array, "_ _"], ...], p: int) -> Sums:
    """Coefficients of E tr (Z Z')^p, an identity: by the block sizes in every layer, sums over partitions.

    Z = X_1 ... X_L, X_l = W_l * M_l. The trace sums prod of the 2 p entries that a closed walk takes in every
    layer; their expectation is the sum over set partitions of prod of joint cumulants, which vanish unless
    all entries of a block are the same one. Each value is (sum, number of partitions).
    """
    sums: Sums = {}
    products = _Products(weights)
    for choice, count in _classes(len(weights), p).items():
        key = tuple(tuple(sorted(Counter(part).values())) for part in choice)
        value, number = sums.get(key, (0.0, 0))
        sums[key] = value + count * _graph_sum(products, choice), number + count
    return sums


def product_norm(
    weights: tuple[Float[Array, "_ _"], ...], sums: Sums, keep: Float[Array, "*batch l"]
) -> Float[Array, "*batch"]:
    """sqrt( E||X_1 ... X_L||_2^2 ), a bound: (E tr (Z Z')^p)^{1/2p} from ``product_sums``.

    No sum over walks exceeds (prod_l ||W_l||_F)^{2p}, which bounds what cancellation may lose; that is added.
    """
    total, size = np.zeros(keep.shape[:-1]), np.zeros(keep.shape[:-1])
    order = 2 * sum(next(iter(sums))[0])
    for blocks, (value, number) in sums.items():
        factors = [cumulant(keep[..., j], m) for j, part in enumerate(blocks) for m in part]
        term = np.prod(factors, axis=0)
        total, size = total + value * term, size + number * np.abs(term)
    frobenius = np.prod([np.linalg.norm(weight) for weight in weights])
    roundings = order * sum(sum(weight.shape) + 64 for weight in weights)
    lost = roundings * EPS * frobenius ** (order // 2) * size
    return np.asarray(np.maximum(total + lost, 0.0) ** (2.0 / order))


@cache
def _classes(layers: int, p: int) -> Counter[Choice]:
    """How many choices of one partition per layer look alike from some start of the walk."""
    choices = itertools.product(_partitions(2 * p), repeat=layers)
    return Counter(min(_images(choice)) for choice in choices)


def _edge_uses(tree: Tree) -> Iterator[int]:
    for uses, child in tree:
        yield uses
        yield from _edge_uses(child)


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


class _Products:
    """Matrices named by how they were made, so that equal parts of different graphs are computed once."""

    def __init__(self, weights: tuple[Float[Array, "_ _"], ...]) -> None:
        self.known: dict[Name, np.ndarray] = {}
        self.weights = weights

    def power(self, layer: int, size: int) -> Name:
        """W_layer to an entrywise power."""
        return self._made(("power", layer, size), lambda: self.weights[layer] ** size)

    def transposed(self, name: Name) -> Name:
        """The transpose, a view."""
        if name[0] == "T":
            return name[1]
        return self._made(("T", name), lambda: self.known[name].T)

    def times(self, a: Name, b: Name) -> Name:
        """The matrix product A B'."""
        return self._made(("times", a, b), lambda: self.known[a] @ self.known[b].T)

    def entrywise(self, a: Name, b: Name) -> Name:
        """The entrywise product."""
        return self._made(("entrywise", a, b), lambda: self.known[a] * self.known[b])

    def weighted(self, a: Name, end: Name) -> Name:
        """A with its rows multiplied by the row sums of ``end``."""
        return self._made(
            ("weighted", a, end), lambda: self.known[a] * self.known[end].sum(axis=1)[:, None]
        )

    def _made(self, name: Name, make: Callable[[], np.ndarray]) -> Name:
        if name not in self.known:
            self.known[name] = make()
        return name


def _graph_sum(products: _Products, choice: Choice) -> float:
    """Sum over all vertex labels of prod over blocks W_l[upper, lower]^size.

    Vertices with two neighbours or one are summed out, wide layers before narrow ones: all graphs of (layers,
    p) = (1, 4) and (2, 2) can be contracted so, and the tests contract them all.
    """
    edges: dict[tuple[Vertex, Vertex], Name] = {}
    root = _merged(choice)
    width: dict[Vertex, int] = {}
    for layer, part in enumerate(choice):
        for block, size in Counter(part).items():
            upper, lower = (root[level, part.index(block)] for level in (layer, layer + 1))
            width[upper], width[lower] = products.weights[layer].shape
            _join(products, edges, upper, lower, products.power(layer, size))
    while len(edges) > 1:
        degree = Counter(vertex for pair in edges for vertex in pair)
        vertex = min(degree, key=lambda v: (degree[v], -width[v], v))
        parts = {pair: edges.pop(pair) for pair in list(edges) if vertex in pair}
        # From the neighbour to the vertex.
        into = [
            (a, name) if b == vertex else (b, products.transposed(name)) for (a, b), name in parts.items()
        ]
        if len(into) == 1:
            ((near, end),) = into
            a, b = next(pair for pair in edges if near in pair)
            name = edges[a, b] if a == near else products.transposed(edges[a, b])
            name = products.weighted(name, end)
            edges[a, b] = name if a == near else products.transposed(name)
        else:
            (a, first), (b, second) = into
            _join(products, edges, a, b, products.times(first, second))
    (name,) = edges.values()
    return float(products.known[name].sum())


def _join(
    products: _Products, edges: dict[tuple[Vertex, Vertex], Name], a: Vertex, b: Vertex, name: Name
) -> None:
    """Add an edge; parallel edges become one by the entrywise product."""
    a, b, name = (a, b, name) if a < b else (b, a, products.transposed(name))
    edges[a, b] = products.entrywise(edges[a, b], name) if (a, b) in edges else name


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
