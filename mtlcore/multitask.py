"""MultiTask: the one object a training loop holds."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlcore import aggregation, configuration, detection, inner_loop, inputs, trajectory
from mtlcore.contracts import (
    Aggregation,
    Aggregator,
    Conflict,
    ConflictDetector,
    Needs,
    State,
    StepView,
    TeleportStrategy,
)
from mtlcore.errors import (
    ConfigurationError,
    FeaturesError,
    LossError,
    NonFiniteError,
    PluginError,
    PluginWarning,
    StateError,
)
from mtlcore.gradients.accumulation import MicroBatches
from mtlcore.gradients.planner import Planner
from mtlcore.gradients.refresh import Keeper, Refresh
from mtlcore.gradients.source import GradientProblem, TaskGradients
from mtlcore.inputs import Closure, Features, Losses
from mtlcore.registry import registry
from mtlcore.report import StepReport, TeleportResult
from mtlcore.snapshot import Noise, Snapshot
from mtlcore.teleporting import Brakes, Follower, Teleporter

_STATE_VERSION = 1


class MultiTask:
    """Replaces ``sum(losses).backward()`` by the step of a multi-task method.

    Args:
        trunk: the shared network, or its parameters. Whatever else the losses depend on is task-specific.
        aggregator: a registered name, or an instance (for hyper-parameters: ``create("aggregator", name, ...)``).
        optimizer: the user's own; needed by :meth:`step` only.
        detector: a conflict detector (name or instance), or None.
        teleport: a teleport strategy (name or instance), tried in :meth:`step` when the detector fires (without a
            detector: whenever the brakes allow), or None. For other options than ``tolerance``, a
            :class:`mtlcore.teleporting.Teleporter`, of which the tolerance is then taken.
        gradients: "auto", or the gradient source to force ("sequential", "threaded", "batched", "streaming",
            "features", "losses").
        seed: of every random choice of the method; the global random state is never touched.
        tasks: the task names, if the first batch may lack some of them. Default: those of the first batch.
        heads: the task-specific modules. Boundary teleports need them; and in a step that teleports or looks twice,
            batch norms in heads that nobody handed over count the batch twice.
        brakes: when detection and teleports are allowed.
        probe: closure on a held-out batch, on which a teleport must keep its promise; best with every task, for no
            teleport is made while a task is neither in it nor in the step's batch. Default: the step's own.
        tolerance: largest relative change of any task's loss that an accepted teleport may cause.
        gradient_memory: bytes that task gradients may take; "auto" then picks among the sources that keep to it.
        refresh: ask the method for new weights only every so many steps, or as a :class:`Refresh` policy says; in
            between the last weights are used again. Default: at every step.

    Raises:
        UnknownPluginError, PluginError: from looking up the plugins.
        ConfigurationError: the same, or an argument that is not what it should be.
        TeleportError: the history of this optimizer cannot be carried across a teleport.
    """

    def __init__(
        self,
        trunk: nn.Module | Iterable[nn.Parameter],
        aggregator: str | Aggregator = "gradops",
        optimizer: torch.optim.Optimizer | None = None,
        detector: str | ConflictDetector | None = None,
        teleport: str | TeleportStrategy | Teleporter | None = None,
        gradients: str = "auto",
        seed: int = 0,
        *,
        tasks: Sequence[str] | None = None,
        heads: nn.Module | None = None,
        brakes: Brakes | None = None,
        probe: Closure | None = None,
        tolerance: float = 0.02,
        gradient_memory: int | None = None,
        refresh: int | Refresh = 1,
    ) -> None:
        self._trunk = trunk if isinstance(trunk, nn.Module) else None
        self._parameters = inputs.trunk_parameters(trunk)
        inputs.check_helpers(optimizer, heads, probe)
        self.aggregator: Aggregator = inputs.plugin("aggregator", aggregator, Aggregator)
        self.detector: ConflictDetector | None = None
        if detector is not None:
            self.detector = inputs.plugin("detector", detector, ConflictDetector)
        inputs.check_not_replicated(self._trunk, self.aggregator, self.detector)
        self.brakes = Brakes() if brakes is None else brakes
        if not isinstance(self.brakes, Brakes):
            raise ConfigurationError(f"brakes must be mtlcore.Brakes(...), found {brakes!r}.")
        self._teleporter: Teleporter | None = None
        if teleport is not None:
            own = teleport if isinstance(teleport, Teleporter) else None
            strategy = inputs.plugin("teleport", teleport if own is None else own.strategy, TeleportStrategy)
            if self._trunk is None:
                raise ConfigurationError(
                    "a teleport moves a network: pass the trunk as an nn.Module, not its parameters."
                )
            self._teleporter = own or Teleporter(strategy, tolerance=tolerance)
            if self._teleporter.detector is None:
                self._teleporter.detector = self.detector
            if self._teleporter.history == "carry":
                trajectory.check_supported(optimizer)
        self._needs_step: str | None = None
        if self.aggregator.looks_twice() or self.aggregator.batches > 1:
            twice = self.aggregator.looks_twice()
            self._needs_step = "looks at the losses twice" if twice else "needs several batches"
        self.optimizer = optimizer
        self._heads = heads
        self._probe = probe
        self._planner = Planner(gradients, gradient_memory)
        policy = refresh if isinstance(refresh, Refresh) else Refresh(refresh)
        self._keeper = Keeper(policy) if policy.every > 1 else None
        if self._keeper is not None and (self.detector is not None or self._teleporter is not None):
            raise ConfigurationError(
                "refresh skips the task gradients that a detector or a teleport looks at: leave one of them out."
            )
        self._micro: MicroBatches | None = None
        self._seed = inputs.whole_number("seed", seed)
        self._tasks: tuple[str, ...] | None = None if tasks is None else inputs.task_names(tasks)
        self._step = 0
        self._state: State | None = None
        self._teleport_steps: list[int] = []
        self._looks = self._fired = 0

    # --- one step -----------------------------------------------------------------------------------------

    def backward(self, losses: Losses, features: Features = None) -> StepReport:
        """Fill ``.grad`` of trunk and heads; replaces ``sum(losses).backward()`` and accumulates like it.

        Args:
            losses: {task: scalar} or a list of scalars, with graphs. A task missing from this batch is left out of
                the dict, or None: it gets no weight, which is not the same as a zero gradient.
            features: the trunk's output(s) that the heads received; makes the search for head parameters cheap.

        Raises:
            LossError: no loss, not a scalar, no graph, unknown task.
            FeaturesError: features that are not in the graph of the losses.
            NonFiniteError: NaN or infinity in a loss or a task's gradient; parameters and state are untouched.
            PluginError: the method broke its contract; names plugin and distribution.
            ConfigurationError: the method needs :meth:`step`, or the forced gradient source cannot serve it.
        """
        if self._needs_step is not None:
            raise ConfigurationError(
                f"aggregator {registry().identify(self.aggregator)} {self._needs_step} in a step: call step(closure) "
                f"instead of backward(losses)."
            )
        prepared = self._prepare(losses, features)
        report = self._finish(prepared, self._detect(prepared), None)
        self._announce(report)
        return report

    def accumulate(self, losses: Losses, features: Features = None) -> None:
        """One micro-batch of a larger batch: adds its task gradients to those that the next :meth:`backward`, on the
        last micro-batch, aggregates once. Nothing reaches ``.grad`` before that. Scale the losses as for any gradient
        accumulation (for a mean over n equal micro-batches: divide by n). Keeps K x P numbers.

        Raises:
            As :meth:`backward`; after an error the micro-batches so far are forgotten.
        """
        micro, self._micro = self._micro or MicroBatches(), None
        problem, names = self._problem(losses, features)
        problem = _of_present(problem, names)
        micro.add(problem, inputs.values_of(problem.losses, problem.stacked, problem.names))
        self._micro = micro

    def step(self, closure: Closure | Sequence[Closure]) -> StepReport:
        """One whole training step: zero the gradients, forward, (teleport,) backward, optimizer, (second look).

        Args:
            closure: a function of no arguments that evaluates one batch and returns ``(losses, features)`` or
                ``losses``. It must give the same batch each time it is called within a step. A method that needs
                several independent batches gets a list of closures.

        Raises:
            As :meth:`backward`; ConfigurationError without an optimizer.
        """
        optimizer = self.optimizer
        if optimizer is None:
            raise ConfigurationError("step(closure) moves the parameters: pass optimizer=... to MultiTask.")
        if self._micro is not None:
            raise ConfigurationError(
                "micro-batches are waiting: finish them with backward(losses), not with step(closure)."
            )
        closures = [closure] if callable(closure) else list(closure)
        if len(closures) != self.aggregator.batches:
            raise ConfigurationError(
                f"aggregator {registry().identify(self.aggregator)} needs {self.aggregator.batches} closures, one per "
                f"independent batch; got {len(closures)}."
            )
        optimizer.zero_grad()
        before = self._now() if self._may_teleport() else None
        prepared, noise = self._look(closures)
        conflict = self._detect(prepared)
        teleport = self._teleport(closures[0], prepared, conflict)
        if before is not None and teleport is not None and teleport.accepted:
            # The step begins anew at the new point. After a refusal the old graph is still good.
            before.restore()
            prepared, noise = self._look(closures)
        report = self._finish(prepared, conflict, teleport)
        if self._teleporter is not None:
            self._teleporter.memory.remember([p for p in self._parameters if p.requires_grad])
        optimizer.step()
        if noise is not None:
            here = self._now()
            noise.restore()
            try:
                with torch.no_grad():
                    self._look_again(closures[0])
            finally:
                here.restore()
        self._announce(report)
        return report

    def follow(self, averaged_model: nn.Module, of: nn.Module | None = None) -> None:
        """Take an averaged copy of the network (``torch.optim.swa_utils.AveragedModel``) along in every exact teleport;
        what cannot be carried is said in a warning and in ``report.teleport.diagnostics["averaged_copy"]``. Not in a
        checkpoint: call it again after loading one.

        Args:
            averaged_model: the copy, of the trunk or of a network that contains it.
            of: the module that it is a copy of, if names and shapes of parameters do not tell.

        Raises:
            ConfigurationError: it cannot be told which of its parameters stand for the trunk's.
        """
        if self._teleporter is not None:
            assert self._trunk is not None
            self._teleporter.followers.append(Follower(averaged_model, self._trunk, self._heads, of))

    # --- parts of a step ------------------------------------------------------------------------------------

    def _look(self, closures: Sequence[Closure]) -> tuple[_Prepared, Noise | None]:
        """Evaluate every batch of the step; and for a second look the noise under which the first batch was."""
        others = [self._other_view(c) for c in closures[1:]]
        noise = Noise() if self.aggregator.looks_twice() else None
        return self._prepare(*inputs.evaluated(closures[0]), others=others, inner=self._inner(closures[0])), noise

    def _may_teleport(self) -> bool:
        return self._teleporter is not None and self.brakes.allows(self._step, self._teleport_steps)

    def _now(self) -> Snapshot:
        return Snapshot(modules=[m for m in (self._trunk, self._heads) if m is not None])

    def _inner(self, closure: Closure) -> Callable[..., StepView]:
        """The service behind ``view.inner``: inner gradient steps on this step's batch, undone afterwards."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return functools.partial(
            inner_loop.descend,
            evaluate=lambda: self._named(*inputs.evaluated(closure)),
            parameters=[*self._parameters, *(p for group in groups for p in group["params"])],
            modules=[m for m in (self._trunk, self._heads) if m is not None],
        )

    def _prepare(
        self,
        losses: Losses,
        features: Features,
        others: Sequence[StepView] = (),
        inner: Callable[..., StepView] | None = None,
    ) -> _Prepared:
        """Check what the user handed over, pick a gradient source, make the view. Changes nothing."""
        micro, self._micro = self._micro, None
        problem, names = self._problem(losses, features)
        seen = problem.features
        needs = self.aggregator.needs
        detecting = self._looks_for_conflict()
        if detecting and self.detector is not None:
            needs = max(needs, self.detector.needs)
        kept = False
        if needs > Needs.LOSSES or micro is not None:
            problem = _of_present(problem, names)
        if micro is not None:
            micro.add(problem, inputs.values_of(problem.losses, problem.stacked, problem.names))
            names = self._tasks or tuple(dict.fromkeys([*micro.losses, *names]))
            present = tuple(n for n in names if n in micro.losses)
            values = [micro.losses[n] for n in present]
            found = micro.result(present, problem.shared)
            gram: Tensor | None = _checked(found.gramian().cpu(), present)
            reason = f"sequential: the rows of {micro.count} micro-batches, added up"
        else:
            present = problem.names
            found, gram, reason, kept = self._collect(problem, needs, names)
            values, gram = _read(problem, gram)
        k = len(names)
        full_gram, mask, index = gram, None, None
        if len(present) != k:
            by_name = dict(zip(present, values))
            values = [by_name.get(n, math.nan) for n in names]
            mask = torch.tensor([n in by_name for n in names], device="cpu")
            index = mask.nonzero().flatten()
            if gram is not None:
                full_gram = gram.new_full((k, k), float("nan"))
                full_gram[index[:, None], index[None, :]] = gram
        view = StepView(
            losses=values,
            gramian=full_gram,
            jacobian=(lambda: _full_rows(found.rows(), index, k)) if needs >= Needs.JACOBIAN else None,
            present=mask,
            task_names=names,
            step=self._step,
            generator=functools.partial(aggregation.step_seed, self._seed, self._step),
            features=seen,
            others=others,
            inner=inner,
            needs=needs,
        )
        return _Prepared(view, problem, found, full_gram, index, reason, detecting, kept)

    def _collect(
        self, problem: GradientProblem, needs: Needs, names: Sequence[str]
    ) -> tuple[TaskGradients, Tensor | None, str, bool]:
        """Task gradients, Gramian, the reason, and whether the last weights are to be used again."""
        if self._keeper is not None and needs > Needs.LOSSES:
            again = self._keeper.reuse(problem, torch.tensor([n in problem.names for n in names], device="cpu"))
            if again is not None:
                return again, None, "features: the weights of an earlier step, one pass through the trunk", True
        training = self._trunk is None or self._trunk.training
        source, reason = self._planner.pick(needs, problem, training)
        found = source.collect(problem)
        gram = found.gramian() if source.provides >= Needs.GRAMIAN else None
        return found, gram, reason, False

    def _problem(self, losses: Losses, features: Features) -> tuple[GradientProblem, tuple[str, ...]]:
        """What is to be differentiated, and the names of all tasks."""
        by_name = inputs.by_name(losses, self._tasks)
        names = self._tasks or tuple(by_name)
        present = tuple([n for n in names if by_name.get(n) is not None])
        if not present:
            raise LossError("no losses: every task is missing from this batch; skip the step instead.")
        scalars: tuple[Any, ...] = tuple([by_name[n] for n in present])
        inputs.check_losses(present, scalars)
        if self._step == 0 and self._trunk is not None:
            inputs.check_unchanged(self._trunk, self._parameters)
        shared = tuple([p for p in self._parameters if p.requires_grad])
        if not shared:
            raise ConfigurationError("no parameter of the trunk requires gradients: everything is frozen.")
        return GradientProblem(present, scalars, inputs.flat(features), shared, inputs.stack(scalars)), names

    def _looks_for_conflict(self) -> bool:
        """Whether the detector is asked in this step. Where that costs task gradients which the method does not need,
        and a verdict could not lead to a teleport, it is not."""
        if self.detector is None or self._step % self.brakes.detect_every:
            return False
        free = self.aggregator.needs >= self.detector.needs
        return free or self._teleporter is None or self._may_teleport()

    def _detect(self, prepared: _Prepared) -> Conflict | None:
        if self.detector is None or not prepared.detecting:
            return None
        view, k = prepared.view, prepared.view.n_tasks
        index = prepared.where
        part = view.limited_to(self.detector.needs)
        if index is not None:
            part = part.restricted(view.present)
        rows = part.jacobian if self.detector.needs == Needs.JACOBIAN else None
        version = None if rows is None else rows._version
        try:
            with torch.no_grad():
                conflict = self.detector.detect(part)
        except Exception as error:
            who = registry().identify(self.detector)
            raise PluginError(f"detector {who} raised {type(error).__name__}: {error}") from error
        if rows is not None and rows._version != version:
            who = registry().identify(self.detector)
            raise PluginError(f"detector {who} wrote into view.jacobian, which is read-only: clone it first.")
        conflict = detection.checked(self.detector, conflict, part.n_tasks)
        if index is not None:
            pairs = conflict.pairs.new_zeros(k, k)
            pairs[index[:, None], index[None, :]] = conflict.pairs
            dominated = conflict.dominated.new_zeros(k)
            dominated[index] = conflict.dominated
            conflict = dataclasses.replace(conflict, pairs=pairs, dominated=dominated)
        if conflict.conflicting and registry().listens("mtlcore_conflict_detected"):
            registry().announce(
                "mtlcore_conflict_detected", conflict=conflict, report=self._report(prepared, None, conflict, None)
            )
        return conflict

    def _teleport(self, closure: Closure, prepared: _Prepared, conflict: Conflict | None) -> TeleportResult | None:
        teleporter = self._teleporter
        if teleporter is None or not self._may_teleport():
            return None
        if self.detector is not None and (conflict is None or not conflict.conflicting):
            return None
        assert self._trunk is not None
        probe = self._probe
        result = teleporter.attempt(
            trunk=self._trunk,
            heads=self._heads,
            closure=lambda: self._named(*inputs.evaluated(closure)),
            probe=None if probe is None else lambda: self._probed(probe),
            view=prepared.view,
            optimizer=self.optimizer,
            generator=torch.Generator().manual_seed(aggregation.step_seed(self._seed + 1, self._step)),
        )
        # An attempt that an error or Ctrl-C ends has not been: the brakes let the same step try again.
        self._teleport_steps.append(self._step)
        registry().announce("mtlcore_teleported", result=result)
        return result

    def _probed(self, probe: Closure) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """The probe's losses, held to what is asked of a step's."""
        try:
            losses, features = self._named(*inputs.evaluated(probe))
            if not losses:
                raise LossError("no losses: every task is missing.")
            inputs.check_losses(tuple(losses), tuple(losses.values()), graph=torch.is_grad_enabled())
        except LossError as error:
            raise LossError(f"probe: {error}") from error
        return losses, features

    def _named(self, losses: Losses, features: Features) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        return {n: v for n, v in inputs.by_name(losses, self._tasks).items() if v is not None}, inputs.flat(features)

    def _finish(self, prepared: _Prepared, conflict: Conflict | None, teleport: TeleportResult | None) -> StepReport:
        """Ask the method, write the gradients, and only then commit the new state."""
        view = prepared.view
        k = view.n_tasks
        state = self._state if self._state is not None else aggregation.start(self.aggregator, k)
        answer = self._ask(prepared, state)
        weights, heads = answer.weights, answer.head_weights
        if heads is None and self.aggregator.needs == Needs.LOSSES and not prepared.found.weights_whole_losses:
            heads = weights
        if prepared.where is not None:
            weights, heads = _pick(weights, prepared.where), _pick(heads, prepared.where)
        # Before the backward pass, which turns all caches over: written then, a report costs half.
        report = self._report(prepared, answer, conflict, teleport)
        prepared.found.write(
            weights=weights,
            direction=answer.direction,
            head_weights=heads,
            feature_gradient=answer.feature_gradient,
        )
        if self._tasks is None:
            self._tasks = view.task_names
        self._state = answer.state
        self._looks, self._fired = self._counts(conflict)
        if self._keeper is not None:
            self._keeper.commit()
        self._step += 1
        return report

    def _counts(self, conflict: Conflict | None) -> tuple[int, int]:
        """How often the detector has looked and fired, this step included; kept once the step has succeeded."""
        if conflict is None:
            return self._looks, self._fired
        return self._looks + 1, self._fired + bool(conflict.conflicting)

    def _ask(self, prepared: _Prepared, state: State) -> Aggregation:
        """The method's answer, or its last one again."""
        keeper, view = self._keeper, prepared.view
        if prepared.kept and keeper is not None:
            weights, heads, notes = keeper.kept()
            return Aggregation(weights=weights, head_weights=heads, state=state, diagnostics=notes)
        size = None
        if self.aggregator.needs > Needs.LOSSES:  # else a direction is refused whatever its shape
            size = sum([p.numel() for p in prepared.problem.shared])
        answer = aggregation.call(self.aggregator, view, state, size)
        if keeper is not None and prepared.gramian is not None:
            notes = keeper.renew(answer.weights, answer.head_weights, view.present, prepared.gramian)
            answer = dataclasses.replace(answer, diagnostics={**answer.diagnostics, **notes})
        return answer

    def _report(
        self,
        prepared: _Prepared,
        answer: Aggregation | None,
        conflict: Conflict | None,
        teleport: TeleportResult | None,
    ) -> StepReport:
        # Copies: a method may keep what it answered.
        weights = None if answer is None or answer.weights is None else answer.weights.to(torch.float64, copy=True)
        notes = {} if answer is None else answer.diagnostics
        diagnostics = {k: v.clone() if isinstance(v, Tensor) else v for k, v in notes.items()}
        looks, fired = self._counts(conflict)
        if looks:
            diagnostics |= {"detector_looks": looks, "detector_fired": fired}
        return StepReport(
            step=self._step,
            task_names=prepared.view.task_names,
            losses=prepared.view.losses,
            weights=weights,
            gramian=None if prepared.gramian is None else prepared.gramian.clone(),
            conflict=conflict,
            teleport=teleport,
            diagnostics=diagnostics,
            gradient_source=prepared.reason,
        )

    def _other_view(self, closure: Closure) -> StepView:
        """The view of a further independent batch; its rows are copied, for the buffer serves the next batch."""
        prepared = self._prepare(*inputs.evaluated(closure))
        rows = prepared.view.jacobian.clone() if self.aggregator.needs == Needs.JACOBIAN else None
        gram = prepared.gramian
        return StepView(
            losses=prepared.view.losses,
            gramian=gram,
            jacobian=rows,
            present=prepared.view.present,
            task_names=prepared.view.task_names,
            step=self._step,
            needs=self.aggregator.needs,
        )

    def _look_again(self, closure: Closure) -> None:
        """Losses of the same batch where the optimizer arrived."""
        losses = inputs.by_name(inputs.evaluated(closure)[0], self._tasks)
        assert self._tasks is not None
        assert self._state is not None
        present = {n: loss for n in self._tasks if (loss := losses.get(n)) is not None}
        found = dict(zip(present, inputs.numbers(list(present.values()))))
        for name, value in found.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"after the step the loss of task {name!r} is {value}: lower the step size.")
        values = [found.get(n, math.nan) for n in self._tasks]
        view = StepView(
            losses=values,
            present=torch.tensor([n in present for n in self._tasks], device="cpu"),
            task_names=self._tasks,
            step=self._step - 1,
            generator=aggregation.step_seed(self._seed, self._step - 1),
            needs=Needs.LOSSES,
        )
        if len(present) != len(self._tasks) and not self.aggregator.handles_absent:
            view = view.restricted(view.present)
        try:
            state = self.aggregator.observe(view, dict(self._state))
        except (LossError, FeaturesError, NonFiniteError, ConfigurationError):
            raise  # the user's input or options are at fault, not the plugin
        except Exception as error:
            who = registry().identify(self.aggregator)
            raise PluginError(f"aggregator {who} raised {type(error).__name__} in observe: {error}") from error
        self._state = aggregation.checked_state(self.aggregator, state, "observe")

    def _announce(self, report: StepReport) -> None:
        registry().announce("mtlcore_step_finished", report=report)

    # --- checkpoints ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if never interrupted (beside trunk, heads and optimizer): numbers, strings
        and tensors only, so that ``torch.load(..., weights_only=True)`` reads it. Between two steps: micro-batches that
        wait for their :meth:`backward` are not in it, as ``.grad`` is not in an optimizer's."""
        return {
            "version": _STATE_VERSION,
            "aggregator": registry().name_of(self.aggregator),
            "methods": self._methods(),
            "tasks": None if self._tasks is None else list(self._tasks),
            "step": self._step,
            "seed": self._seed,
            "teleport_steps": list(self._teleport_steps),
            "detections": [self._looks, self._fired],
            "gradient_sources": self._planner.choices(),
            "refresh": {} if self._keeper is None else self._keeper.state(),
            "state": None if self._state is None else {k: v.clone() for k, v in self._state.items()},
            "teleporter": {} if self._teleporter is None else self._teleporter.state(),
        }

    def _methods(self) -> dict[str, dict[str, Any] | None]:
        """The plugins of this run, as a checkpoint names them."""
        strategy = None if self._teleporter is None else self._teleporter.strategy
        plugins = {"aggregator": self.aggregator, "detector": self.detector, "teleport": strategy}
        return {role: configuration.describe(plugin) for role, plugin in plugins.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`. Nothing is changed if the state does not fit. Where it was saved with another
        detector or teleport, another version of a plugin, or other hyper-parameters, a ``PluginWarning`` gives both
        values, and the run goes on with its own.

        Raises:
            StateError: the state of another method, of other tasks, or not such a state at all.
        """
        expected = {
            "version",
            "aggregator",
            "methods",
            "tasks",
            "step",
            "seed",
            "teleport_steps",
            "detections",
            "gradient_sources",
            "refresh",
            "state",
        }
        # Checkpoints made before methods were named have no such entry.
        if not isinstance(state, Mapping) or set(state) | {"methods", "teleporter"} != expected | {"teleporter"}:
            found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise StateError(f"not the state of a MultiTask: expected the keys {sorted(expected)}, found {found}.")
        if state["version"] != _STATE_VERSION:
            raise StateError(f"state version {state['version']!r}; this mtlcore reads version {_STATE_VERSION}.")
        mine = registry().name_of(self.aggregator)
        if state["aggregator"] != mine:
            raise StateError(f"this is the state of aggregator {state['aggregator']!r}; this run uses {mine!r}.")
        try:
            changed = configuration.differences(state["methods"], self._methods()) if "methods" in state else []
            tasks = None if state["tasks"] is None else tuple(state["tasks"])
            step, seed = int(state["step"]), int(state["seed"])
            teleport_steps = [int(s) for s in state["teleport_steps"]]
            looks, fired = map(int, state["detections"])
            choices, kept = dict(state["gradient_sources"]), dict(state["refresh"])
            inner = None if state["state"] is None else {k: v.clone() for k, v in state["state"].items()}
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise StateError(f"not the state of a MultiTask, or a damaged one: {error}.") from error
        if self._tasks is not None and tasks is not None and tasks != self._tasks:
            raise StateError(
                f"this is the state of {len(tasks)} tasks ({', '.join(map(str, tasks))}); this run has "
                f"{len(self._tasks)} ({', '.join(map(str, self._tasks))})."
            )
        if inner is not None and tasks is not None:
            fresh = aggregation.start(self.aggregator, len(tasks))
            cause = f"{'; '.join(changed)}." if changed else "were its hyper-parameters the same?"
            for key, value in fresh.items():
                if key not in inner:
                    raise StateError(f"the state of aggregator {mine!r} lacks {key!r}: {cause}")
                if value.shape != inner[key].shape and value.numel():
                    raise StateError(
                        f"state {key!r} of aggregator {mine!r} has shape {tuple(inner[key].shape)}, expected "
                        f"{tuple(value.shape)}: {cause}"
                    )
        if changed:
            warnings.warn(
                f"this state was saved with other methods, versions or hyper-parameters: {'; '.join(changed)}. The run "
                f"goes on with those that it has now, which is not the run that was saved; if that is not meant, make "
                f"the MultiTask with the former ones.",
                PluginWarning,
                stacklevel=2,
            )
        self._tasks = tasks if tasks is not None else self._tasks
        self._step, self._seed = step, seed
        self._teleport_steps = teleport_steps
        self._looks, self._fired = looks, fired
        self._micro = None
        if self._teleporter is not None:
            self._teleporter.restore(state.get("teleporter", {}))
        self._planner.restore(choices)
        if self._keeper is not None:
            self._keeper.restore(kept)
        self._state = inner


class _Prepared(NamedTuple):
    """One evaluated batch, differentiated but not yet written anywhere."""

    view: StepView
    problem: GradientProblem
    found: TaskGradients
    gramian: Tensor | None
    where: Tensor | None
    """Positions of the tasks present; None if all are."""
    reason: str
    detecting: bool
    kept: bool


def _of_present(problem: GradientProblem, names: Sequence[str]) -> GradientProblem:
    """Without the features of tasks that are absent."""
    complete = len(problem.names) == len(names) or len(problem.features) < 2
    return problem if complete else problem.without_unread()


def _read(problem: GradientProblem, gram: Tensor | None) -> tuple[list[float], Tensor | None]:
    """Losses and Gramian on the processor, and finite: the one wait for an accelerator before the weights."""
    names, stacked = problem.names, problem.stacked
    if gram is None or stacked is None or gram.device != stacked.device or gram.device.type == "cpu":
        values = inputs.values_of(problem.losses, stacked, names)
        return values, None if gram is None else _checked(gram.cpu(), names)
    both = torch.cat([stacked.detach().to(gram.dtype), gram.flatten()]).cpu()
    values = inputs.finite(both[: len(names)].tolist(), names)
    return values, _checked(both[len(names) :].view(gram.shape), names)


def _checked(gram: Tensor, names: Sequence[str]) -> Tensor:
    # A NaN or an infinity survives the sum; a finite Gramian whose sum overflows is looked at entry by entry.
    if not math.isfinite(gram.sum().item()) and not bool(torch.isfinite(gram).all()):
        squares = gram.diagonal()
        bad = [repr(n) for n, s in zip(names, squares) if not torch.isfinite(s)]
        who = " and ".join(bad) or ", ".join(map(str, names))
        raise NonFiniteError(
            f"the gradient of task {who} is NaN or infinite (or its squared norm overflows float64). Parameters, "
            f"method state and .grad are untouched."
        )
    return gram


def _full_rows(rows: Tensor, index: Tensor | None, k: int) -> Tensor:
    if index is None:
        return rows
    return rows.new_zeros(k, rows.shape[1]).index_copy(0, index.to(rows.device), rows)


def _pick(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index]
