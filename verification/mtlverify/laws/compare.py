"""When two answers of a method count as the same."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mtlverify import tolerance
from mtlverify.answer import Answer


def same_direction_and_length(
    got: Tensor, expected: Tensor, answers: tuple[Answer, ...], respond: Callable[[Tensor], Tensor], rows: Tensor
) -> float:
    """Margin of got = expected. The strict tolerance decides; only where it fails is conditioning asked about.

    ``respond(rows)`` is the method's direction as a function of its data: a law cannot hold more exactly than the
    answer is determined by the data. It is measured only on failure, so it costs nothing where the law holds.
    """
    got, expected = got.double(), expected.double()
    error = float((got - expected).norm())
    allowed = tolerance.equality(*answers)
    if error <= allowed or error != error:
        return tolerance.share_left(error, allowed)
    return tolerance.share_left(error, allowed + tolerance.sensitivity(respond, rows))
