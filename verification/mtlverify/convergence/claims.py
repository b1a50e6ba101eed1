"""The rates at which methods are known to reach Pareto stationarity with the steps that :mod:`.run` takes.

m_t is the min-norm measure; a claim bounds min_{s <= t} m_s for exact gradients of L-smooth losses and a step of 1 / L.
Methods that are not listed have no claimed rate that we know of (Nash-MTL and FairGrad: convergence without a rate).
"""

from __future__ import annotations

import dataclasses

from mtlverify.problems import Problem


@dataclasses.dataclass(frozen=True)
class Claim:
    """Args:
    kind: "linear" (m_t <= C q^t) or "power" (m_t <= C t^-p).
    value: q or p.
    source: where it is stated.
    """

    kind: str
    value: float
    source: str


DESCENT = (
    "steepest descent for vector optimisation (Fliege, Vaz & Vicente 2019, complexity of gradient descent for "
    "multiobjective optimisation) [paper*]"
)
SCALAR = "gradient descent on the mean loss; m_t <= |mean gradient|, because the mean is in the hull (textbook)"
CONFLICT_AVERSE = "Liu et al. 2021 (2110.14048), theorem 3.2: sum of |mean gradient|^2 is bounded for c < 1 [paper*]"

SOURCES: dict[str, str] = {"mgda": DESCENT, "ls": SCALAR, "sum": SCALAR, "cagrad": CONFLICT_AVERSE}


def claimed(name: str, problem: Problem, curvature: float) -> Claim | None:
    """The strongest claim that covers this method and problem."""
    source = SOURCES.get(name)
    if source is None or problem.smoothness is None:
        return None
    mu = problem.strong_convexity
    if mu is not None and name != "cagrad":
        return Claim("linear", (1.0 - min(mu) / curvature) ** 0.5, source)
    return Claim("power", 0.5, source)
