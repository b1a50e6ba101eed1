"""The rate that a sequence of measurements shows."""

from __future__ import annotations

import dataclasses

import numpy as np

FLOOR = 1e-9
"""Relative to the first measurement. Below, rounding and the reference's own precision speak."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """Args:
    kind: "linear" (m_t ~ q^t), "power" (m_t ~ t^-p), or "none" if nothing falls.
    value: q or p.
    fit: R^2 of the regression.
    """

    kind: str
    value: float
    fit: float

    def __str__(self) -> str:
        if self.kind == "linear":
            return f"linear, {self.value:.3f} per step"
        return f"t^-{self.value:.2f}" if self.kind == "power" else "none"


def fitted(steps: tuple[int, ...], values: tuple[float, ...]) -> Rate:
    """The better of two regressions on the logarithms, over the second half of the (geometrically spaced) checkpoints
    that are above the floor."""
    t, m = np.array(steps, dtype=float), np.array(values)
    use = (t > 0) & (m > FLOOR * m[0])
    t, m = t[use], m[use]
    t, m = t[len(t) // 3 :], m[len(m) // 3 :]
    if len(t) < 3:  # it fell below the floor at once
        return Rate("linear", 0.0, 1.0)
    candidates = []
    for kind, x in (("linear", t), ("power", np.log(t))):
        slope, offset = np.polyfit(x, np.log(m), 1)
        residual = np.log(m) - (slope * x + offset)
        total = np.log(m) - np.log(m).mean()
        fit = 1.0 - float(residual @ residual) / max(float(total @ total), 1e-300)
        candidates.append(Rate(kind, float(np.exp(slope)) if kind == "linear" else -float(slope), fit))
    best = max(candidates, key=lambda r: r.fit)
    falling = best.value < 1.0 - 1e-4 if best.kind == "linear" else best.value > 0.05
    return best if falling else Rate("none", 0.0, best.fit)
