"""Broken conflict detectors, each next to the laws that must see it."""

# ruff: noqa: D102  (the docstring of a class says what its one method does)

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import Conflict, StepView
from mtlverify.mutants.twins import WeakConflict

frozen = dataclasses.dataclass(frozen=True)


@frozen
class AbsoluteThreshold(WeakConflict):
    """Inner products above -1e-6 do not count, whatever the gradients' unit."""

    def detect(self, view: StepView) -> Conflict:
        rows = view.jacobian.double()
        gram = rows @ rows.T
        return self.answer(gram / gram.diagonal().max().clamp_min(1e-300), gram < -1e-6, rows @ rows.mean(0) < -1e-6)


@frozen
class OneSided(WeakConflict):
    """Reports each pair once."""

    def answer(self, cos: Tensor, pairs: Tensor, dominated: Tensor) -> Conflict:
        return super().answer(cos, pairs.triu(), dominated)


@frozen
class OrthogonalIsConflict(WeakConflict):
    """Cosine <= 0 instead of < 0."""

    def answer(self, cos: Tensor, pairs: Tensor, dominated: Tensor) -> Conflict:
        off = ~torch.eye(len(cos), dtype=torch.bool)
        return super().answer(cos, (cos <= 0) & off, dominated)


@frozen
class NotANumber(WeakConflict):
    """The severity of a zero gradient is 0 / 0."""

    def detect(self, view: StepView) -> Conflict:
        rows = view.jacobian.double()
        units = rows / rows.norm(dim=1, keepdim=True)
        return dataclasses.replace(super().detect(view), severity=float((units @ units.T).min()))


@frozen
class AdjacentOnly(WeakConflict):
    """Compares each task with the next one only."""

    def answer(self, cos: Tensor, pairs: Tensor, dominated: Tensor) -> Conflict:
        near = torch.ones_like(pairs).triu(1) & torch.ones_like(pairs).tril(1)
        return super().answer(cos, pairs & (near | near.T), dominated)


@frozen
class WritesIntoRows(WeakConflict):
    """Normalises in place."""

    def detect(self, view: StepView) -> Conflict:
        view.jacobian.mul_(0.5)
        return super().detect(view)


@frozen
class Remembers(WeakConflict):
    """Smooths its severity over calls."""

    memory: ClassVar[list[float]] = [0.0]

    def detect(self, view: StepView) -> Conflict:
        found = super().detect(view)
        self.memory[0] = 0.5 * self.memory[0] + 0.5 * found.severity
        return dataclasses.replace(found, severity=self.memory[0])


@frozen
class FirstOfTheSmallest(WeakConflict):
    """A conflict is what harms the smallest gradient: of several that are as small, the first."""

    def detect(self, view: StepView) -> Conflict:
        found = super().detect(view)
        smallest = int(view.jacobian.double().norm(dim=1).argmin())
        return dataclasses.replace(found, conflicting=bool(found.dominated[smallest]))


@frozen
class CalibratedByTheFirst(WeakConflict):
    """Measures severity from that of the first question on."""

    def detect(self, view: StepView) -> Conflict:
        found = super().detect(view)
        least = vars(self).setdefault("least", found.severity)
        return dataclasses.replace(found, severity=max(0.0, found.severity - least))


@frozen
class KnowsRowsByTheirAddress(WeakConflict):
    """Keeps verdicts by the identity of the rows, whose memory a step uses again."""

    memory: ClassVar[dict[int, Conflict]] = {}

    def detect(self, view: StepView) -> Conflict:
        kept = self.memory.get(id(view.jacobian))
        if kept is None or len(kept.dominated) != view.n_tasks:
            kept = self.memory[id(view.jacobian)] = super().detect(view)
        return kept


@frozen
class TensorVerdict(WeakConflict):
    """Answers with tensors where plain values are promised."""

    def detect(self, view: StepView) -> Conflict:
        found = super().detect(view)
        return dataclasses.replace(found, conflicting=found.pairs.any(), pairs=found.pairs.double())  # type: ignore[arg-type]


@frozen
class Blind(WeakConflict):
    """Sees no conflict anywhere."""

    def answer(self, cos: Tensor, pairs: Tensor, dominated: Tensor) -> Conflict:
        return super().answer(cos, torch.zeros_like(pairs), dominated)


@frozen
class WarmsUp(WeakConflict):
    """Sees nothing in the first ten steps."""

    def detect(self, view: StepView) -> Conflict:
        found = super().detect(view)
        return found if view.step >= 10 else self.answer(found.pairs.double() * 0, found.pairs & False, found.dominated)


@frozen
class RoomForAll(WeakConflict):
    """Makes its masks for all tasks of the run, also where some are away."""

    def detect(self, view: StepView) -> Conflict:
        found, k = super().detect(view), 1 + max(view.task_index)
        return dataclasses.replace(found, dominated=torch.zeros(k, dtype=torch.bool))


@frozen
class FloorOfNorms(WeakConflict):
    """No norm below 1e-60."""

    def detect(self, view: StepView) -> Conflict:
        rows = view.jacobian.double()
        units = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-60)
        cos = units @ units.T
        return self.answer(cos, cos < -1e-13, super().detect(view).dominated)


@frozen
class HardlyAConflict(WeakConflict):
    """Cosines above -1e-4 do not count."""

    def answer(self, cos: Tensor, pairs: Tensor, dominated: Tensor) -> Conflict:
        return super().answer(cos, pairs & (cos < -1e-4), dominated)


KILLED_BY: dict[type, tuple[str, ...]] = {
    AbsoluteThreshold: ("scale-free", "matches-reference"),
    OneSided: ("symmetric", "matches-reference"),
    OrthogonalIsConflict: ("silent-on-aligned",),
    NotANumber: ("finite",),
    AdjacentOnly: ("permutation-equivariant", "matches-reference"),
    WritesIntoRows: ("pure",),
    Remembers: ("deterministic",),
    FirstOfTheSmallest: ("permutation-equivariant",),
    CalibratedByTheFirst: ("deterministic",),
    KnowsRowsByTheirAddress: ("deterministic",),
    TensorVerdict: ("shape-dtype-device",),
    Blind: ("matches-reference",),
    WarmsUp: ("matches-reference",),
    RoomForAll: ("shape-dtype-device",),
    FloorOfNorms: ("scale-free", "matches-reference"),
    HardlyAConflict: ("matches-reference",),
}
