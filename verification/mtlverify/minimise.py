"""Making a counterexample small, decisive and readable, without leaving what the law speaks about.

Fewer tasks, fewer parameters, zeros, small integers, plain losses. Every step is kept only if the law is still violated
by more than a hair. Used by the search for what it shows, with few measurements, and by the ledger for what it stores.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mtlcore.hosting import TookTooLong, interrupted_by_user
from mtlverify import references
from mtlverify.answer import ask
from mtlverify.example import Example
from mtlverify.law import Law
from mtlverify.predicates import Precondition

HAIR = 0.01
"""A violation by a hundredth (of a cosine; of the tolerance) is visible; what the search found may be smaller, and is
then only made smaller as long as half of it remains."""
BUDGET = 600
"""Measurements spent."""

BY_TASK = ("factors", "left", "right", "present", "permutation", "preferences")
KNOWN = frozenset({*BY_TASK, "plane", "factor", "away"})
"""What laws of this wing draw besides; an input with anything else keeps its number of tasks."""


def smaller(law: Law, plugin: Any, example: Any, allowed: Precondition | None = None, budget: int = BUDGET) -> Any:
    """The smallest counterexample that greedy descent reaches from ``example``; ``example`` itself if none is.

    ``allowed`` replaces the domain of the law by something narrower. A law that declares no domain is not left alone
    with another Jacobian: its counterexample stays as it is.
    """
    allowed = law.domain if allowed is None else allowed
    if not isinstance(example, Example) or allowed is None:
        return example
    start = _margin(law, plugin, example)
    decided = decidable(plugin, example)
    enough = -HAIR if start <= -HAIR else 0.5 * start

    def still(candidate: Example) -> bool:
        wrong = _margin(law, plugin, candidate) <= enough
        return wrong and (not decided or decidable(plugin, candidate))

    return least(still, example, allowed, budget)


def least(still: Callable[[Any], bool], example: Any, allowed: Precondition, budget: int) -> Any:
    """Greedy descent to the smallest input for which ``still`` holds, within so many questions."""
    steps, size = (_steps, _size) if isinstance(example, Example) else (_recipes, _recipe_size)
    improved = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a plugin's warnings on odd inputs are not findings
        while improved and budget > 0:
            improved, largest = False, size(example)
            for candidate in steps(example):
                if budget <= 0:
                    break
                if size(candidate) >= largest:
                    continue
                if isinstance(candidate, Example) and not allowed(candidate.jacobian):
                    continue
                budget -= 1
                if still(candidate):
                    example, improved = candidate, True
                    break
        return _without_minus_zeros(example, still)


def _without_minus_zeros(example: Any, still: Callable[[Any], bool]) -> Any:
    """-0.0 reads as a mistake, and is one entry among others for nearly every method."""
    if not isinstance(example, Example) or not bool((example.jacobian.signbit() & (example.jacobian == 0)).any()):
        return example
    plain = example.with_(jacobian=example.jacobian + 0.0)
    return plain if still(plain) else example


def _recipes(example: Any) -> Iterator[Any]:
    """Simpler inputs of another kind, if they know any themselves."""
    yield from getattr(example, "simpler", tuple)()


def _recipe_size(example: Any) -> Any:
    return example.size() if hasattr(example, "size") else 0


def decidable(plugin: Any, example: Example) -> bool:
    """Whether the exact reference has an answer, so that a violation can be put down to mathematics or numerics."""
    exact = references.exact_twin(plugin)
    if exact is None:
        return True
    try:
        ask(exact, example)
    except ArithmeticError:
        return False
    return True


def _margin(law: Law, plugin: Any, example: Example) -> float:
    """Raising is another finding than violating: it does not count."""
    try:
        return law.measure(plugin, example)
    except BaseException as error:
        if isinstance(error, TookTooLong) or interrupted_by_user(error):
            raise
        return math.inf


def _size(example: Example) -> tuple[float, ...]:
    """What "smaller" means, most important first."""
    rows = example.jacobian
    numbers = [float(v) for v in rows.flatten()]
    extra = _numbers(list(example.extra.values()))
    return (
        rows.shape[0],
        rows.shape[1],
        rows.dtype != torch.float64,
        sum(v != 0 for v in numbers),
        sum(_effort(v) for v in numbers),
        sum(_effort(v) for v in example.losses.tolist()),
        sum(_effort(v) for v in extra),
        example.seed,
    )


def _numbers(value: Any) -> list[float]:
    """All numbers in nested lists."""
    if isinstance(value, (list, tuple)):
        return [x for v in value for x in _numbers(v)]
    return [float(value)] if isinstance(value, (int, float)) else []


def _effort(value: float) -> float:
    """How hard a number is to read: small integers are easy."""
    size = abs(value)
    return size if size == int(size) and size < 100 else 100.0 + len(repr(size)) + abs(math.log10(size))


def _steps(example: Example) -> Iterator[Example]:
    """Candidates, boldest first."""
    rows, extra = example.jacobian, dict(example.extra)
    k, p = rows.shape
    if extra.get("away"):
        yield example.with_(extra={**extra, "away": []})
    if set(extra) <= KNOWN and k > 1:
        for gone in _groups(k):
            yield _without_tasks(example, gone)
    for gone in _groups(p) if p > 1 else ():
        if not gone & set(extra.get("plane", ())):
            yield _without_columns(example, gone)
    if rows.dtype != torch.float64:
        yield example.with_(jacobian=rows.double())
    if bool((example.losses != 1).any()):
        yield example.with_(losses=torch.ones_like(example.losses))
    for i in range(k):
        largest = float(rows[i].abs().max())
        if largest not in (0.0, 1.0):
            for target in (1.0, 2.0, 4.0, 9.0):
                yield _row(example, i, (rows[i] * (target / largest)).round())
            yield _row(example, i, rows[i] * 2.0 ** -math.floor(math.log2(largest)))
            # A violation that exists at small scale only: at least a round power of ten.
            yield _row(example, i, (rows[i] / largest).round() * 10.0 ** round(math.log10(largest)))
    for i in range(k):
        for j in range(p):
            value = float(rows[i, j])
            closer = (0.0, math.copysign(1.0, value), float(math.trunc(value / 2)), value - math.copysign(1.0, value))
            for new in dict.fromkeys(closer):
                if abs(new) < abs(value):
                    yield _row(example, i, rows[i].clone().index_fill(0, torch.tensor([j]), new))
    for name, value in extra.items():
        if name == "factor":
            yield from (example.with_(extra={**extra, name: f}) for f in (2.0, 16.0, 1024.0, 1 / 1024))
        if name in ("factors", "left", "right"):
            for i in range(len(value)):
                for new in (1.0, 2.0, 8.0) if name == "factors" else (1, 2):
                    if value[i] != new:
                        yield example.with_(extra={**extra, name: [*value[:i], new, *value[i + 1 :]]})
    for pair in extra.get("away", ()):
        yield example.with_(extra={**extra, "away": [other for other in extra["away"] if other != pair]})
    if example.seed:
        yield from (example.with_(seed=s) for s in (0, 1, 15) if s < example.seed)


def _row(example: Example, i: int, row: Tensor) -> Example:
    rows = example.jacobian.clone()
    rows[i] = row
    return example.with_(jacobian=rows)


def _groups(n: int) -> Iterator[set[int]]:
    """What to leave out: first halves and quarters of many, then one by one."""
    part = n // 2
    while part > 1:
        yield from (set(range(first, min(first + part, n))) for first in range(0, n, part))
        part //= 2
    yield from ({i} for i in range(n))


def _without_columns(example: Example, gone: set[int]) -> Example:
    kept = [c for c in range(example.jacobian.shape[1]) if c not in gone]
    extra = dict(example.extra)
    if "plane" in extra:
        extra["plane"] = [kept.index(c) for c in extra["plane"]]
    return example.with_(jacobian=example.jacobian[:, kept], extra=extra)


def _without_tasks(example: Example, gone: set[int]) -> Example:
    for i in sorted(gone, reverse=True):
        k = example.n_tasks
        keep = [j for j in range(k) if j != i]
        extra = _without_task(dict(example.extra), i, k)
        example = example.with_(jacobian=example.jacobian[keep], losses=example.losses[keep], extra=extra)
    return example


def _without_task(extra: dict[str, Any], i: int, k: int) -> dict[str, Any]:
    out = dict(extra)
    if "away" in out:
        out["away"] = [[at, task - (task > i)] for at, task in out["away"] if task != i]
    for name in BY_TASK:
        if name in out:
            value = list(out[name])
            if name == "permutation":
                out[name] = [v - (v > i) for v in value if v != i]
            else:
                out[name] = value[:i] + value[i + 1 :]
    return out
