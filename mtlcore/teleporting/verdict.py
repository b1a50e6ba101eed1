"""Whether a proposal keeps what it must, and from which point on the way to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mtlcore.contracts import Displacement, StepView
from mtlcore.teleporting.changes import relative_changes, worst_of
from mtlcore.teleporting.outlook import outlook
from mtlcore.teleporting.problem import Problem
from mtlcore.teleporting.transaction import Transaction

Accept = Literal["confirmed", "conflict", "progress", "losses", "always"]
_Losses = Mapping[str, Tensor]

_EXACT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest relative loss change of a teleport that calls itself exact: rounding of its dtype through a deep network
(float32: with the reduced precision that accelerators use for products), far below what a broken symmetry would do."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """On one proposal; ``scale`` is how much of the way is gone."""

    accepted: bool
    reason: str
    changes: dict[str, float]
    before: float
    after: float
    diagnostics: dict[str, Any]
    scale: float = 1.0


def stay(reason: str, diagnostics: Mapping[str, Any] | None = None) -> Verdict:
    """No teleport, and nothing was measured."""
    return Verdict(False, reason, {}, math.nan, math.nan, dict(diagnostics or {}))


def unseen(view: StepView, judge: Problem) -> list[str]:
    """The tasks of the run that neither the batch of the step nor the probe has."""
    absent = [t for t, there in zip(view.task_names, view.present.tolist()) if not there]
    probed = judge.losses() if absent else {}
    return [t for t in absent if t not in probed]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is asked of a proposal.

    Args:
        exact: the strategy calls itself a symmetry: one trial, held to the rounding of its dtype, whatever ``accept``.
        accept: "conflict": every loss kept and less conflict; "confirmed": the same, where the batch that judges has a
            conflict, too; "progress": every loss kept and a better outlook; "losses": every loss kept; "always": finite
            losses.
        tolerance: largest relative change of a kept loss.
        trials: points that an approximate proposal is tried at.
        horizon: steps that an outlook looks ahead.
    """

    exact: bool
    accept: Accept
    tolerance: float
    trials: int
    horizon: int

    @property
    def measure(self) -> str:
        """What ``before`` and ``after`` of a verdict are."""
        return f"the worst task's change in {self.horizon} steps" if self.accept == "progress" else "conflict"

    def limit(self, losses: Mapping[str, Tensor]) -> float:
        """Largest relative change that is allowed."""
        if self.exact:
            return min([self.tolerance, *(_EXACT_TOLERANCE.get(v.dtype, self.tolerance) for v in losses.values())])
        return self.tolerance if self.accept != "always" else math.inf


