"""A verdict with numbers: did it converge, how fast, where to."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from mtlcore import Aggregator
from mtlcore.hosting import blame, registry
from mtlverify.convergence.claims import claimed
from mtlverify.convergence.rates import Rate, fitted
from mtlverify.convergence.run import run
from mtlverify.convergence.suite import NOISE, STEPS, Case, curvature

CONVERGED = 1e-3
"""Share of the first min-norm that may be left with exact gradients."""
CONVERGED_NOISY = 0.1
"""With noise of a tenth of the first gradients, a tenth is what can be asked for."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One run, judged.

    Args:
        method: registered name.
        problem: label of the case.
        noisy: whether the gradients were.
        verdict: "converged", "approaching" (falling like t^-0.25 or faster, not there yet), "stalled" or "error".
        stationarity: first and last min-norm of the exact gradients.
        remaining: last over first; for noisy gradients the mean of the last three checkpoints over first.
        rate: the fitted one, in words ("" for noisy gradients).
        claimed: the claimed one, in words; "" if none is known.
        source: where it is claimed.
        as_claimed: whether the claim was met; None without one.
        distance: to the Pareto set, first and last.
        gained: number of tasks that ended no worse than they began.
        tasks: K.
        seconds: wall time.
        detail: what was raised.
    """

    method: str
    problem: str
    noisy: bool
    verdict: str
    stationarity: tuple[float, float] = (0.0, 0.0)
    remaining: float = 1.0
    rate: str = ""
    claimed: str = ""
    source: str = ""
    as_claimed: bool | None = None
    distance: tuple[float, float] = (0.0, 0.0)
    gained: int = 0
    tasks: int = 0
    seconds: float = 0.0
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def judge(method: Aggregator, case: Case, *, noisy: bool, steps: int = STEPS, seed: int = 0) -> Verdict:
    """Run it and compare."""
    problem, name = case.make(), registry().name_of(method)
    begin = time.perf_counter()
    bend = curvature(problem)
    try:
        trace = run(method, problem, steps=steps, curvature=bend, noise=NOISE if noisy else 0.0, seed=seed)
    except BaseException as error:  # one method that cannot run must not hide the others
        return Verdict(name, case.label, noisy, "error", detail=blame(error))
    values = trace.stationarity
    first = max(values[0], 1e-300)
    remaining = (sum(values[-3:]) / 3 if noisy else values[-1]) / first
    rate = fitted(trace.steps, values)
    claim = None if noisy else claimed(name, problem, bend)
    before, after = trace.losses
    return Verdict(
        method=name,
        problem=case.label,
        noisy=noisy,
        verdict=_verdict(remaining, rate, noisy),
        stationarity=(values[0], values[-1]),
        remaining=remaining,
        rate="" if noisy else str(rate),
        claimed="" if claim is None else str(Rate(claim.kind, claim.value, 1.0)),
        source="" if claim is None else claim.source,
        as_claimed=None if claim is None else _keeps(trace.steps, values, claim.kind, claim.value),
        distance=trace.distance,
        gained=sum(b <= a + 1e-9 * max(1.0, abs(a)) for a, b in zip(before, after, strict=True)),
        tasks=len(before),
        seconds=time.perf_counter() - begin,
    )


def _verdict(remaining: float, rate: Rate, noisy: bool) -> str:
    if not remaining > (CONVERGED_NOISY if noisy else CONVERGED):
        return "converged" if remaining == remaining else "stalled"
    falling = rate.kind == "linear" or (rate.kind == "power" and rate.value >= 0.25)
    return "approaching" if falling and remaining < 0.5 else "stalled"


def _keeps(steps: tuple[int, ...], values: tuple[float, ...], kind: str, value: float) -> bool:
    """Whether the best value so far stays under the claimed curve through the first checkpoints.

    A claim says "up to a constant". The constant is twice the largest that the first third of the run needs.
    """
    best, so_far = [], float("inf")
    for v in values:
        so_far = min(so_far, v)
        best.append(so_far)
    shape = [value**t if kind == "linear" else max(t, 1) ** -value for t in steps]
    third = max(2, len(steps) // 3)
    constant = 2.0 * max(b / s for b, s in zip(best[:third], shape[:third], strict=True))
    return all(b <= constant * s + 1e-9 * values[0] for b, s in zip(best, shape, strict=True))
