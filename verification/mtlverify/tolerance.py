"""Every tolerance of the harness, each with its reason. No law and no test has a magic number of its own.

Three quantities make a tolerance: the rounding of the dtype, the scale of what was added up, and how strongly the
answer reacts to the last bit of its data. None of them is an absolute number, so gradients of size 1e-12 and 1e+12
are judged alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mtlverify.answer import Answer

EPS64 = torch.finfo(torch.float64).eps
"""Gramian and losses are float64 by contract, and weights unless a method gives them in another dtype."""

HALF_DIGITS = EPS64**0.5
"""1.5e-8. A method that sees gradients through their Gramian squares the condition number, so of the 16 digits of
the data half survive in the answer. Used where two answers have to be equal."""

VANISHED = 1e-300
"""A weight below it has left the range of float64, and one library's exp says 0 where another's says 1e-304."""

ROUNDINGS = 2.0**6
"""How many roundings of the row dtype may pile up in an answer: a sum over a few dozen entries, some divisions."""

BARGAINED = 8.0 * HALF_DIGITS
"""1.2e-7, the cosine to which a method of another degree than 1 is held; see :func:`cosine_noise`."""

SOLVER = 2.0**14 * EPS64
"""3.6e-12. What an exact K x K solver leaves over in its optimality conditions: backward error of a handful of
triangular solves, relative to the normalised rows."""

REFERENCE = 1e-6
"""Agreement asked of a method and a reference that solves the same problem in another way. A projection known up to a
duality gap of 1e-12 (relative) is known up to its square root, 1e-6, in the direction."""

EXACT = 2.0**-36
"""1.5e-11, of the gradients' size: what double precision leaves of integers below 4 and at most four tasks, whose
systems have condition numbers below 1e4."""

LOW_PRECISION = 2.0**-5
"""Eight roundings of bfloat16 (2^-8). Two ways of taking a gradient in bfloat16 differ by a rounding or two of its
entries, and so do they from the gradient that is written; what cancels in it does not get smaller by that."""

LAST_BITS = 2.0**3
"""A network in bfloat16 that is scaled through is rounded anew in every product and activation, a few for each
parameter: its losses may move by so many times what its parameters' last bits do to them."""

STEP = 2.0**-15
"""3e-5, a cosine. metric="step" asks for one of -2^-20 in the optimizer's metric; where D differs by 2^8 between
coordinates, as in these laws, the Euclidean one is up to 2^4 as large, and D is renewed in the step."""

LITTLE = 2.0**-8
"""What is left of a step when gradients that nearly cancel have taken the rest away is known to half of its digits or
less: below this share of the step that the method alone would make, cosines are judged by this length."""

PROBES = 6
"""Perturbed copies of the data that measure conditioning; a discontinuity next to the data hides from all of them
with probability 2^-6, and only if the law failed there in the first place."""

AMPLIFY = 32.0
"""A law may be off by this many times what the last bits of the data do to the answer: the worst of 6 random probes
understates the worst direction in a few dozen dimensions by about this factor."""

TRADE_OFF = 0.05
"""Of a task's range on the declared Pareto set: how far a trained model may be from where it should be. A statement
about a search with a budget, not about rounding: a few hundred steps of Adam end within 0.01 on these problems, and a
method that asks for something else is off by 0.1 and more."""

DRAWS = 400
"""Draws in each of the two samples of a law in distribution. With 2 tasks a distance of 0.33 between distribution
functions is then beyond chance, with 6 tasks one of 0.35; a method that prefers a position shows more on some input."""

FALSE_ALARM = 1e-9
"""Probability with which chance alone may refute a law in distribution on one input: a thousand seeds of twenty inputs
stay below one in ten thousand."""


def chance(comparisons: int) -> float:
    """Largest distance of two empirical distribution functions of DRAWS draws that chance explains.

    P(sup |F_n - F| > t) <= 2 exp(-2 n t^2) for every F (Massart 1990). Two samples of one distribution are farther
    apart than 2 t only if one of them is farther than t from it, in one of m comparisons: 4 m exp(-2 n t^2) is set to
    FALSE_ALARM.
    """
    return 2.0 * math.sqrt(math.log(4.0 * comparisons / FALSE_ALARM) / (2.0 * DRAWS))


def eps(dtype: torch.dtype) -> float:
    """Unit of the last place of 1.0."""
    return float(torch.finfo(dtype).eps)


def half_digits(answer: Answer) -> float:
    """Half of the digits of what the method gave: HALF_DIGITS, unless it computes in less than float64, and says so by
    the dtype of its weights or its direction."""
    return math.sqrt(eps(answer.dtype))


def rounding(answer: Answer) -> float:
    """What rounding alone may have done to d, as a length.

    d = J^T w is summed in float64 and stored in the dtype of the rows: the first is relative to the summands, the
    second to the result. A method that returns a direction did its sums in the dtype of the rows.
    """
    last = eps(answer.direction.dtype)
    if answer.weights is None:
        return ROUNDINGS * last * answer.size
    return ROUNDINGS * last * answer.length + SOLVER * answer.size


def cosine_noise(answer: Answer) -> float:
    """How far below zero <g_i, d> / (|g_i| |d|) may be for rounding alone. At least 1 if d is nothing but noise.

    A method of another degree than 1 bargains: its weights grow beyond all bounds near a stationary point, where its
    problem has no solution. Cosines are known to half of the digits there, and so is the direction: one that is shorter
    than that, of the length sum |g_i|^degree that is its own, is none.
    """
    if answer.length == 0:
        return 1.0
    if answer.degree == 1.0:
        return rounding(answer) / answer.length
    norms = answer.jacobian.double().norm(dim=1)
    own = float((norms[norms > 0] ** answer.degree).sum())
    if answer.length <= ROUNDINGS * HALF_DIGITS * own:
        return 1.0
    return max(rounding(answer) / answer.length, BARGAINED)


def equality(*answers: Answer) -> float:
    """The distance, as a length, below which answers count as equal: half of the digits, never less than rounding."""
    half: float = max(half_digits(a) * a.size for a in answers)
    return half + sum(rounding(a) for a in answers)


def last_bits(rows: Tensor, probe: int) -> Tensor:
    """The same rows as far as their dtype can tell: each moved by one unit of the last place of its own norm."""
    generator = torch.Generator().manual_seed(probe)
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    noise = noise / noise.norm(dim=1, keepdim=True).clamp_min(1.0)
    moved = rows.double() + 2.0 * eps(rows.dtype) * rows.double().norm(dim=1, keepdim=True) * noise
    same: Tensor = moved.to(rows.dtype)
    return same


def sensitivity(respond: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    """How far the answer moves, as a length, when the rows move in their last bits. Infinite if it stops existing."""
    base = respond(rows).double()
    worst = 0.0
    for probe in range(PROBES):
        moved = respond(last_bits(rows, probe)).double()
        worst = max(worst, float((moved - base).norm()) if bool(moved.isfinite().all()) else float("inf"))
    return AMPLIFY * worst


def largest(errors: Iterable[float]) -> float:
    """The largest of several errors, NaN if one is: Python's ``max`` passes over a NaN that is not the first."""
    found = list(errors)
    return float("nan") if any(math.isnan(e) for e in found) else max(found, default=0.0)


def share_left(error: float, allowed: float) -> float:
    """The margin of a law about equality: 1 if exact, 0 at the tolerance, negative beyond it.

    ``allowed`` may be 0 only where everything is exactly 0; then anything but an exact answer is a violation.
    """
    if error != error:
        return float("nan")
    if error == 0:
        return 1.0
    return 1.0 - error / allowed if allowed > 0 else float("-inf")
