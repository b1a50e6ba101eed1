"""Teleporting as a transaction: snapshot, propose, check, accept or roll back bit for bit.

A strategy (a plugin) only proposes a :class:`~mtlcore.contracts.Displacement`. Everything that makes it safe is here,
once, for every strategy: the search runs on a network whose dropout and batch statistics are frozen; whatever it did to
the network is undone; the proposal is tried on a probe batch and kept only if every task's loss stayed within
tolerance and the conflict became less. Otherwise, and on any exception or Ctrl-C, nothing has happened.

A task that the probe lacks is judged on the batch of the step. Nobody would see what becomes of one that is in neither:
then there is no teleport.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mtlcore import linalg, trajectory
from mtlcore.contracts import (
    ConflictDetector,
    Displacement,
    Needs,
    StepView,
    TeleportProblem,
    TeleportStrategy,
    task_rows,
)
from mtlcore.errors import ConfigurationError, PluginError
from mtlcore.hyperparameters import Validated, integer
from mtlcore.module_state import ModuleState, copied_buffers, put_back
from mtlcore.noise import Noise
from mtlcore.registry import registry
from mtlcore.report import TeleportResult

Evaluation = tuple[dict[str, Tensor], tuple[Tensor, ...]]
Closure = Callable[[], Evaluation]
History = Literal["carry", "reset", "keep"]

_EXACT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest relative loss change of a teleport that calls itself exact: rounding of its dtype through a deep network
(float32: with the reduced precision that accelerators use for products), far below what a broken symmetry would do."""


