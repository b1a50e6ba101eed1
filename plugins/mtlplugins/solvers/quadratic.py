"""min 1/2 x'Hx + f'x over x >= 0, a'x = t, b'x >= 0: a few variables, one equation, one half-space beside the signs.

A primal-dual active-set method in the dual form of Goldfarb and Idnani (1983): start at the minimum under the equation
alone; add the inequality that is violated most, stepping in primal and dual space until it is met, and drop constraints
whose multiplier would change its sign. Every full step raises the dual objective of a strictly convex problem, so no
active set is met twice; a ridge of rounding size makes it strictly convex.
"""

from __future__ import annotations

import numpy as np

from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array


def minimise(h: Array, f: Array, a: Array, t: float, b: Array) -> Array:
    """x (n,). The entries of H's diagonal should be of one size; some x >= 0 must satisfy the constraints."""
    n = len(f)
    size = float(np.abs(b).max())
    # Rows of inequalities: x_i >= 0, then b'x >= 0.
    rows: Array = np.asarray(np.vstack([np.eye(n), b]), dtype=np.float64)
    rows[n] /= size if size > 0.0 else 1.0
    ridged = h + 16.0 * n * EPS * max(float(h.diagonal().max()), EPS) * np.eye(n)
    inverse: Array = np.asarray(np.linalg.inv(ridged), dtype=np.float64)
    active: list[int] = []
    multipliers = np.zeros(0)
    x = inverse @ (a * ((t + float(a @ inverse @ f)) / float(a @ inverse @ a)) - f)
    for _ in range(50 * (n + 2)):
        slack = rows @ x
        slack[active] = 0.0
        worst = int(slack.argmin())
        if slack[worst] >= -64.0 * n * EPS * max(float(np.abs(x).max()), EPS):
            break
        entering = 0.0
        while True:
            direction, change = _step(inverse, a, rows, active, worst)
            gain = float(rows[worst] @ direction)
            full = -float(rows[worst] @ x) / gain if gain > EPS * float(np.abs(inverse).max()) else np.inf
            falling = change < 0.0
            limits = np.where(falling, multipliers / np.where(falling, -change, 1.0), np.inf)
            part = float(limits.min(initial=np.inf))
            step = min(full, part)
            if not np.isfinite(step):
                return np.maximum(x, 0.0)  # no feasible point to within rounding
            if np.isfinite(full):
                x = x + step * direction
            multipliers, entering = multipliers + step * change, entering + step
            if step == full:
                active.append(worst)
                multipliers = np.append(multipliers, entering)
                break
            gone = int(limits.argmin())
            del active[gone]
            multipliers = np.delete(multipliers, gone)
    return np.maximum(x, 0.0)


def _step(inverse: Array, a: Array, rows: Array, active: list[int], worst: int) -> tuple[Array, Array]:
    """Where x goes per unit of the entering multiplier, and how those of the active inequalities change."""
    held = np.vstack([a[None], rows[active]])
    normal = rows[worst]
    through = held @ inverse
    r = np.linalg.lstsq(through @ held.T, through @ normal, rcond=None)[0]
    return inverse @ (normal - held.T @ r), -r[1:]
