"""The arms of the study of COST: each hypothesis is a switch that can be measured alone.

An arm changes one thing of the low-rank jump (``lora`` on the paper's trigger, searched on the surface of constant
losses) or of the exact teleport, or is a control at equal price.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mtlcore
from mtlcore import Conflict, ConflictDetector, Needs, StepView, Teleporter
from mtlcore.presets import COOLDOWN, PAPER_HISTORY, PAPER_TELEPORT


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is different from the low-rank jump.

    Args:
        about: the hypothesis.
        strategy: the teleport; None: the base method alone.
        options: of the :class:`mtlcore.Teleporter`.
        strategy_options: of the strategy.
        detector: "batch", "persistent", "metric" or "plateau".
        first, last: the part of the run in which a teleport may be tried, as shares of all steps.
        gap: at least so many steps between two attempts.
        probation: steps after which a teleport is taken back, if a held-out loss is no lower than before it.
        extra_steps: plain steps in the place of each attempt: the control at equal price.
        paper: the published objective, estimator, adapter and history rule (``mtlcore.presets``).
        nudge: by what share the weights of the trunk are moved before the first step.
    """

    about: str
    strategy: str | None = "lora"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    strategy_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    detector: str = "batch"
    first: float = 0.0
    last: float = 1.0
    gap: int = COOLDOWN
    probation: int = 0
    extra_steps: int = 0
    paper: bool = False
    nudge: float = 0.0


ARMS: dict[str, Arm] = {
    "alone": Arm("the base method, nothing else", strategy=None),
    "low-rank": Arm("the low-rank jump, from which the arms below differ"),
    "persistent": Arm("1: the conflict of one batch is noise", detector="persistent"),
    "metric": Arm("2: conflict of directions under Adam is not conflict of steps", detector="metric"),
    "gradient norms": Arm("3: another objective: that of the paper", strategy_options={"objective": "gradient-norm"}),
    "progress": Arm(
        "3: progress that the next steps promise, in Adam's metric, in the place of a better cosine",
        options={"accept": "progress"},
        strategy_options={"objective": "progress"},
    ),
    "history reset": Arm("4: the past is no use", options={"history": "reset"}),
    "history kept": Arm("4: the past does no harm", options={"history": "keep"}),
    "history previous": Arm(
        "4: compared as in the authors' code", options={"reuse_direction": "previous", "reuse_over": "shared"}
    ),
    "early": Arm("5: in the first fifth only", last=0.2),
    "late": Arm("5: after half of the run only", first=0.5),
    "rarely": Arm("5: a fifth as often", gap=100),
    "plateau": Arm("5: where the losses no longer fall", detector="plateau"),
    "probation": Arm("6: a teleport keeps its way back", probation=20),
    "paper": Arm(
        "7: the published objective and history, always kept, in a short search",
        options={"accept": "always"},
        paper=True,
    ),
    "exact": Arm("an exact symmetry in the place of a jump", strategy="relu-rescaling"),
    "confirmed": Arm(
        "1: the same, where held-out data show the conflict, too: mtlcore's default",
        strategy="relu-rescaling",
        options={"accept": "confirmed"},
    ),
    "random": Arm("control: anywhere on the orbit of the symmetry", strategy="random"),
    "extra steps": Arm("control: plain steps for the price of an attempt", strategy=None, extra_steps=5),
    "nudge": Arm("control: a pair that differs by rounding only", strategy=None, nudge=1e-6),
}


