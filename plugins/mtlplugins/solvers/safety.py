"""The last look at a direction that was promised to conflict with no task.

The test is the scale-free cosine min_i <g_i, d> / (|g_i| |d|), computed from the cosine matrix, against the rounding
error of that very product. Comparing norms instead would hide a violation eps behind eps^2.
"""

from __future__ import annotations

from mtlplugins.solvers.certificate import EPS
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
        lowest = float(slack.min())
        size = float(abs(b).sum())
        square = float(b @ slack)
        if square <= 16.0 * len(b) * EPS * size * size:
            # |d| itself is rounding error: there is no direction to speak of.
            return b, {**diagnostics, "min_cosine": 0.0, "direction": "zero to within rounding"}
        length = square**0.5
        if lowest >= -noise(matrix, b) or attempt == _ROUNDS:
            break
        diagnostics.setdefault("polished", lowest / length)
        b, _ = project(matrix, b)
    return b, {**diagnostics, "min_cosine": lowest / length}
