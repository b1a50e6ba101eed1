"""Which source is fastest, measured on the user's own first steps.

The first step of a new shape computes the task gradients with every candidate from the same graph and compares each
with the reference: a candidate that errs or fails is out for good. The steps after that are ordinary steps that take
turns among the candidates, timed: first heats of single steps, then a final among those that are close, in turns of
several steps. Every one of these steps is a correct training step, so that nothing is wasted and nothing but rounding
changes.
"""

from __future__ import annotations

import collections
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlcore.contracts import Needs
from mtlcore.gradients import graph
from mtlcore.gradients.jacobian import Stored
from mtlcore.gradients.source import GradientProblem, GradientSource, Outline, TaskGradients
from mtlcore.gradients.storage import Storage

_HEATS = 2
"""Steps of every candidate before the final. (Not one: the first also warms up caches and threads.)"""
_CLOSE = 1.25
"""The final is among those that in the heats were at most this much slower than the best."""
_TURN = 3
"""Steps in a row in the final. The first does not count: it finds caches and threads as another source left them, and
training does not go on like that."""
_TURNS = 5
"""Turns of everybody in the final at least ..."""
_MOST_TURNS = 12
_ENOUGH = 0.2
"""... and short steps, which noise can disturb, up to so many, or until one source's counted steps have taken 0.2 s."""
_FAILURES = (ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a source may raise on a network that it cannot serve."""
_WORTH = 0.97
"""Another source replaces the reference only if it saves more than 3 %."""


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
        """Of the steps that count."""
        self.ratio: float | None = None
        """Its time over the reference's."""
        self.serves: dict[Outline, bool] = {}
        """By the outline of a task in a graph."""
        self.refused: str | None = None

    def turns(self) -> list[float]:
        """Seconds of each turn in the final."""
        n = _TURN - 1
        return [sum(self.times[i : i + n]) for i in range(0, len(self.times), n)]

    def forget(self) -> None:
        """Begin anew."""
        self.source = self._make()


class Calibration:
    """The contest for one shape of step.

    Args:
        candidates: the reference first.
        timed: False where the choice must not depend on the clock: the last candidate that agrees with the
            reference is taken after the first step, so list the preferred one last.
        why: the reason, where nothing is timed.
        storage: what the candidates share; let go of when the contest is over, for the winner may need less.
    """

    def __init__(
        self, candidates: Sequence[Candidate], timed: bool, why: str = "", storage: Storage | None = None
    ) -> None:
        self._candidates = list(candidates)
        self.timed = timed
        self._why = why
        self._storage = storage
        self._verified = False
        self.inseparable = False
        """Whether the candidates were judged in a step whose features do not separate heads from trunk."""
        self._exception = ""
        self._explanation: str | None = None
        """Once there is a winner."""
        self._coming: collections.deque[tuple[Candidate, bool]] = collections.deque()
        """Whose steps come next, and whether they count."""
        self._final: list[Candidate] = []
        self.winner: Candidate | None = None
        if len(candidates) == 1:
            self.winner = candidates[0]

    def collect(self, problem: GradientProblem) -> TaskGradients:
        """One step's task gradients, whoever's turn it is."""
        if self.winner is not None:
            return self._by(self.winner, problem)
        if not self._verified:
            return self._verify(problem)
        candidate, stopwatch = self._coming[0][0], _Stopwatch(problem)
        return _Timed(self._by(candidate, problem), stopwatch, lambda s: self._note(candidate, s))

    def _by(self, candidate: Candidate, problem: GradientProblem) -> TaskGradients:
        """By the candidate, or by the reference if this is another graph than before, and one that the candidate cannot
        serve (a head that reads a trunk weight, a new hook): training goes on."""
        reference = self._candidates[0]
        if candidate is reference:
            return reference.source.collect(problem)
        serves = {outline: candidate.serves.get(outline) for outline in problem.outlines}
        if False in serves.values():
            return reference.source.collect(problem)
        if None in serves.values():
            try:
                found = _collect(candidate, problem, keep_graph=True)
            except _FAILURES as error:
                candidate.serves |= {outline: bool(known) for outline, known in serves.items()}
                self._exception = f"; {reference.label} for another graph, which {candidate.label} cannot serve: "
                self._exception += " ".join(str(error).split())[:200]
                self._explanation = None
                return reference.source.collect(problem)
            candidate.serves |= dict.fromkeys(serves, True)
            return found
        return candidate.source.collect(problem)

    def explain(self) -> str:
        """The state of the contest in words."""
        if self._explanation is None:
            words = self._explain()
            if self.winner is None:  # it will change
                return words
            self._explanation = words
        return self._explanation

    def _explain(self) -> str:
        reference = self._candidates[0]
        refused = "".join(f"; {c.label} refused: {c.refused}" for c in self._candidates if c.refused)
        if self.winner is None and not self.timed:
            return f"{self._alive()[-1].label}: {self._why}; in this step compared with {reference.label}"
        if self.winner is None:
            return f"calibrating ({', '.join(c.label for c in self._alive())}){refused}"
        refused += self._exception
        if not self.timed:
            return f"{self.winner.label}: {self._why}{refused}"
        if reference.ratio is None:
            return f"{self.winner.label}: the only one left{refused}"
        ratios = [f"{c.label} {c.ratio:.2f}" for c in self._candidates if c.ratio is not None]
        return f"{self.winner.label}: measured step times {', '.join(ratios)}{refused}"

    def _alive(self) -> list[Candidate]:
        return [c for c in self._candidates if c.refused is None]

    def _verify(self, problem: GradientProblem) -> TaskGradients:
        reference, *others = self._candidates
        found = _collect(reference, problem, keep_graph=True)
        if not bool(torch.isfinite(found.gramian()).all()):
            return found  # an error in a moment; nothing to be compared with, so nobody is judged by it
        expected = _Fingerprint(found)
        for candidate in others:
            try:
                with warnings.catch_warnings(record=True):
                    # vmap warns of slow fallbacks; that is what the timing is for.
                    warnings.simplefilter("always")
                    got = _Fingerprint(_collect(candidate, problem, keep_graph=True))
                error = expected.distance(got)
                if not error <= _tolerance(problem):
                    candidate.refused = f"its gradients differ from the reference (relative error {error:.0e})"
                candidate.serves |= dict.fromkeys(problem.outlines, True)
            except _FAILURES as error:
                candidate.refused = " ".join(str(error).split())[:200]
            candidate.forget()
        self._verified, self.inseparable = True, bool(problem.features) and not problem.separated
        alive = self._alive()
        chosen = alive[-1] if not self.timed else reference
        if not self.timed or len(alive) == 1:
            self._settle(chosen if len(alive) > 1 else reference)
            chosen = alive[-1]
        else:
            self._coming.extend((c, True) for c in alive * _HEATS)
        return chosen.source.collect(problem)

    def _note(self, candidate: Candidate, seconds: float) -> None:
        """The step of ``candidate`` took so long. (A step that was given up is not noted; its turn comes again.)"""
        _, counts = self._coming.popleft()
        if counts:
            candidate.times.append(seconds)
        if self._coming:
            return
        if not self._final:
            self._begin_final()
        elif self._decided():
            self._end_final()
        if self.winner is None:
            for c in self._final:
                self._coming.extend((c, i > 0) for i in range(_TURN))

    def _begin_final(self) -> None:
        reference, *_ = alive = self._alive()
        fastest = {c.label: min(c.times) for c in alive}
        best = min(fastest.values())
        for c in alive:
            c.ratio = fastest[c.label] / fastest[reference.label]
            c.times.clear()
            if fastest[c.label] <= _CLOSE * best:
                self._final.append(c)
            else:
                c.forget()
        if len(self._final) == 1:
            self._settle(self._final[0])

    def _decided(self) -> bool:
        times = self._final[0].times
        turns = len(times) // (_TURN - 1)
        return turns >= _TURNS and (turns >= _MOST_TURNS or sum(times) >= _ENOUGH)

    def _end_final(self) -> None:
        first = self._final[0]
        anchor, base = first.ratio or 1.0, first.turns()
        for c in self._final:
            # Turn by turn, so that a load that comes and goes, which all turns of a round share, cancels.
            c.ratio = anchor * statistics.median(a / b for a, b in zip(c.turns(), base))
        winner = min(self._final, key=lambda c: c.ratio or math.inf)
        reference = self._candidates[0]
        worth = reference not in self._final or (winner.ratio or 0.0) < _WORTH
        self._settle(winner if worth else reference)

    def _settle(self, winner: Candidate) -> None:
        self.winner = winner
        for candidate in self._candidates:
            if candidate is not winner:
                candidate.forget()
        if self._storage is not None and winner is not self._candidates[0]:
            self._storage.release()


def _collect(candidate: Candidate, problem: GradientProblem, keep_graph: bool) -> Stored:
    found = candidate.source.collect(problem, keep_graph=keep_graph)  # type: ignore[call-arg]
    assert isinstance(found, Stored)
    return found


class _Fingerprint:
    """What two sources must agree on: every inner product, and one combination of the rows."""

    def __init__(self, found: Stored) -> None:
        self._gramian = found.gramian().cpu()
        weights = 1.0 / torch.arange(1, len(self._gramian) + 1, dtype=torch.float64, device="cpu")
        self._scale = float((weights * self._gramian.diagonal().sqrt()).sum())
        self._direction = {id(p): d.detach().clone() for p, d in found.combined(weights)}

    def distance(self, other: _Fingerprint) -> float:
        """Largest error relative to the norms of the task gradients."""
        norms = self._gramian.diagonal().sqrt()
        scale = norms[:, None] * norms[None, :]
        # A task with a zero gradient must have one here too: 0 / 0 counts as agreement, x / 0 does not.
        error = (self._gramian - other._gramian).abs()
        gramian = float(torch.where(error == 0, 0.0, error / scale).max())
        apart = [(d.double() - other._direction[i].double()).square().sum() for i, d in self._direction.items()]
        squares = float(graph.total(apart)) if apart else 0.0
        return max(gramian, 0.0 if squares == 0 else squares**0.5 / self._scale)


def _tolerance(problem: GradientProblem) -> float:
    """Rounding differs between sources by far less than this, a wrong gradient by far more."""
    rounding = 2.0 * math.sqrt(max(torch.finfo(p.dtype).eps for p in problem.shared))
    # Unless told otherwise, CUDA rounds what convolutions in float32 read to ten bits (TF32).
    ten_bits = any(p.device.type == "cuda" and p.dtype == torch.float32 for p in problem.shared)
    return max(rounding, 2.0**-6) if ten_bits else rounding


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
        return self._calibration.collect(problem)
