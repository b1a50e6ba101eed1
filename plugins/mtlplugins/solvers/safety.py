"""The final check of a direction that must not conflict with any task.

The test compares the smallest cosine <g_i, d> / (|g_i| |d|), computed from the cosine matrix, with the rounding error
of that product. In a comparison of norms a violation of size eps would have size eps^2 only.

If the gradients nearly cancel, the weights may be much larger than d. Then that rounding error is larger than the
allowed harm to a task, and the sign of an inner product is unknown. There are two cases:

- The rows have a common descent direction that the Gramian resolves, their min-norm point m. Then a small multiple of m
  is added, which makes every inner product positive beyond its rounding error. It is shorter than the resolution of d.
- They have none. If d is shorter than sqrt(eps) of its summands, it is not resolved, and the answer is zero. Otherwise
  d is kept; within the resolution it improves some task and harms none.
"""

from __future__ import annotations

import math

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array, noise
from mtlplugins.solvers.dual_cone import project
from mtlplugins.solvers.min_norm import min_norm

_ROUNDS = 3
_HARMLESS = 2.0**11 * EPS
"""Allowed harm to a task, relative to the size of the gradients: an eighth of the tolerance of the law
non-conflicting."""


def without_conflict(matrix: Array, b: Array, size: float | None = None) -> tuple[Array, dict[str, object]]:
    """Weights b (k,) of the unit rows: unchanged if d conflicts with no row, else the nearest ones without conflict.

    Args:
        matrix: (k, k) cosines.
        b: (k,) weights of the unit rows.
        size: the sum of the weights before any repair, sum_i |g_i| or a share of it. If it is given, harm that is
            within the rounding error of larger weights only is not allowed.

    Returns:
        the weights, and diagnostics: ``min_cosine`` of the answer, ``polished`` (the violation found, as a cosine) if
        they had to be moved, and ``direction`` if it is zero, or was moved out of its own rounding error.
    """
    diagnostics: dict[str, object] = {}
    for attempt in range(_ROUNDS + 1):
        slack = matrix @ b
        lowest, floor = float(slack.min()), noise(matrix, b)
        largest = max(float(slack.max()), -lowest)
        if largest <= floor:
            # No gain or loss of any task exceeds its rounding error: there is no direction to speak of.
            return b, {"direction": "zero to within rounding", **diagnostics, "min_cosine": 0.0}
        # b'Cb loses |d| below 1e-8 of the summands to cancellation; |<unit row, d>| bounds it from below there.
        length = max(max(float(b @ slack), 0.0) ** 0.5, largest)
        if lowest >= -floor:
            hidden = size is not None and lowest < -_HARMLESS * size
            if hidden and attempt < _ROUNDS and "direction" not in diagnostics:
                b, note = _beyond_rounding(matrix, b, floor, length)
                diagnostics["direction"] = note
                continue
            # What is below zero is rounding: not to look like a conflict beside the longest d that rounding allows.
            length = math.hypot(length, floor**0.5 * float(abs(b).sum()) ** 0.5)
            break
        if attempt == _ROUNDS:
            break
        diagnostics.setdefault("polished", lowest / length)
        b, _ = project(matrix, b)
    return b, {**diagnostics, "min_cosine": lowest / length}


def _beyond_rounding(matrix: Array, b: Array, floor: float, length: float) -> tuple[Array, str]:
    """Weights with non-negative inner products in spite of rounding errors of size ``floor``; and a text about what was
    done."""
    toward, square, certificate = min_norm(matrix, np.ones(len(b)))
    if certificate.status != "stationary":
        # <unit row, m> >= |m|^2 for all rows.
        return b + (2.0 * floor / square) * toward, "moved out of rounding, towards the minimum-norm point"
    if length <= (floor * float(np.abs(b).sum())) ** 0.5:
        return np.zeros_like(b), "zero: the gradients cancel, and what is left over is not resolved"
    return b, "resolved, but not which tasks lose by rounding"
