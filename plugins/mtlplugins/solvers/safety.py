"""The last look at a direction that was promised to conflict with no task.

The test is the scale-free cosine min_i <g_i, d> / (|g_i| |d|), computed from the cosine matrix, against the rounding
error of that very product. Comparing norms instead would hide a violation eps behind eps^2.
"""

from __future__ import annotations

import math

from mtlplugins.solvers.cosines import Array, noise
from mtlplugins.solvers.dual_cone import project

_ROUNDS = 3


def without_conflict(matrix: Array, b: Array) -> tuple[Array, dict[str, object]]:
    """Weights b (k,) of the unit rows -> the same if d conflicts with no row, else the nearest that does not.

    Returns:
        the weights, and diagnostics: ``min_cosine`` of the answer, and ``polished`` (the violation found, as a
        cosine) if they had to be moved.
    """
    diagnostics: dict[str, object] = {}
    for attempt in range(_ROUNDS + 1):
        slack = matrix @ b
        lowest, floor = float(slack.min()), noise(matrix, b)
        largest = max(float(slack.max()), -lowest)
        if largest <= floor:
            # No gain or loss of any task exceeds its rounding error: there is no direction to speak of.
            return b, {**diagnostics, "min_cosine": 0.0, "direction": "zero to within rounding"}
        # b'Cb loses |d| below 1e-8 of the summands to cancellation; |<unit row, d>| bounds it from below there.
        length = max(max(float(b @ slack), 0.0) ** 0.5, largest)
        if lowest >= -floor:
            # What is below zero is rounding: not to look like a conflict beside the longest d that rounding allows.
            length = math.hypot(length, floor**0.5 * float(abs(b).sum()) ** 0.5)
            break
        if attempt == _ROUNDS:
            break
        diagnostics.setdefault("polished", lowest / length)
        b, _ = project(matrix, b)
    return b, {**diagnostics, "min_cosine": lowest / length}
