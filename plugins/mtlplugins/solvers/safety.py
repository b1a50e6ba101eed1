"""The last look at a direction that was promised to conflict with no task.

The test is the scale-free cosine min_i <g_i, d> / (|g_i| |d|), computed from the cosine matrix, against the rounding
error of that very product. Comparing norms instead would hide a violation eps behind eps^2.

Where weights are much larger than a direction needs (gradients that nearly cancel), that rounding error is larger than
what a method may harm a task by, and the sign of an inner product is not known. Two ways out, and no third:

- The rows have a common descent direction that the Gramian resolves, their minimum-norm point m: a small multiple of it
  makes every inner product positive beyond its rounding error. It is shorter than what the Gramian resolves of d.
- They have none: then nothing is resolved of d where it is shorter than sqrt(eps) of its summands, and it is zero. A
  direction that is resolved stays; it improves some task and harms none as far as can be known.
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
"""What a task may lose, relative to the size of the gradients: an eighth of what the law non-conflicting allows."""


def without_conflict(matrix: Array, b: Array, size: float | None = None) -> tuple[Array, dict[str, object]]:
    """Weights b (k,) of the unit rows -> the same if d conflicts with no row, else the nearest that does not.

    Args:
        matrix: (k, k) cosines.
        b: (k,) weights of the unit rows.
        size: the sum of the weights that d would have if nothing were repaired, sum_i |g_i| or a share of it. With it,
            a loss that hides in the rounding error of larger weights is not tolerated.

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
    """Weights whose inner products are not below zero, whatever rounding of size ``floor`` did to them; and what was
    done."""
    toward, square, certificate = min_norm(matrix, np.ones(len(b)))
    if certificate.status != "stationary":
        # <unit row, m> >= |m|^2 for all rows.
        return b + (2.0 * floor / square) * toward, "moved out of rounding, towards the minimum-norm point"
    if length <= (floor * float(np.abs(b).sum())) ** 0.5:
        return np.zeros_like(b), "zero: the gradients cancel, and what is left over is not resolved"
    return b, "resolved, but not which tasks lose by rounding"
