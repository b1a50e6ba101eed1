"""Making a counterexample small, decisive and readable, without leaving what the law speaks about.

The search engine shrinks what it drew; here the Jacobian itself is made smaller: fewer tasks, fewer parameters, zeros,
small integers, plain losses. Every step is kept only if the law is still violated by more than a hair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from scipy.optimize import linprog
from torch import Tensor

from mtlverify import references
from mtlverify.answer import ask
from mtlverify.example import Example
from mtlverify.law import Law
from mtlverify.references.min_norm import min_norm

HAIR = 0.01
"""A violation by a hundredth (of a cosine; of the tolerance) is visible; what the search found may be smaller, and is
then only made smaller as long as half of it remains."""
BUDGET = 600
"""Measurements spent."""

Precondition = Callable[[Tensor], bool]


def anything(rows: Tensor) -> bool:
    """The law speaks about every Jacobian."""
    return True


def independent(rows: Tensor) -> bool:
    """Full row rank."""
    return bool(torch.linalg.matrix_rank(rows.double()) == rows.shape[0])


def aligned(rows: Tensor) -> bool:
    """No conflict and no zero row."""
    return bool((rows.double() @ rows.double().T >= 0).all() and (rows != 0).any(dim=1).all())


def stationary(rows: Tensor) -> bool:
    """Some convex combination vanishes."""
    scale = float(rows.double().norm(dim=1).max())
    return scale == 0 or float(torch.from_numpy(min_norm(rows.double().numpy()).direction).norm()) <= 1e-13 * scale


def strongly_stationary(rows: Tensor) -> bool:
    """Some combination with all weights >= 1 vanishes."""
    k, p = rows.shape
    matrix = rows.double().T.numpy()
    return bool(linprog([0.0] * k, A_eq=matrix, b_eq=[0.0] * p, bounds=[(1, None)] * k).status == 0)


def escapable(rows: Tensor) -> bool:
    """Some direction improves every task."""
    k, p = rows.shape
    return bool(linprog([0.0] * p, A_ub=-rows.double().numpy(), b_ub=[-1.0] * k, bounds=[(None, None)] * p).status == 0)


PRECONDITIONS: dict[str, Precondition] = {
    **dict.fromkeys(
        (
            "non-conflicting", "descent-lower-bound", "no-worse-than-mean", "conic-combination", "simplex-weights",
            "permutation-equivariant", "parameter-rotation", "duplicate-task", "absent-task",
            "positively-homogeneous", "scale-free", "linear-under-scaling", "loss-unit-invariant",
            "one-backward-pass", "coefficient-identity", "equivariant-in-distribution",
        ),
        anything,
    ),
    "equal-projections": independent,
    "no-conflict-identity": aligned,
    "pareto-stationary-zero": stationary,
    "strongly-stationary-zero": strongly_stationary,
    "zero-only-if-stationary": escapable,
}  # fmt: skip
"""What a smaller Jacobian must still be. A law that is not listed keeps the counterexample of the search."""

BY_TASK = ("factors", "left", "right", "present", "permutation")


def smaller(law: Law, plugin: Any, example: Any, allowed: Precondition | None = None) -> Any:
    """The smallest counterexample that greedy descent reaches from ``example``; ``example`` itself if none is.

    ``allowed`` replaces what the law speaks about by something narrower.
    """
    if allowed is None and law.kind == "aggregator":
        allowed = PRECONDITIONS.get(law.id)
    if not isinstance(example, Example) or allowed is None:
        return example
    start = _margin(law, plugin, example)
    decided = decidable(plugin, example)
    enough = -HAIR if start <= -HAIR else 0.5 * start
    spent = 0
    improved = True
    while improved and spent < BUDGET:
        improved = False
        for candidate in _steps(example):
            if spent >= BUDGET:
                break
            if _size(candidate) >= _size(example) or not allowed(candidate.jacobian):
                continue
            spent += 1
            if _margin(law, plugin, candidate) <= enough and (not decided or decidable(plugin, candidate)):
                example, improved = candidate, True
                break
    return example.with_(family="")


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
    except Exception:
        return math.inf


def _size(example: Example) -> tuple[float, ...]:
    """What "smaller" means, most important first."""
    rows = example.jacobian
    numbers = [float(v) for v in rows.flatten()]
    extra = [float(x) for v in example.extra.values() for x in (v if isinstance(v, (list, tuple)) else [v])]
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


def _effort(value: float) -> float:
    """How hard a number is to read: small integers are easy."""
    size = abs(value)
    return size if size == int(size) and size < 100 else 100.0 + len(repr(size)) + abs(math.log10(size))


def _steps(example: Example) -> Iterator[Example]:
    """Candidates, boldest first."""
    rows, extra = example.jacobian, dict(example.extra)
    k, p = rows.shape
    known = set(extra) <= {*BY_TASK, "plane", "factor"}
    if known and k > 1:
        for i in range(k):
            keep = [j for j in range(k) if j != i]
            yield example.with_(jacobian=rows[keep], losses=example.losses[keep], extra=_without_task(extra, i, k))
    if "plane" not in extra and p > 1:
        for j in range(p):
            yield example.with_(jacobian=rows[:, [c for c in range(p) if c != j]])
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
    if example.seed:
        yield example.with_(seed=0)


def _row(example: Example, i: int, row: Tensor) -> Example:
    rows = example.jacobian.clone()
    rows[i] = row
    return example.with_(jacobian=rows)


def _without_task(extra: dict[str, Any], i: int, k: int) -> dict[str, Any]:
    out = dict(extra)
    for name in BY_TASK:
        if name in out:
            value = list(out[name])
            if name == "permutation":
                out[name] = [v - (v > i) for v in value if v != i]
            else:
                out[name] = value[:i] + value[i + 1 :]
    return out
