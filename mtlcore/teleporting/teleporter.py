"""One attempt: snapshot, propose, check, accept or roll back."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlcore import trajectory
from mtlcore.contracts import ConflictDetector, Displacement, StepView, TeleportStrategy
from mtlcore.errors import ConfigurationError, PluginError
from mtlcore.registry import registry
from mtlcore.report import TeleportResult
from mtlcore.snapshot import undo_on_error
from mtlcore.teleporting.problem import Closure, Problem
from mtlcore.teleporting.transaction import Transaction

History = Literal["carry", "reset", "keep"]

_EXACT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest relative loss change of a teleport that calls itself exact: rounding of its dtype through a deep network
(float32: with the reduced precision that accelerators use for products), far below what a broken symmetry would do."""


class Teleporter:
    """Tries one strategy as a transaction.

    Args:
        strategy: what proposes.
        name: its name, for the result.
        detector: whose severity measures conflict. Default: minus the worst cosine of a task with the mean gradient.
        tolerance: largest relative change of any task's loss on the probe batch. For a strategy that calls itself
            exact the bound is that of rounding (1e-9 in float64, 1e-3 in float32) if it is smaller.
        trials: how many points an approximate displacement is tried at: itself, then nearer and nearer to the start,
            by what the measured drift suggests. An exact one is tried as it is.
        history: "carry" transports what an exact map explains and reuses the rest by similarity; "reset" forgets the
            parameters that moved (any optimizer); "keep" leaves the history alone.
        reuse_sign: sign of the pre-teleport gradient in historical trajectory reuse: +1 paper and code, -1 descent.
        batch_norm: how batch norms work during search and conflict check: "running" statistics [code], or those of the
            "batch". Losses are checked in both ways when the trunk trains with batch statistics.
    """

    def __init__(
        self,
        strategy: TeleportStrategy,
        *,
        name: str,
        detector: ConflictDetector | None = None,
        tolerance: float = 0.02,
        trials: int = 5,
        history: History = "carry",
        reuse_sign: Literal[1, -1] = 1,
        batch_norm: Literal["running", "batch"] = "running",
    ) -> None:
        if not tolerance > 0.0:
            raise ConfigurationError(f"tolerance={tolerance!r}: must be a positive number.")
        if history not in ("carry", "reset", "keep"):
            raise ConfigurationError(f"history={history!r}: must be one of 'carry', 'reset', 'keep'.")
        if reuse_sign not in (1, -1):
            raise ConfigurationError(f"reuse_sign={reuse_sign!r}: must be 1 or -1.")
        if batch_norm not in ("running", "batch"):
            raise ConfigurationError(f"batch_norm={batch_norm!r}: must be one of 'running', 'batch'.")
        if trials < 1:
            raise ConfigurationError(f"trials={trials!r}: must be an integer in [1, inf).")
        self.strategy = strategy
        self.name = name
        self.detector = detector
        self.tolerance = tolerance
        self.trials = trials
        self.history = history
        self.reuse_sign = reuse_sign
        self.batch_norm = batch_norm

    def attempt(
        self,
        *,
        trunk: nn.Module,
        heads: nn.Module | None,
        closure: Closure,
        probe: Closure | None,
        view: StepView,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
        direction: Sequence[Tensor] | None = None,
    ) -> TeleportResult:
        """Try to teleport. On accept the network has moved and the optimizer's history with it; on refusal, and when an
        exception passes through, everything is bit for bit as before.

        Args:
            trunk: the shared network.
            heads: the task-specific networks, if known.
            closure: evaluates the trigger batch: ({task: loss with graph}, features).
            probe: the same for a held-out batch; None: the trigger batch judges itself.
            view: losses and Gramian at the trigger.
            optimizer: whose history follows, or None.
            generator: source of randomness; its state is not advanced.
            direction: combined gradient of the last ordinary step per trainable trunk parameter, for historical
                trajectory reuse [paper]. Default: the mean gradient of the trigger batch. [choice]

        Raises:
            TeleportError: the optimizer's history cannot be carried.
            PluginError: the strategy broke its contract.
        """
        started = time.perf_counter()
        if self.history == "carry":
            trajectory.check_supported(optimizer)
        own = torch.Generator().manual_seed(_next_seed(generator) ^ view.step)
        transaction = Transaction(trunk, heads, optimizer, frozen_statistics=self.batch_norm == "running")
        with undo_on_error(transaction.roll_back):
            verdict = self._try(transaction, closure, probe, view, own, direction)
            if not verdict.accepted:
                transaction.roll_back()
            return TeleportResult(
                strategy=self.name,
                accepted=verdict.accepted,
                reason=verdict.reason,
                relative_loss_change=verdict.changes,
                held_out=probe is not None,
                conflict_before=verdict.before,
                conflict_after=verdict.after,
                seconds=time.perf_counter() - started,
                diagnostics=verdict.diagnostics,
            )

    def _try(
        self,
        transaction: Transaction,
        closure: Closure,
        probe: Closure | None,
        view: StepView,
        generator: torch.Generator,
        direction: Sequence[Tensor] | None,
    ) -> _Verdict:
        problem = Problem(transaction, closure, view, self.detector)
        judge = problem if probe is None else Problem(transaction, probe, view, self.detector)
        with transaction.frozen():
            unseen = _unseen(view, judge)
            if unseen:
                return _stay(
                    f"task {unseen[0]} is neither in this batch nor in the probe, so that nothing would show what "
                    f"becomes of its loss: hand over a probe that has every task"
                )
            proposal = self.strategy.propose(problem, generator)
            transaction.undo_search()
            proposal = _checked(proposal, transaction, self.strategy)
            if not proposal.parameters and not proposal.head_parameters:
                reason = str(proposal.diagnostics.get("reason", "the strategy stayed where it was"))
                return _stay(reason, proposal.diagnostics)
            slope = self._slope(problem, proposal, direction)
            verdict = self._judge(transaction, problem, judge, proposal)
        if verdict.accepted:
            # Flags and hooks come back first: the history is blended by a hook on the optimizer, not on the network.
            transaction.undo_search()
            transaction.move(proposal, verdict.scale)
            verdict.diagnostics.update(self._carry_history(transaction, proposal, verdict.scale, slope))
            transaction.commit(proposal)
        return verdict

    # --- the verdict ------------------------------------------------------------------------------------------

    def _judge(self, transaction: Transaction, problem: Problem, judge: Problem, proposal: Displacement) -> _Verdict:
        exact = self.strategy.exact
        start = judge.evaluate()[0]
        further = self._further(problem, judge, start)
        for condition, losses in {"": start, **further}.items():
            for task, value in losses.items():
                if not math.isfinite(float(value.detach())):
                    where = _under(task, condition)
                    return _stay(
                        f"the loss of {where} is {float(value.detach())} before the teleport", proposal.diagnostics
                    )
        losses_before = {t: v.detach() for t, v in start.items()}
        before = judge.severity(start)
        diagnostics: dict[str, Any] = dict(proposal.diagnostics)
        refusals = []
        verdict = _Verdict(False, "", {}, before, float("nan"), diagnostics)
        scale = 1.0
        useless = 0
        for _ in range(1 if exact else self.trials):
            transaction.move(proposal, scale)
            moved = {c: relative_changes(further[c], now) for c, now in self._further(problem, judge, start).items()}
            # With its graph: if the losses pass, their gradients are asked for without another forward pass.
            losses, _ = judge.evaluate()
            changes = relative_changes(losses_before, losses)
            worst = _worst({_under(t, c): x for c, found in {"": changes, **moved}.items() for t, x in found.items()})
            limit = min(self.tolerance, self._exact_limit(losses)) if exact else self.tolerance
            verdict = dataclasses.replace(verdict, changes=changes, scale=scale)
            diagnostics["scale"] = scale
            for condition, found in moved.items():
                diagnostics[f"relative_loss_change_{condition.replace(' ', '_')}"] = found
            if not abs(worst[1]) <= limit:
                refusals.append(
                    f"at scale {scale:.3g} the loss of {worst[0]} changes by {worst[1]:+.3g}, allowed is {limit:.3g}"
                )
                # Drift on the probe is linear in a small scale: go where it should fit.
                scale *= min(0.7, 0.9 * limit / abs(worst[1])) if math.isfinite(worst[1]) else 0.1
                continue
            after = judge.severity(losses)
            verdict = dataclasses.replace(verdict, after=after)
            if self.strategy.improves and not after < before:
                refusals.append(f"at scale {scale:.3g} conflict {before:.4g} -> {after:.4g} is no improvement")
                scale *= 0.5
                useless += 1
                if useless == 2:
                    break  # each look costs a pass of task gradients, and half the way says what a quarter would
                continue
            reason = f"conflict {before:.4g} -> {after:.4g}, largest relative loss change {worst[1]:+.3g} ({worst[0]})"
            return dataclasses.replace(verdict, accepted=True, reason=reason)
        return dataclasses.replace(verdict, reason="; ".join(refusals))

    def _further(self, problem: Problem, judge: Problem, probed: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Losses that must be kept beside those of the probe, by the condition under which they are taken."""
        found = {"with batch statistics": judge.losses_with_batch_statistics()}
        if judge is not problem and set(problem.view.task_names) - set(probed):
            for condition, losses in (
                ("on the own batch", problem.losses()),
                ("on the own batch with batch statistics", problem.losses_with_batch_statistics()),
            ):
                found[condition] = {t: v for t, v in losses.items() if t not in probed}
        if self.strategy.exact:
            # A symmetry keeps each loss mask by mask; what is one in evaluation only would change the training.
            found["in training"] = problem.losses_in_training()
        return {condition: losses for condition, losses in found.items() if losses}

    def _exact_limit(self, losses: Mapping[str, Tensor]) -> float:
        return min((_EXACT_TOLERANCE.get(v.dtype, self.tolerance) for v in losses.values()), default=self.tolerance)

    # --- the optimizer's history -------------------------------------------------------------------------------

    def _slope(self, problem: Problem, proposal: Displacement, direction: Sequence[Tensor] | None) -> dict[str, Tensor]:
        """g' of historical trajectory reuse per displaced parameter; empty if nothing needs it."""
        displaced = [n for n in proposal.parameters if n not in proposal.maps]
        if self.history != "carry" or problem.optimizer_is_blank() or not displaced:
            return {}
        parameters = problem.parameters()
        if direction is not None:
            return {n: d for n, d in zip(parameters, direction) if n in displaced}
        mean = problem.mean_gradient()
        return {n: mean[n] for n in displaced}

    def _carry_history(
        self, transaction: Transaction, proposal: Displacement, scale: float, slope: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        optimizer = transaction.optimizer
        if optimizer is None or self.history == "keep":
            return {"history": "kept"}
        moved = {n: transaction.trunk_parameters[n] for n in proposal.parameters}
        head_moved = {n: transaction.head_parameters[n] for n in proposal.head_parameters}
        if self.history == "reset":
            trajectory.reset(optimizer, [*moved.values(), *head_moved.values()])
            return {"history": "reset"}
        for parameters, maps in ((moved, proposal.maps), (head_moved, proposal.head_maps)):
            for name, parameter in parameters.items():
                if name in maps:
                    trajectory.transport(optimizer, parameter, maps[name])
        displaced = [n for n in moved if n not in proposal.maps]
        if not displaced:
            return {"history": "transported"}
        if not slope:
            return {"history": "none yet"}
        jump = [(proposal.parameters[n] - transaction.saved(moved[n])) * scale for n in displaced]
        cosine = trajectory.similarity(jump, [slope[n] for n in displaced], self.reuse_sign)
        sigma = min(max(cosine, 0.0), 1.0)
        trajectory.reuse(optimizer, [moved[n] for n in displaced], sigma)
        return {"history": "reused", "history_cosine": cosine, "sigma": sigma}


@dataclasses.dataclass(frozen=True)
class _Verdict:
    accepted: bool
    reason: str
    changes: dict[str, float]
    before: float
    after: float
    diagnostics: dict[str, Any]
    scale: float = 1.0


def _stay(reason: str, diagnostics: Mapping[str, Any] | None = None) -> _Verdict:
    nan = float("nan")
    return _Verdict(False, reason, {}, nan, nan, dict(diagnostics or {}))


def _under(task: str, condition: str) -> str:
    return f"{task} {condition}" if condition else task


def _unseen(view: StepView, judge: Problem) -> list[str]:
    """The tasks of the run that neither the batch of the step nor the probe has."""
    absent = [t for t, there in zip(view.task_names, view.present.tolist()) if not there]
    probed = judge.losses() if absent else {}
    return [t for t in absent if t not in probed]


def relative_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """(after - before) / max(|before|, eps * largest |before| of all tasks), eps the resolution of the dtype.

    The second term is the scale below which a loss is rounding beside the others (an almost fitted task), so that
    nothing depends on the unit of the losses. All losses exactly zero: any change counts as infinite.
    """
    values, moved = ({t: float(v.detach()) for t, v in losses.items()} for losses in (before, after))
    largest = max((abs(v) for v in values.values()), default=0.0)
    changes = {}
    for task, value in values.items():
        difference = moved[task] - value
        scale = max(abs(value), torch.finfo(before[task].dtype).eps * largest)
        changes[task] = difference / scale if scale > 0.0 else (0.0 if difference == 0.0 else float("inf"))
    return changes


def _worst(changes: Mapping[str, float]) -> tuple[str, float]:
    """The largest change in size; NaN counts as the largest."""
    return max(changes.items(), key=lambda item: abs(item[1]) if item[1] == item[1] else float("inf"))


def _next_seed(generator: torch.Generator) -> int:
    """What the generator would draw next, without advancing it."""
    copy = torch.Generator(device=generator.device)
    copy.set_state(generator.get_state())
    return int(torch.randint(2**62, (), generator=copy, device=generator.device))


def _checked(proposal: Any, transaction: Transaction, strategy: TeleportStrategy) -> Displacement:
    who = registry().identify(strategy)
    if not isinstance(proposal, Displacement):
        raise PluginError(f"teleport {who} returned {type(proposal).__name__}, not an mtlcore.Displacement.")
    for where, known, values, maps in (
        ("trunk", transaction.trunk_parameters, proposal.parameters, proposal.maps),
        ("heads", transaction.head_parameters, proposal.head_parameters, proposal.head_maps),
    ):
        for name, value in values.items():
            if name not in known:
                raise PluginError(f"teleport {who} wants to move {name!r}, which is no parameter of the {where}.")
            if not known[name].requires_grad:
                raise PluginError(f"teleport {who} wants to move {name!r} of the {where}, which is frozen.")
            if not isinstance(value, Tensor):
                raise PluginError(
                    f"teleport {who} gives {name!r} of the {where} as a {type(value).__name__}; it must be a tensor."
                )
            if value.shape != known[name].shape:
                raise PluginError(
                    f"teleport {who} wants to give {name!r} of the {where} the shape {tuple(value.shape)}; "
                    f"it has {tuple(known[name].shape)}."
                )
            if isinstance(map := maps.get(name), Tensor) and not _fits(map.shape, value.shape):
                raise PluginError(
                    f"teleport {who}: the map of {name!r} of the {where} has the shape {tuple(map.shape)}, which does "
                    f"not broadcast to the parameter's {tuple(value.shape)}."
                )
        if where == "heads" and set(values) - set(maps):
            raise PluginError(f"teleport {who} displaces heads; a head may only be reparametrised (give head_maps).")
    if strategy.exact and set(proposal.parameters) - set(proposal.maps):
        raise PluginError(
            f"teleport {who} calls itself exact but gives no map for {set(proposal.parameters) - set(proposal.maps)}."
        )
    return proposal


def _fits(shape: torch.Size, parameter: torch.Size) -> bool:
    """Whether a diagonal of that shape broadcasts to the parameter."""
    return len(shape) <= len(parameter) and all(a in (1, b) for a, b in zip(shape[::-1], parameter[::-1]))
