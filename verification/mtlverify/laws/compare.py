"""Comparison of two answers of a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlverify import tolerance
from mtlverify.answer import Answer
from mtlverify.law import Margin


def agreement(error: float, allowed: float, what: str) -> Margin:
    """Margin of error <= ``allowed``; ``what`` names the error in the message."""
    return Margin(tolerance.share_left(error, allowed), f"{what}: off by {error:.2g}, where {allowed:.2g} is allowed")


def shown(vector: Tensor) -> str:
    """A direction or weights as text."""
    return f"[{', '.join(f'{v:.5g}' for v in vector.tolist())}]"


def same_direction_and_length(
    got: Tensor,
    expected: Tensor,
    answers: tuple[Answer, ...],
    respond: Callable[[Tensor], Tensor] | None,
    rows: Tensor,
) -> Margin:
    """Margin of got = expected. The strict tolerance is tried first; if it fails, conditioning is taken into account.

    ``respond(rows)`` is the method's direction as a function of its data. A law cannot hold more exactly than the data
    determine the answer. The conditioning is measured only after a failure, so it costs nothing where the law holds.
    With None only the strict tolerance is used.
    """
    got, expected = got.double(), expected.double()
    error = float((got - expected).norm())
    allowed = tolerance.equality(*answers)
    if error > allowed and respond is not None:
        allowed += tolerance.sensitivity(respond, rows)
    return agreement(error, allowed, f"the direction is {shown(got)} and should be {shown(expected)}")


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of nested containers of tensors, arrays and plain values; NaN equals NaN. Objects without
    ``__eq__`` (a network, a generator) are compared by the data from which a copy of them is made."""
    if a is b:
        return True
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.isnan(), b.isnan())
            and torch.equal(a.nan_to_num(), b.nan_to_num())
        )  # fmt: skip
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        if not (isinstance(b, (list, tuple)) and len(a) == len(b)):
            return False
        # The state of Python's generator has 625 numbers, and is compared after every step.
        return list(a) == list(b) if {*map(type, a), *map(type, b)} <= {int} else all(map(same, a, b))
    by_identity: Any = object.__eq__
    if type(a) is type(b) and type(a).__eq__ is by_identity:
        return same(a.__reduce_ex__(4), b.__reduce_ex__(4))
    return bool(a == b) or bool(a != a and b != b)