class Persistent(ConflictDetector):
    """Fires when a task's inner product with the mean gradient is below zero by ``sure`` of its own standard errors,
    over the last ``batches`` batches. Keeps what it has seen, as a plugin may not: the study makes one a run."""

    def __init__(self, batches: int = 16, sure: float = 2.0) -> None:
        object.__setattr__(self, "_seen", collections.deque(maxlen=batches))
        object.__setattr__(self, "_sure", sure)

    def detect(self, view: StepView) -> Conflict:
        """The severity is the largest number of standard errors."""
        gram = view.gramian
        sizes = gram.diagonal().clamp_min(1e-300).sqrt()
        self._seen.append(gram.mean(dim=0) / (sizes * gram.mean().clamp_min(1e-300).sqrt()))  # type: ignore[attr-defined]
        seen: Tensor = torch.stack(tuple(self._seen))  # type: ignore[attr-defined]
        k = view.n_tasks
        dominated = torch.zeros(k, dtype=torch.bool)
        severity = -float(seen[-1].min())
        if len(seen) == self._seen.maxlen:  # type: ignore[attr-defined]
            error = seen.std(dim=0) / len(seen) ** 0.5
            dominated = seen.mean(dim=0) < -self._sure * error  # type: ignore[attr-defined]
        return Conflict(bool(dominated.any()), severity, torch.zeros(k, k, dtype=torch.bool), dominated)


class Plateau(ConflictDetector):
    """Asks the detector inside where the mean loss of the last ``batches`` batches is no lower than that of as many
    before them. Keeps what it has seen, as :class:`Persistent` does."""

    def __init__(self, inner: ConflictDetector, batches: int = 10) -> None:
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_seen", collections.deque(maxlen=2 * batches))

    def detect(self, view: StepView) -> Conflict:
        """No conflict before the losses of enough batches are known."""
        seen, inner = self._seen, self._inner  # type: ignore[attr-defined]
        seen.append(float(view.losses.mean()))
        half = seen.maxlen // 2
        falls = len(seen) < seen.maxlen or sum(list(seen)[half:]) < sum(list(seen)[:half])
        found: Conflict = inner.detect(view)
        return dataclasses.replace(found, conflicting=found.conflicting and not falls)


class InMetric(ConflictDetector):
    """The detector inside sees the Gramian in Adam's metric: J diag(s) J^T with s = 1 / (sqrt(v) + eps)."""

    needs = Needs.JACOBIAN

    def __init__(self, inner: ConflictDetector, scale: Callable[[], Tensor | None]) -> None:
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_scale", scale)

    def detect(self, view: StepView) -> Conflict:
        """As long as Adam has no memory, the plain Gramian."""
        scale: Tensor | None = self._scale()  # type: ignore[attr-defined]
        inner: ConflictDetector = self._inner  # type: ignore[attr-defined]
        if scale is None:
            return inner.detect(view)
        rows = view.jacobian.double()
        gram = (rows * scale.to(rows)) @ rows.T
        return inner.detect(StepView(losses=view.losses.double(), gramian=gram.cpu(), task_names=view.task_names))


def adam_scale(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> Tensor | None:
    """(P,) factors by which Adam multiplies a mean gradient; None before its first step."""
    if not all(p in optimizer.state for p in parameters):
        return None
    states = [optimizer.state[p] for p in parameters]
    beta = optimizer.param_groups[0]["betas"][1]
    sizes = [(s["exp_avg_sq"] / (1 - beta ** float(s["step"]))).sqrt().flatten() for s in states]
    scale: Tensor = (torch.cat(sizes).double() + optimizer.param_groups[0]["eps"]).reciprocal()
    return scale


def detector_of(arm: Arm, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> ConflictDetector:
    """What triggers a teleport; a fresh one for a run."""
    if arm.detector == "persistent":
        return Persistent()
    judge = _judge_of(arm, optimizer, parameters)
    return Plateau(judge) if arm.detector == "plateau" else judge


def _judge_of(arm: Arm, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> ConflictDetector:
    """What measures the conflict before and after; it must have no memory."""
    plain: ConflictDetector = mtlcore.create("detector", "dominated", at_zero=arm.paper)
    return InMetric(plain, lambda: adam_scale(optimizer, parameters)) if arm.detector == "metric" else plain


def teleporter_of(arm: Arm, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> Teleporter | None:
    """A fresh one for a run."""
    if arm.strategy is None:
        return None
    options, history = ({**PAPER_TELEPORT}, PAPER_HISTORY) if arm.paper else ({}, {})
    strategy = mtlcore.create("teleport", arm.strategy, **{**options, **arm.strategy_options})
    return Teleporter(strategy, detector=_judge_of(arm, optimizer, parameters), **{**history, **arm.options})
