"""When two answers of a method count as the same."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mtlverify import tolerance
from mtlverify.answer import Answer
from mtlverify.law import Margin


def agreement(error: float, allowed: float, what: str) -> Margin:
    """Margin of "no more than ``allowed`` off"; ``what`` is wrong where it is more."""
    return Margin(tolerance.share_left(error, allowed), f"{what}: off by {error:.2g}, where {allowed:.2g} is allowed")


def shown(vector: Tensor) -> str:
    """A direction or weights in words."""
    return f"[{', '.join(f'{v:.5g}' for v in vector.tolist())}]"


def same_direction_and_length(
    got: Tensor, expected: Tensor, answers: tuple[Answer, ...], respond: Callable[[Tensor], Tensor], rows: Tensor
) -> Margin:
    """Margin of got = expected. The strict tolerance decides; only where it fails is conditioning asked about.

    ``respond(rows)`` is the method's direction as a function of its data: a law cannot hold more exactly than the
    answer is determined by the data. It is measured only on failure, so it costs nothing where the law holds.
    """
    got, expected = got.double(), expected.double()
    error = float((got - expected).norm())
    allowed = tolerance.equality(*answers)
    if error > allowed:
        allowed += tolerance.sensitivity(respond, rows)
    return agreement(error, allowed, f"the direction is {shown(got)} and should be {shown(expected)}")
