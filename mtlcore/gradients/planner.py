"""Which gradient source serves a step, and why."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from mtlcore import linalg, threads
from mtlcore.contracts import Needs
from mtlcore.errors import ConfigurationError
from mtlcore.gradients.batched import Batched
from mtlcore.gradients.calibration import Calibrated, Calibration, Candidate
from mtlcore.gradients.features_only import FeaturesOnly
from mtlcore.gradients.losses_only import LossesOnly
from mtlcore.gradients.sequential import Sequential
from mtlcore.gradients.source import GradientProblem, GradientSource
from mtlcore.gradients.storage import Storage
from mtlcore.gradients.streaming import Streaming
from mtlcore.gradients.threaded import Threaded

SOURCES: dict[str, type[GradientSource]] = {
    s.name: s for s in (LossesOnly, Sequential, Threaded, Batched, Streaming, FeaturesOnly)
}
"""Those that a user can force."""

_WITHOUT_NUMBERS = (LossesOnly.name, FeaturesOnly.name)
"""Sources that store nothing per parameter."""
_SMALL = 1 << 18
"""Below this many numbers in parameters or features, times K, a step is a matter of a millisecond or two, and the
choice is not timed."""
_MANY = 8
"""From so many tasks on, a small step differentiates them together."""
_TOGETHER = 16
"""Tasks differentiated at once: more gain little speed and cost memory."""


class Planner:
    """Holds the sources of one training run (they keep buffers) and picks one per step.

    Args:
        wish: "auto", or the name of a source to force.
        memory: bytes that task gradients may take, or None. "auto" leaves out the sources that would need more.

    Raises:
        ConfigurationError: an unknown source, or a budget that is no positive number of bytes.
    """

    def __init__(self, wish: str = "auto", memory: int | None = None) -> None:
        if wish != "auto" and wish not in SOURCES:
            raise ConfigurationError(f"gradients={wish!r}: choose one of auto, {', '.join(SOURCES)}.")
        if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory <= 0):
            raise ConfigurationError(f"gradient_memory={memory!r}: give a positive whole number of bytes, or None.")
        self._wish = wish
        self._memory = memory
        self._storage = Storage()
        self._sources: dict[str, GradientSource] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._chosen: dict[str, str] = {}

    def pick(self, needs: Needs, problem: GradientProblem, training: bool = True) -> tuple[GradientSource, str]:
        """The source for what this step needs, and the reason in words.

        Args:
            needs: of method and detector.
            problem: the forward pass.
            training: the trunk's mode; batch norms have another graph in evaluation.

        Raises:
            ConfigurationError: the forced source does not provide what the method needs.
        """
        if self._wish == "auto":
            return self._automatic(needs, problem, training)
        source = self._get(self._wish)
        if source.provides < needs:
            raise ConfigurationError(
                f'gradients="{self._wish}" provides {source.provides.name}, but this method (or its detector) needs '
                f'{needs.name}. Use gradients="auto".'
            )
        return source, f"{self._wish}: forced"

    def choices(self) -> dict[str, str]:
        """What the clock has settled, by shape of step: for a checkpoint. (What a rule settles, it settles again.)"""
        settled = {k: c.winner.label for k, c in self._calibrations.items() if c.timed and c.winner is not None}
        return {**self._chosen, **settled}

    def release(self) -> None:
        """Let go of the memory for task gradients; the next step asks for it anew."""
        self._storage.release()

    def restore(self, choices: Mapping[str, str]) -> None:
        """Take over :meth:`choices` of an earlier run instead of calibrating again."""
        self._chosen = dict(choices)
        self._calibrations = {}

    def _automatic(self, needs: Needs, problem: GradientProblem, training: bool) -> tuple[GradientSource, str]:
        if needs == Needs.LOSSES:
            return self._get("losses"), "losses: the method needs no task gradients, one backward pass"
        key = _signature(needs, problem, training)
        calibration = self._calibrations.get(key)
        # Who differentiates tasks together was ruled out by an odd first step: this one is the second chance.
        if calibration is None or (calibration.inseparable and problem.separated):
            calibration = self._calibrations[key] = self._contest(key, needs, problem)
        reason = calibration.explain()
        if not problem.features:
            reason += "; no features were given, so every task goes through the whole graph (slower)"
        return Calibrated(calibration), reason

    def _contest(self, key: str, needs: Needs, problem: GradientProblem) -> Calibration:
        n_tasks, size = len(problem.losses), sum(p.numel() for p in problem.shared)
        candidates = _candidates(needs, problem, self._storage)
        reference = candidates[:1]
        item = torch.finfo(linalg.row_dtype(problem.shared)).bits // 8
        bytes_of_rows = n_tasks * size * item
        if self._memory is not None and bytes_of_rows > self._memory:
            if needs > Needs.GRAMIAN:
                raise ConfigurationError(
                    f"the task gradients take {bytes_of_rows / 1e6:.0f} MB and the memory budget is "
                    f"{self._memory / 1e6:.0f} MB, but this method (or its detector) reads whole rows. Raise the "
                    f"budget, or take one that needs the Gramian only."
                )
            # Not compared with the reference, whose rows are what does not fit.
            stream = functools.partial(Streaming, storage=self._storage, limit=self._memory // item)
            why = "the rows would not fit into the memory budget"
            return Calibration([Candidate("streaming", stream)], timed=False, why=why)
        if key in self._chosen:
            # Compared with the reference once more: the network may be another one now.
            kept = [c for c in candidates[1:] if c.label == self._chosen[key]]
            known = kept or self._chosen[key] == reference[0].label
            why = (
                "as before the checkpoint" if known else f"the checkpoint's {self._chosen[key]!r} is not to be had here"
            )
            return Calibration([*reference, *kept], timed=False, why=why, storage=self._storage)
        if n_tasks == 1:
            return Calibration(reference, timed=False, why="one task")
        if n_tasks * max(size, sum(f.numel() for f in problem.features)) < _SMALL:
            # Dispatch is what a small step costs; all tasks at once dispatch once. Not timed, so that two runs of the
            # same small program choose alike.
            together = [c for c in candidates if c.together] if n_tasks >= _MANY else []
            why = "a small step, chosen by rule and not by the clock"
            return Calibration(reference + together, timed=False, why=why, storage=self._storage)
        if torch.are_deterministic_algorithms_enabled():
            return Calibration(reference, timed=False, why="deterministic algorithms are on, so nothing is timed")
        return Calibration(candidates, timed=True, storage=self._storage)

    def _get(self, name: str) -> GradientSource:
        if name not in self._sources:
            kind: Any = SOURCES[name]
            self._sources[name] = kind() if name in _WITHOUT_NUMBERS else kind(storage=self._storage)
        return self._sources[name]


def _candidates(needs: Needs, problem: GradientProblem, storage: Storage) -> list[Candidate]:
    """The reference first."""
    stream = functools.partial(Streaming, frugal=False, storage=storage)
    together = min(len(problem.losses), _TOGETHER)
    workers = threads.available() if problem.shared[0].device.type == "cpu" else 1
    out = [Candidate("sequential", functools.partial(Sequential, storage))]
    if needs == Needs.GRAMIAN:
        out.append(Candidate("streaming", stream))
        if workers > 1:
            out.append(Candidate("streaming-threaded", functools.partial(stream, threaded=True)))
        if problem.features:
            out.append(Candidate("streaming-together", functools.partial(stream, together), together=True))
        return out
    if workers > 1:
        out.append(Candidate("threaded", functools.partial(Threaded, storage)))
    if problem.features:
        out.append(Candidate("batched", functools.partial(Batched, together, storage), together=True))
    return out


def _signature(needs: Needs, problem: GradientProblem, training: bool) -> str:
    """What a choice depends on."""
    first = problem.shared[0]
    return _spelled(
        needs,
        len(problem.losses),
        sum([p.numel() for p in problem.shared]),
        tuple([f.shape for f in problem.features]),
        first.dtype,
        first.device.type,
        training,
        torch.is_autocast_enabled(first.device.type),
    )


@functools.lru_cache(maxsize=64)  # a step spells out what the last one did
def _spelled(
    needs: Needs,
    n_tasks: int,
    n_parameters: int,
    features: tuple[torch.Size, ...],
    dtype: torch.dtype,
    device: str,
    training: bool,
    autocast: bool,
) -> str:
    # Sizes are rounded to powers of two: batches of varying length share a choice.
    shapes = ["x".join(str(1 << (n - 1).bit_length()) for n in shape) for shape in features]
    mode = f"{'train' if training else 'eval'}{' autocast' if autocast else ''}"
    return f"{needs.name} K={n_tasks} P={n_parameters} features={','.join(shapes)} {dtype} {device} {mode}"