class Judge:
    """Tries a proposal, and measures.

    Args:
        problem: the batch of the step.
        judge: the batch on which a proposal must keep its promise; the same, if nothing was held out.
    """

    def __init__(self, transaction: Transaction, problem: Problem, judge: Problem, rule: Rule) -> None:
        self._transaction = transaction
        self._problem = problem
        self._judge = judge
        self._rule = rule

    def verdict(self, proposal: Displacement) -> Verdict:
        """Leaves the network at one of the trial points."""
        start = self._judge.evaluate()[0]
        further = self._further(start)
        for condition, losses in {"": start, **further}.items():
            for task, value in losses.items():
                if not math.isfinite(float(value.detach())):
                    where = _under(task, condition)
                    return stay(
                        f"the loss of {where} is {float(value.detach())} before the teleport", proposal.diagnostics
                    )
        if self._rule.accept == "progress" and self._judge.pace() is None:
            return stay("the next steps of the optimizer are not known, or it has taken none", proposal.diagnostics)
        kept = {t: v.detach() for t, v in start.items()}
        before, there = self._measured(start)
        if self._rule.accept == "confirmed" and not there:
            verdict = stay(
                f"not confirmed: no conflict on the batch that judges, severity {before:.3g}", proposal.diagnostics
            )
            return dataclasses.replace(verdict, before=before)
        return self._along(proposal, kept, further, before)

    def _along(
        self,
        proposal: Displacement,
        kept: Mapping[str, Tensor],
        further: Mapping[str, Mapping[str, Tensor]],
        before: float,
    ) -> Verdict:
        """The first point on the way that fits."""
        notes: dict[str, Any] = dict(proposal.diagnostics)
        verdict = Verdict(False, "", {}, before, math.nan, notes)
        refusals: list[str] = []
        scale, useless = 1.0, 0
        for _ in range(1 if self._rule.exact else self._rule.trials):
            self._transaction.move(proposal, scale)
            losses, changes, worst, task = self._changes(kept, further, notes)
            notes["scale"] = scale
            verdict = dataclasses.replace(verdict, changes=changes, scale=scale)
            limit = self._rule.limit(losses)
            if not (abs(worst) <= limit and math.isfinite(worst)):
                allowed = f"{limit:.3g}" if math.isfinite(limit) else "any finite one"
                refusals.append(
                    f"at scale {scale:.3g} the loss of {task} changes by {worst:+.3g}, allowed is {allowed}"
                )
                # Drift on the probe is linear in a small scale: go where it should fit.
                scale *= min(0.7, 0.9 * limit / abs(worst)) if math.isfinite(worst) else 0.1
                continue
            after, measure = self._measured(losses)[0], self._rule.measure
            verdict = dataclasses.replace(verdict, after=after)
            if self._rule.accept in ("confirmed", "conflict", "progress") and not after < before:
                refusals.append(f"at scale {scale:.3g} {measure} {before:.4g} -> {after:.4g} is not an improvement")
                scale *= 0.5
                useless += 1
                if useless == 2:
                    break  # each look costs a pass of task gradients, and half the way says what a quarter would
                continue
            reason = f"{measure} {before:.4g} -> {after:.4g}, largest relative loss change {worst:+.3g} ({task})"
            return dataclasses.replace(verdict, accepted=True, reason=reason)
        return dataclasses.replace(verdict, reason="; ".join(refusals))

    def _measured(self, losses: _Losses) -> tuple[float, bool]:
        """What is to become less, at the place where ``losses`` were evaluated, and whether there is anything to make
        less; their graph is freed."""
        pace = self._judge.pace() if self._rule.accept == "progress" else None
        if pace is None:
            return self._judge.conflict(losses)
        return outlook(self._judge, losses, pace, self._rule.horizon), True

    def _changes(
        self, kept: _Losses, further: Mapping[str, _Losses], notes: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, float], float, str]:
        """Losses here, with their graph (if they pass, their gradients are asked for without another forward pass);
        their relative changes; and the largest of all changes, under every condition, with its task."""
        moved = {c: relative_changes(further[c], now) for c, now in self._further(kept).items()}
        losses, _ = self._judge.evaluate()
        changes = relative_changes(kept, losses)
        everywhere = {_under(t, c): x for c, found in {"": changes, **moved}.items() for t, x in found.items()}
        task, worst = worst_of(everywhere)
        for condition, found in moved.items():
            notes[f"relative_loss_change_{condition.replace(' ', '_')}"] = found
        return losses, changes, worst, task

    def _further(self, probed: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Losses that must be kept beside those of the probe, by the condition under which they are taken."""
        problem, judge = self._problem, self._judge
        found = {"with batch statistics": judge.losses_with_batch_statistics()}
        if judge is not problem and set(problem.view.task_names) - set(probed):
            for condition, losses in (
                ("on the own batch", problem.losses()),
                ("on the own batch with batch statistics", problem.losses_with_batch_statistics()),
            ):
                found[condition] = {t: v for t, v in losses.items() if t not in probed}
        if self._rule.exact:
            # A symmetry keeps each loss mask by mask; what is one in evaluation only would change the training.
            found["in training"] = problem.losses_in_training()
        return {condition: losses for condition, losses in found.items() if losses}


def _under(task: str, condition: str) -> str:
    return f"{task} {condition}" if condition else task