@dataclasses.dataclass(frozen=True)
class Brakes(Validated):
    """When a step may look for conflict and teleport. Without brakes: always.

    Args:
        start_step: no teleport before this step. [paper A.6; code: 50 of 200 epochs]
        cap: at most so many attempts per window, None for no cap. A window is an epoch if ``steps_per_epoch`` is given,
            else the whole run. [paper A.6; code: 1 per epoch]
        steps_per_epoch: length of a window.
        cooldown: at least so many steps between two attempts. [choice]
        detect_every: look for conflict only in every n-th step; for methods that need losses only, detection costs
            task gradients that the step would not compute otherwise. [choice]
    """

    start_step: int = integer(0, low=0)
    cap: int | None = integer(None, low=0)
    steps_per_epoch: int | None = integer(None, low=1)
    cooldown: int = integer(0, low=0)
    detect_every: int = integer(1, low=1)

    def allows(self, step: int, history: Sequence[int]) -> bool:
        """Whether a teleport may be tried in ``step``, given the steps in which one was tried before."""
        if step < self.start_step or (history and step - history[-1] < self.cooldown):
            return False
        if self.cap is None:
            return True
        window = self.steps_per_epoch
        tried = len(history) if window is None else sum(s // window == step // window for s in history)
        return tried < self.cap


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
        transaction = _Transaction(trunk, heads, optimizer, frozen_statistics=self.batch_norm == "running")
        try:
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
        except BaseException:
            transaction.roll_back()
            raise

    def _try(
        self,
        transaction: _Transaction,
        closure: Closure,
        probe: Closure | None,
        view: StepView,
        generator: torch.Generator,
        direction: Sequence[Tensor] | None,
    ) -> _Verdict:
        problem = _Problem(transaction, closure, view, self.detector)
        judge = problem if probe is None else _Problem(transaction, probe, view, self.detector)
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

    def _judge(self, transaction: _Transaction, problem: _Problem, judge: _Problem, proposal: Displacement) -> _Verdict:
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

    def _further(
        self, problem: _Problem, judge: _Problem, probed: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
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

    def _slope(
        self, problem: _Problem, proposal: Displacement, direction: Sequence[Tensor] | None
    ) -> dict[str, Tensor]:
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
        self, transaction: _Transaction, proposal: Displacement, scale: float, slope: Mapping[str, Tensor]
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


def _unseen(view: StepView, judge: _Problem) -> list[str]:
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


def severity(
    losses: Mapping[str, Tensor],
    gram: Tensor,
    detector: ConflictDetector | None = None,
    view: StepView | None = None,
    rows: Tensor | None = None,
) -> float:
    """How bad the conflict is: the detector's severity, or minus the worst cosine of a task with the mean gradient."""
    if detector is None:
        norms = gram.diagonal().clamp_min(0.0).sqrt()
        size = gram.mean().clamp_min(0.0).sqrt()
        # A mean gradient below this is what rounding leaves of gradients that cancel: it points nowhere.
        alive = (norms > 0.0) & (size > norms.max() * (gram.shape[0] * torch.finfo(gram.dtype).eps) ** 0.5)
        cos = (gram.mean(dim=0) / (norms * size)).clamp(-1.0, 1.0)
        return float(-cos[alive].min()) if bool(alive.any()) else 0.0
    names = tuple(losses)
    positions = [view.task_names.index(n) for n in names] if view is not None else list(range(len(names)))
    return detector.detect(
        StepView(
            losses=torch.stack([v.detach().double() for v in losses.values()]).to(gram.device),
            gramian=gram,
            jacobian=rows,
            task_names=names,
            task_index=positions,
            step=0 if view is None else view.step,
            needs=detector.needs,
        )
    ).severity


def _worst(changes: Mapping[str, float]) -> tuple[str, float]:
    """The largest change in size; NaN counts as the largest."""
    return max(changes.items(), key=lambda item: abs(item[1]) if item[1] == item[1] else float("inf"))


def _next_seed(generator: torch.Generator) -> int:
    """What the generator would draw next, without advancing it."""
    copy = torch.Generator(device=generator.device)
    copy.set_state(generator.get_state())
    return int(torch.randint(2**62, (), generator=copy, device=generator.device))


def _checked(proposal: Any, transaction: _Transaction, strategy: TeleportStrategy) -> Displacement:
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


# --- the network during a transaction -----------------------------------------------------------------------------


class _Problem(TeleportProblem):
    """One batch, evaluated deterministically at the network's current parameters."""

    def __init__(
        self, transaction: _Transaction, closure: Closure, view: StepView, detector: ConflictDetector | None
    ) -> None:
        self._transaction = transaction
        self._closure = closure
        self.trunk = transaction.trunk
        self.heads = transaction.heads
        self.view = view
        self.detector = detector
        self._mean: dict[str, Tensor] | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self._transaction.trunk_parameters.items() if p.requires_grad}

    def evaluate(self) -> Evaluation:
        self._transaction.same_noise()
        torch.clear_autocast_cache()  # in a caller's autocast block it holds the weights of the last place
        with warnings.catch_warnings():
            # A compiled trunk calls the hook that meets modules a second time: it has nothing left to do then.
            warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
            losses, features = self._closure()
        return losses, features

    def task_gradients(self) -> Iterator[tuple[str, list[Tensor | None]]]:
        losses, _ = self.evaluate()
        parameters = list(self.parameters().values())
        last = list(losses)[-1]
        for name, loss in losses.items():
            yield name, list(torch.autograd.grad(loss, parameters, retain_graph=name != last, allow_unused=True))

    def rows(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        losses, blocks = super().rows()
        if self._mean is None and self._transaction.at_start():
            self._mean = self._averaged(blocks)
        return losses, blocks

    def mean_gradient(self) -> dict[str, Tensor]:
        """Of the losses at the start, where the network is, by parameter. Usually the search has looked at it."""
        if self._mean is None:
            self._mean = self._averaged(super().rows()[1])
        return self._mean

    def _averaged(self, blocks: Sequence[Tensor]) -> dict[str, Tensor]:
        return {n: b.mean(dim=0).view_as(p) for (n, p), b in zip(self.parameters().items(), blocks)}

    def severity(self, losses: Mapping[str, Tensor]) -> float:
        """How bad the conflict is; ``losses`` as evaluated, with their graph, which is freed."""
        detached, blocks = task_rows(losses, list(self.parameters().values()))
        gram = torch.stack([linalg.gramian(block) for block in blocks]).sum(dim=0)
        wide = self.detector is not None and self.detector.needs >= Needs.JACOBIAN
        return severity(detached, gram, self.detector, self.view, torch.cat(blocks, dim=1) if wide else None)

    def losses(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return {n: v.detach() for n, v in self.evaluate()[0].items()}

    def losses_with_batch_statistics(self) -> dict[str, Tensor]:
        """Losses with the statistics that a training step would use, if they differ from those of the search."""
        if not self._transaction.has_batch_statistics():
            return {}
        with self._transaction.other_statistics():
            return self.losses()

    def losses_in_training(self) -> dict[str, Tensor]:
        """Losses in the modes in which the network was found, under the step's own noise; empty if all were frozen."""
        if not self._transaction.was_training():
            return {}
        with self._transaction.as_found():
            return self.losses()

    def optimizer_is_blank(self) -> bool:
        optimizer = self._transaction.optimizer
        return optimizer is None or not any(p in optimizer.state for p in self.parameters().values())


_Norm = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class _Transaction:
    """Everything that a teleport may disturb, saved; and the frozen network in which it searches."""

    def __init__(
        self,
        trunk: nn.Module,
        heads: nn.Module | None,
        optimizer: torch.optim.Optimizer | None,
        *,
        frozen_statistics: bool,
    ) -> None:
        self.trunk = trunk
        self.heads = heads
        self.optimizer = optimizer
        self._running = frozen_statistics
        self.trunk_parameters = dict(trunk.named_parameters())
        self.head_parameters = {} if heads is None else dict(heads.named_parameters())
        self._modules: dict[nn.Module, ModuleState] = {}
        self._tensors: dict[Tensor, _TensorState] = {}
        self._noise = Noise()
        self._switches = (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled())
        for module in (trunk, *(() if heads is None else (heads,))):
            for part in module.modules():
                self._remember(part)
        known = [t for t in self._tensors if isinstance(t, nn.Parameter)]
        self._optimizer_state = trajectory.Snapshot(optimizer, known)

    def _remember(self, module: nn.Module) -> None:
        if module in self._modules:
            return
        self._modules[module] = ModuleState(module)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor not in self._tensors:
                self._tensors[tensor] = _TensorState(tensor)

    def saved(self, parameter: Tensor) -> Tensor:
        """The value at the start."""
        return self._tensors[parameter].bits

    def at_start(self) -> bool:
        """Whether every trainable parameter of the trunk has the value it had."""
        return all(torch.equal(p, self.saved(p)) for p in self.trunk_parameters.values() if p.requires_grad)

    def has_batch_statistics(self) -> bool:
        """Whether some norm was training on batch statistics while it also keeps running ones."""
        return any(isinstance(m, _Norm) and m.track_running_stats and s.training for m, s in self._modules.items())

    def frozen(self) -> _Frozen:
        """While open: evaluation mode, gradients on, and modules nobody handed over are saved when first called."""
        return _Frozen(self)

    def freeze(self, module: nn.Module) -> None:
        """Take noise and learning of statistics out of one module."""
        if isinstance(module, nn.RNNBase):
            # Accelerators refuse the backward pass of a recurrent net in evaluation mode; its only noise is dropout.
            module.dropout = 0.0
        elif not (isinstance(module, _Norm) and not self._running):
            module.training = False

    def thaw(self, module: nn.Module) -> None:
        """The modes in which a module was found."""
        state = self._modules[module]
        module.training = state.training
        if isinstance(module, nn.RNNBase):
            module.dropout = state.attribute("dropout")

    def was_training(self) -> bool:
        """Whether some module behaves otherwise when it is not frozen."""
        return any(state.training for state in self._modules.values())

    @contextlib.contextmanager
    def as_found(self) -> Iterator[None]:
        """While open: a frozen network is in the modes in which it was found; buffers come back afterwards."""
        self._is_frozen = False
        for module in self._modules:
            self.thaw(module)
        try:
            with copied_buffers(list(self._modules)):
                yield
        finally:
            self._is_frozen = True
            for module in self._modules:
                self.freeze(module)
            self.restore_buffers()

    def other_statistics(self) -> _OtherStatistics:
        """While open: batch norms that were training work as they do in a training step."""
        norms = [m for m, s in self._modules.items() if isinstance(m, _Norm) and m.track_running_stats and s.training]
        return _OtherStatistics(norms, self)

    def restore_switches(self) -> None:
        """Gradient mode, and whether attention may take its inference path."""
        torch.set_grad_enabled(self._switches[0])
        torch.backends.mha.set_fastpath_enabled(self._switches[1])

    def restore_buffers(self) -> None:
        """Batch norms learn their statistics from every evaluation; take that back."""
        _do_all(s.restore_value for t, s in self._tensors.items() if not isinstance(t, nn.Parameter))

    def same_noise(self) -> None:
        """Every evaluation starts here: same random state, same buffers."""
        self._noise.restore()
        if not self._running:
            self.restore_buffers()

    def undo_search(self) -> None:
        """Structure and values of the network as at the start; modes too, unless they are frozen right now."""
        _do_all([*(m.restore for m in self._modules.values()), *(t.restore for t in self._tensors.values())])
        if self._is_frozen:
            for module in self._modules:
                self.freeze(module)

    _is_frozen = False
    meeting: RemovableHandle | None = None
    """The hook by which a frozen network meets modules that nobody handed over."""

    @torch.no_grad()
    def move(self, proposal: Displacement, scale: float) -> None:
        """Go to start + scale * (proposal - start). ``.data``: a step's own graph must survive a later rollback."""
        for known, values in (
            (self.trunk_parameters, proposal.parameters),
            (self.head_parameters, proposal.head_parameters),
        ):
            for name, value in values.items():
                parameter = known[name]
                start = self.saved(parameter)
                target = value.to(start) if scale == 1.0 else start + scale * (value.to(start) - start)
                parameter.data.copy_(target)

    def commit(self, proposal: Displacement) -> None:
        """Tell autograd what moved, so that a graph from before cannot be used by mistake."""
        moved = [self.trunk_parameters[n] for n in proposal.parameters]
        torch.autograd.graph.increment_version([*moved, *(self.head_parameters[n] for n in proposal.head_parameters)])

    def roll_back(self) -> None:
        """As if nothing had happened."""
        self._is_frozen = False
        if self.meeting is not None:
            self.meeting.remove()
        self.restore_switches()
        _do_all((self.undo_search, self._optimizer_state.restore, self._noise.restore))


def _do_all(actions: Iterable[Callable[[], None]]) -> None:
    """Do every one, whatever one of them raises; then raise the first error."""
    errors = []
    for action in actions:
        try:
            action()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


class _Frozen:
    def __init__(self, transaction: _Transaction) -> None:
        self._transaction = transaction

    def __enter__(self) -> None:
        transaction = self._transaction
        transaction._is_frozen = True
        for module in list(transaction._modules):
            transaction.freeze(module)
        torch.set_grad_enabled(True)
        # Without gradients, torch's encoder layers in evaluation mode leave out padding: other losses than with them.
        torch.backends.mha.set_fastpath_enabled(False)

        # The compiler would trace the hook into a compiled network, and fails at what it does to modules.
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def meet(module: nn.Module, args: Any) -> None:
            if module not in transaction._modules:
                transaction._remember(module)
                if transaction._is_frozen:
                    transaction.freeze(module)

        # Heads that only the closure knows must not learn statistics or draw dropout masks either.
        transaction.meeting = nn.modules.module.register_module_forward_pre_hook(meet)

    def __exit__(self, *error: object) -> None:
        transaction = self._transaction
        if transaction.meeting is not None:
            transaction.meeting.remove()
        transaction._is_frozen = False
        for module in transaction._modules:
            transaction.thaw(module)
        transaction.restore_switches()
        torch.clear_autocast_cache()
        _do_all((transaction.restore_buffers, transaction._noise.restore))


class _OtherStatistics:
    def __init__(self, norms: Sequence[nn.Module], transaction: _Transaction) -> None:
        self._norms = norms
        self._transaction = transaction

    def __enter__(self) -> None:
        for module in self._norms:
            module.training = not module.training

    def __exit__(self, *error: object) -> None:
        for module in self._norms:
            module.training = not module.training
        self._transaction.restore_buffers()


class _TensorState:
    """One parameter or buffer: bits, requires_grad, .grad."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.bits = tensor.detach().clone()
        self._requires_grad = tensor.requires_grad
        self._grad = tensor.grad if tensor.is_leaf else None
        self._grad_bits = None if self._grad is None else self._grad.detach().clone()

    def restore_value(self) -> None:
        put_back(self._tensor, self.bits)

    def restore(self) -> None:
        tensor = self._tensor
        self.restore_value()
        if tensor.is_leaf:
            tensor.requires_grad_(self._requires_grad)
            tensor.grad = self._grad
            if self._grad is not None and self._grad_bits is not None:
                self._grad.data.copy_(self._grad_bits)
