"""The lower level's losses l~_i(l_i): unchanged, rescaled by the first losses, or logarithmic.

- ``identical``: l~ = l.
- ``rescaled``: l~_i = l_i / c_i, c_i = l_i(0) / min_j l_j(0): all l~_i start at the smallest first loss. [code]
- ``log``: l~_i = log(l_i / l_i_ref). The reference is the first loss, or the first one in every period of
  ``log_reference_every`` steps; in the published code it is the first loss in every epoch. [code]

The references are state, a matrix of two rows: losses, and the periods in which they were taken (-1: not yet).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mtlcore.contracts import State, StepView
from mtlplugins.positive import positive
from mtlplugins.vectors import Vector, matrix, put, take

KINDS = ("identical", "rescaled", "log")


class References(NamedTuple):
    """The references of all n tasks; empty for ``identical``."""

    losses: Vector
    periods: Vector

    def state(self) -> State:
        """The references as entries of a state."""
        return {"reference": matrix([self.losses, self.periods])} if self.losses else {}


def fresh(kind: str, n_tasks: int) -> References:
    """References before the first step."""
    n = 0 if kind == "identical" else n_tasks
    return References([1.0] * n, [-1.0] * n)


def read(kind: str, state: State) -> References:
    """The references of a state."""
    if kind == "identical":
        return References([], [])
    return References(*state["reference"].tolist())


def usable(kind: str, view: StepView, references: References, inner: bool = False) -> list[bool] | None:
    """Which losses of this step, or of its ``inner`` steps, can be normalised, K truth values; None if all can (see
    mtlplugins.positive)."""
    if kind == "identical":
        return None
    new = None
    if kind == "rescaled":
        periods = take(references.periods, view)
        if -1 not in periods:
            return None
        new = [period < 0 for period in periods]
    way_out = f"normalisation={kind!r} needs positive ones: use normalisation='identical', or shift the loss."
    if inner:
        way_out = "at an inner step " + way_out.replace("use", "lower inner_lr, use", 1)
    return positive(view, way_out, checked=new)


def updated(kind: str, every: int | None, view: StepView, losses: Vector, old: References) -> References:
    """References of this step; new ones for tasks in the first step of the run or of a period; else ``old`` itself."""
    if kind == "identical":
        return old
    period = view.step // every if kind == "log" and every is not None else 0
    known, taken = take(old.losses, view), take(old.periods, view)
    if taken.count(period) == len(taken):
        return old
    anew = [reference if p == period else loss for reference, p, loss in zip(known, taken, losses)]
    return References(put(old.losses, view, anew), put(old.periods, view, [float(period)] * len(anew)))


def normalise(kind: str, view: StepView, losses: Vector, references: References) -> tuple[Vector, Vector]:
    """Normalised losses l~ and their derivatives dl~/dl, both (K,)."""
    if kind == "identical":
        return losses, [1.0] * len(losses)
    here = take(references.losses, view)
    if kind == "log":
        logs = [_log(loss, reference) for loss, reference in zip(losses, here)]
        return logs, [1.0 / loss for loss in losses]
    smallest = unit(kind, references)
    # In this order tasks at their reference are equal to the last bit; otherwise rounding would decide, in the very
    # first step, who is pulled where.
    rescaled = [(loss / reference) * smallest for loss, reference in zip(losses, here)]
    return rescaled, [smallest / reference for reference in here]


def unit(kind: str, references: References) -> float:
    """A common factor of all l~, which does not depend on single tasks: min_j l_j(0) for ``rescaled``, else 1."""
    if kind != "rescaled":
        return 1.0
    if -1 in references.periods:
        return min([loss for loss, period in zip(*references) if period >= 0])
    return min(references.losses)


def _log(loss: float, reference: float) -> float:
    """log(loss / reference), also where the quotient would overflow or underflow."""
    quotient = loss / reference
    return math.log(quotient) if 0.0 < quotient < math.inf else math.log(loss) - math.log(reference)
