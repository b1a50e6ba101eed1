"""Methods in rational arithmetic, on small integer Jacobians: no rounding, no tolerance, no solver to trust.

Quadratic programs are solved by trying every support (Carathéodory: some solution has independent rows in its support),
so this is for a handful of tasks. What a law says about these answers is true or false, to the last digit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from mtlcore.hosting import registry

Vector = list[Fraction]
Rows = Sequence[Vector]
Answers = list[Vector]
"""All directions that a method may give: several for one that draws the order of its tasks."""

MAX_TASKS = 4

_KNOWN: dict[str, Callable[[Rows, Any], Answers]] = {}


def exact(name: str) -> Callable[[Callable[[Rows, Any], Answers]], Callable[[Rows, Any], Answers]]:
    """``@exact("mgda")``: the function gives the exact answers of the method registered under that name."""

    def declare(function: Callable[[Rows, Any], Answers]) -> Callable[[Rows, Any], Answers]:
        _KNOWN[name] = function
        return function

    return declare


def exact_for(plugin: Any) -> Callable[[Rows, Any], Answers] | None:
    """The exact form of a method, or None: unknown, or not for these hyper-parameters."""
    name = getattr(plugin, "reference", None) or registry().name_of(plugin)
    usual = {"weights": None, "alpha": 0.0, "rescale": False, "normalize": "none"}
    odd = any(getattr(plugin, option, value) != value for option, value in usual.items())
    return None if odd else _KNOWN.get(name)


def dot(a: Vector, b: Vector) -> Fraction:
    """<a, b>."""
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def combination(weights: Sequence[Fraction], rows: Rows) -> Vector:
    """sum_i w_i g_i."""
    return [sum((w * row[j] for w, row in zip(weights, rows, strict=True)), Fraction(0)) for j in range(len(rows[0]))]


def solve(matrix: Sequence[Vector], right: Vector) -> Vector | None:
    """The solution of a regular system; None if it is singular. Gauss with exact pivots."""
    n = len(right)
    work = [[*row, r] for row, r in zip(matrix, right, strict=True)]
    for column in range(n):
        pivot = next((r for r in range(column, n) if work[r][column] != 0), None)
        if pivot is None:
            return None
        work[column], work[pivot] = work[pivot], work[column]
        head = work[column][column]
        work[column] = [x / head for x in work[column]]
        for r in range(n):
            factor = work[r][column]
            if r != column and factor != 0:
                work[r] = [x - factor * y for x, y in zip(work[r], work[column], strict=True)]
    return [row[-1] for row in work]


def _supports(k: int, smallest: int) -> Iterator[tuple[int, ...]]:
    for size in range(smallest, k + 1):
        yield from itertools.combinations(range(k), size)


def min_norm(rows: Rows) -> Vector:
    """argmin |d|^2 over the hull: <g_i, d> >= |d|^2 for all i, with equality on the support, decides."""
    for support in _supports(len(rows), 1):
        part = [rows[i] for i in support]
        # G a = t 1, sum a = 1: bordered, so that t = 0 (a stationary point) is no special case.
        bordered = [[*(dot(g, h) for h in part), Fraction(-1)] for g in part]
        bordered.append([Fraction(1)] * len(part) + [Fraction(0)])
        found = solve(bordered, [Fraction(0)] * len(part) + [Fraction(1)])
        if found is None or min(found[:-1]) < 0:
            continue
        d = combination(found[:-1], part)
        if all(dot(g, d) >= dot(d, d) for g in rows):
            return d
    raise ArithmeticError("a hull has a point of least norm")


def project(rows: Rows, x: Vector) -> Vector:
    """Projection onto the dual cone {z: <g_i, z> >= 0}: z = x + sum_S y_i g_i, y >= 0, <g_i, z> = 0 on S."""
    for support in _supports(len(rows), 0):
        part = [rows[i] for i in support]
        y = solve([[dot(g, h) for h in part] for g in part], [-dot(g, x) for g in part])
        if y is None or (y and min(y) < 0):
            continue
        z = [a + b for a, b in zip(x, combination(y, part), strict=True)] if part else list(x)
        if all(dot(g, z) >= 0 for g in rows):
            return z
    raise ArithmeticError("a cone has a nearest point")


def mean(vectors: Rows) -> Vector:
    """(1 / K) sum."""
    return combination([Fraction(1, len(vectors))] * len(vectors), vectors)


def remainder(rows: Rows, i: int) -> Vector:
    """g_i minus its projection onto the span of the others, by Gram-Schmidt without normalisation."""
    basis: list[Vector] = []
    for vector in (row for j, row in enumerate(rows) if j != i):
        left = _off(vector, basis)
        if any(left):
            basis.append(left)
    return _off(rows[i], basis)


def _off(vector: Vector, basis: Rows) -> Vector:
    """The vector minus its projection onto the span of orthogonal vectors."""
    for b in basis:
        factor = dot(vector, b) / dot(b, b)
        vector = [x - factor * y for x, y in zip(vector, b, strict=True)]
    return vector


@exact("ls")
def exact_ls(rows: Rows, plugin: Any) -> Answers:
    """The mean."""
    return [mean(rows)]


@exact("mgda")
def exact_mgda(rows: Rows, plugin: Any) -> Answers:
    """The minimum-norm point."""
    return [min_norm(rows)]


@exact("upgrad")
def exact_upgrad(rows: Rows, plugin: Any) -> Answers:
    """The mean of the projected gradients."""
    return [mean([project(rows, g) for g in rows])]


@exact("dualproj")
def exact_dualproj(rows: Rows, plugin: Any) -> Answers:
    """The projected mean."""
    return [project(rows, mean(rows))]


@exact("gradops")
def exact_gradops(rows: Rows, plugin: Any) -> Answers:
    """The sum of the remainders of gradients in conflict; if all vanish, of projections onto the dual cone."""
    alive = [g for g in rows if any(g)]
    if not alive:
        return [list(rows[0])]
    always = plugin.project == "always"
    hit = [always or any(dot(g, h) < 0 for h in alive) for g in alive]
    left = [remainder(alive, i) if hit[i] else g for i, g in enumerate(alive)]
    if any(hit) and plugin.fallback and not any(any(g) for g in left):
        left = [project(alive, g) for g in alive]
    return [combination([Fraction(1)] * len(left), left)]


@exact("pcgrad")
def exact_pcgrad(rows: Rows, plugin: Any) -> Answers:
    """Every order in which each gradient may be projected off the others; the sum of the results, or their mean."""
    each = []
    for i, g in enumerate(rows):
        ends = []
        for order in itertools.permutations([j for j in range(len(rows)) if j != i]):
            left = list(g)
            for j in order:
                overlap = dot(left, rows[j])
                if overlap < 0:
                    left = [x - overlap / dot(rows[j], rows[j]) * y for x, y in zip(left, rows[j], strict=True)]
            if left not in ends:
                ends.append(left)
        each.append(ends)
    share = Fraction(1, len(rows)) if getattr(plugin, "reduction", "sum") == "mean" else Fraction(1)
    return [combination([share] * len(rows), chosen) for chosen in itertools.product(*each)]
