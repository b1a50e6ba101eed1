"""Which source is fastest, measured on the user's own first steps.

The first step of a new shape computes the task gradients with every candidate from the same graph and compares each
with the reference: a candidate that errs or fails is out for good. The steps after that are ordinary steps that take
turns among the candidates, timed; then the fastest stays. Every one of these steps is a correct training step, so
that nothing is wasted and nothing but rounding changes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlcore.contracts import Needs
from mtlcore.gradients.jacobian import Stored
from mtlcore.gradients.source import GradientProblem, GradientSource, TaskGradients

_ROUNDS = 3
"""Every candidate is timed at least so often ..."""
_MOST_ROUNDS = 12
_ENOUGH = 0.2
"""... and short steps, which noise can disturb, up to so often, or until the reference has been timed for 0.2 s."""
_WORTH = 0.97
"""Another source replaces the reference only if it saves more than 3 %."""
_HOPELESS = 2.5
"""A candidate this much slower than the best in the first two rounds is not tried again. (Not one round: the first also
warms up caches and threads.)"""


class Candidate:
    """A way of collecting, and how it fared.

    Args:
        label: as reports name it.
        make: a new source.
        together: whether it differentiates several tasks at once.
    """

    def __init__(self, label: str, make: Callable[[], GradientSource], together: bool = False) -> None:
        self.label = label
        self.together = together
        self._make = make
        self.source = make()
        self.times: list[float] = []
        self.refused: str | None = None

    def forget(self) -> None:
        """Give the buffers back."""
        self.source = self._make()


class Calibration:
    """The contest for one shape of step.

    Args:
        candidates: the reference first.
        timed: False where the choice must not depend on the clock: the last candidate that agrees with the
            reference is taken after the first step, so list the preferred one last.
        why: the reason, where nothing is timed.
    """

    def __init__(self, candidates: Sequence[Candidate], timed: bool, why: str = "") -> None:
        self._candidates = list(candidates)
        self.timed = timed
        self._why = why
        self._verified = False
        self._turn = 0
        self.winner: Candidate | None = None
        if len(candidates) == 1:
            self.winner = candidates[0]

    def collect(self, problem: GradientProblem) -> TaskGradients:
        """One step's task gradients, whoever's turn it is."""
        if not self._verified:
            return self._verify(problem)
        candidate = self._alive()[self._turn % len(self._alive())]
        stopwatch = _Stopwatch(problem)
        return _Timed(candidate.source.collect(problem), stopwatch, lambda s: self._note(candidate, s))

    def explain(self) -> str:
        """The state of the contest in words."""
        reference = self._candidates[0]
        refused = "".join(f"; {c.label} refused: {c.refused}" for c in self._candidates if c.refused)
        if self.winner is None:
            return f"calibrating ({', '.join(c.label for c in self._alive())}){refused}"
        if not self.timed:
            return f"{self.winner.label}: {self._why}{refused}"
        if not reference.times:
            return f"{self.winner.label}: the only one left{refused}"
        fastest = min(reference.times)
        ratios = [f"{c.label} {min(c.times) / fastest:.2f}" for c in self._candidates if c.times]
        return f"{self.winner.label}: measured step times {', '.join(ratios)}{refused}"

    def _alive(self) -> list[Candidate]:
        return [c for c in self._candidates if c.refused is None]

    def _verify(self, problem: GradientProblem) -> TaskGradients:
        reference, *others = self._candidates
        expected = _Fingerprint(_collect(reference, problem, keep_graph=True))
        for candidate in others:
            try:
                with warnings.catch_warnings(record=True):
                    # vmap warns of slow fallbacks; that is what the timing is for.
                    warnings.simplefilter("always")
                    got = _Fingerprint(_collect(candidate, problem, keep_graph=True))
                error = expected.distance(got)
                if not error <= _tolerance(problem):
                    candidate.refused = f"its gradients differ from the reference (relative error {error:.0e})"
            except (ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
                candidate.refused = " ".join(str(error).split())[:200]
            candidate.forget()
        self._verified = True
        alive = self._alive()
        chosen = alive[-1] if not self.timed else reference
        if not self.timed or len(alive) == 1:
            self._settle(chosen if len(alive) > 1 else reference)
            chosen = alive[-1]
        return chosen.source.collect(problem)

    def _note(self, candidate: Candidate, seconds: float) -> None:
        candidate.times.append(seconds)
        self._turn += 1
        alive = self._alive()
        rounds = min(len(c.times) for c in alive)
        if rounds < 2 or self._turn % len(alive):
            return
        best = min(min(c.times) for c in alive)
        for c in alive[1:]:
            if min(c.times) > _HOPELESS * best:
                c.refused = f"{min(c.times) / best:.1f} times slower than the best"
                c.forget()
        self._turn = 0
        reference, *others = self._alive()
        enough = rounds >= _MOST_ROUNDS or sum(reference.times) >= _ENOUGH
        if (rounds >= _ROUNDS and enough) or not others:
            winner = min(others, key=lambda c: min(c.times), default=reference)
            worth = min(winner.times) < _WORTH * min(reference.times)
            self._settle(winner if worth else reference)

    def _settle(self, winner: Candidate) -> None:
        self.winner = winner
        for candidate in self._candidates:
            if candidate is not winner:
                candidate.forget()


def _collect(candidate: Candidate, problem: GradientProblem, keep_graph: bool) -> Stored:
    found = candidate.source.collect(problem, keep_graph=keep_graph)  # type: ignore[call-arg]
    assert isinstance(found, Stored)
    return found


class _Fingerprint:
    """What two sources must agree on: every inner product, and one combination of the rows."""

    def __init__(self, found: Stored) -> None:
        self._gramian = found.gramian()
        weights = 1.0 / torch.arange(1, len(self._gramian) + 1, dtype=torch.float64, device=self._gramian.device)
        self._scale = float((weights * self._gramian.diagonal().sqrt()).sum())
        self._direction = {id(p.parameter): d.detach().clone() for p, d in found.combined(weights)}

    def distance(self, other: _Fingerprint) -> float:
        """Largest error relative to the norms of the task gradients."""
        norms = self._gramian.diagonal().sqrt()
        scale = norms[:, None] * norms[None, :]
        # A task with a zero gradient must have one here too: 0 / 0 counts as agreement, x / 0 does not.
        error = (self._gramian - other._gramian).abs()
        gramian = float(torch.where(error == 0, 0.0, error / scale).max())
        squares = sum(
            float((d.double() - other._direction[i].double()).square().sum()) for i, d in self._direction.items()
        )
        return max(gramian, 0.0 if squares == 0 else squares**0.5 / self._scale)


def _tolerance(problem: GradientProblem) -> float:
    """Rounding differs between sources by far less than this, a wrong gradient by far more."""
    return 2.0 * math.sqrt(max(torch.finfo(p.dtype).eps for p in problem.shared))


class _Stopwatch:
    """Time of what a source does: on an accelerator with its queue drained; with one thread on the processor this
    thread's own time, which busy neighbours do not lengthen."""

    def __init__(self, problem: GradientProblem) -> None:
        device = problem.shared[0].device
        self._cuda = device.type == "cuda"
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self._clock = time.thread_time if alone else time.perf_counter
        self._total = 0.0
        self.resume()

    def resume(self) -> None:
        """Go on."""
        self._drain()
        self._start = self._clock()

    def pause(self) -> float:
        """Seconds so far."""
        self._drain()
        self._total += self._clock() - self._start
        return self._total

    def _drain(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


class _Timed(TaskGradients):
    """Passes everything on and stops the time; a step that is never written does not count."""

    def __init__(self, inner: TaskGradients, stopwatch: _Stopwatch, done: Callable[[float], None]) -> None:
        self._inner = inner
        self._stopwatch = stopwatch
        self._done: Callable[[float], None] | None = done
        stopwatch.pause()

    def gramian(self) -> Tensor:
        """As :class:`TaskGradients`."""
        self._stopwatch.resume()
        out = self._inner.gramian()
        self._stopwatch.pause()
        return out

    def rows(self) -> Tensor:
        """As :class:`TaskGradients`."""
        self._stopwatch.resume()
        out = self._inner.rows()
        self._stopwatch.pause()
        return out

    def write(
        self,
        *,
        weights: Tensor | None,
        direction: Tensor | None,
        head_weights: Tensor | None,
        feature_gradient: Sequence[Tensor] = (),
    ) -> None:
        """As :class:`TaskGradients`; the trial is over."""
        self._stopwatch.resume()
        self._inner.write(
            weights=weights, direction=direction, head_weights=head_weights, feature_gradient=feature_gradient
        )
        seconds = self._stopwatch.pause()
        if self._done is not None:
            done, self._done = self._done, None
            done(seconds)


class Calibrated(GradientSource):
    """The source that a calibration stands for at this step."""

    name = "auto"
    provides = Needs.JACOBIAN

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def collect(self, problem: GradientProblem) -> TaskGradients:
        """By the winner, or by whoever's turn it is."""
        winner = self._calibration.winner
        return self._calibration.collect(problem) if winner is None else winner.source.collect(problem)
