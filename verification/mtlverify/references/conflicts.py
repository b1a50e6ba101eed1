"""What "in conflict" means for the detectors, evaluated on the gradients themselves with exactly rounded sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

RESOLUTION = 2.0**-40
"""A decision counts as clear when its quantity is this far from the threshold, relative to what was summed up. Nearer
than that, the float64 Gramian that a detector sees may have rounded it to either side."""


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Each decision is True, False, or None where it is too close to call.

    ``pairs`` has K rows of K entries, ``dominated`` has K.
    """

    conflicting: bool | None
    pairs: list[list[bool | None]]
    dominated: list[bool | None]


Definition = Callable[[Tensor], Decisions]


def definition(name: str, plugin: Any) -> Definition | None:
    """The independent definition of a detector with its hyper-parameters, or None if there is none."""
    if name == "cosine":
        return lambda rows: weak(rows, plugin.threshold)
    if name == "dominated":
        return lambda rows: dominated(rows, plugin.rule, plugin.threshold, plugin.rho)
    if name == "imbalance":
        return lambda rows: imbalance(rows, plugin.ratio)
    return None


def weak(rows: Tensor, threshold: float = 0.0) -> Decisions:
    """Some cos(g_i, g_j) < -threshold. [COST, definition 1]"""
    pairs = _pairs(rows, threshold)
    return Decisions(_any([p for row in pairs for p in row]), pairs, _opposed(rows, 0.0))


def dominated(rows: Tensor, rule: str = "smallest", threshold: float = 0.0, rho: float = 0.5) -> Decisions:
    """cos(g_i, g_0) < -threshold, g_0 the mean: for the smallest task, for any, for a fraction. [COST, eq. 3]"""
    opposed = _opposed(rows, threshold)
    norms = [math.hypot(*row) for row in rows.double().tolist()]
    alive = [n for n in norms if n > 0]
    verdict: bool | None = False
    if rule == "smallest" and alive and len(norms) > 1:
        verdict = _any([o for n, o in zip(norms, opposed, strict=True) if n == min(alive)])
        if sum(n <= min(alive) * (1 + RESOLUTION) for n in alive) > norms.count(min(alive)):
            verdict = None
    elif rule == "any" and len(norms) > 1:
        verdict = _any(opposed)
    elif rule == "fraction" and len(norms) > 1:
        sure, open_ = opposed.count(True), opposed.count(None)
        needed = math.ceil(rho * len(norms))
        verdict = True if sure >= needed else None if sure + open_ >= needed else False
    return Decisions(verdict, _pairs(rows, 0.0), opposed)


def imbalance(rows: Tensor, ratio: float = 10.0) -> Decisions:
    """max |g_i| / min |g_i| > ratio over the gradients that are not zero; the same of each pair. [choice]

    Dominated are the tasks that the mean would harm, as for the other detectors.
    """
    norms = [math.hypot(*row) for row in rows.double().tolist()]
    log = math.log(ratio)

    def decide(a: float, b: float) -> bool | None:
        if 0 in (a, b):
            return False
        # _below is about value < 0; a norm from the Gramian has half of its resolution at most, in the logarithm.
        return _below(log - abs(math.log(a / b)), RESOLUTION)

    pairs = [[i != j and decide(a, b) for j, b in enumerate(norms)] for i, a in enumerate(norms)]
    return Decisions(_any([p for row in pairs for p in row]), pairs, _opposed(rows, 0.0))


def disagreement(decided: bool | None, found: bool) -> bool:
    """Whether a detector decided otherwise where the definition is clear."""
    return decided is not None and decided != found


def _any(decisions: list[bool | None]) -> bool | None:
    return True if True in decisions else None if None in decisions else False


def _below(value: float, resolution: float) -> bool | None:
    return None if abs(value) <= resolution else value < 0


def _pairs(rows: Tensor, threshold: float) -> list[list[bool | None]]:
    data = rows.double().tolist()
    norms = [math.hypot(*row) for row in data]

    def decide(i: int, j: int) -> bool | None:
        if i == j or 0 in (norms[i], norms[j]):
            return False
        size = norms[i] * norms[j]
        inner = math.fsum(a * b for a, b in zip(data[i], data[j], strict=True))
        return _below(inner + threshold * size, RESOLUTION * size)

    return [[decide(i, j) for j in range(len(data))] for i in range(len(data))]


def _opposed(rows: Tensor, threshold: float) -> list[bool | None]:
    """<g_i, g_0> < -threshold |g_i| |g_0|. The mean's own rounding is relative to the largest gradient."""
    data = rows.double().tolist()
    norms = [math.hypot(*row) for row in data]
    mean = [math.fsum(column) / len(data) for column in zip(*data, strict=True)]
    length, largest = math.hypot(*mean), max(norms, default=0.0)

    def decide(i: int) -> bool | None:
        if norms[i] == 0 or largest == 0:
            return False
        if length <= RESOLUTION**0.5 * largest:
            return None
        inner = math.fsum(a * b for a, b in zip(data[i], mean, strict=True))
        return _below(inner + threshold * norms[i] * length, RESOLUTION * norms[i] * largest)

    return [decide(i) for i in range(len(data))]
