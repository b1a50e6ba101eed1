"""MultiTask: the one object a training loop holds.

One step, read from top to bottom: :meth:`MultiTask.backward` makes a *batch* of what the user handed over, obtains as
much of its *task gradients* as the method reads, makes the *view*, asks the detector and the method, and *writes* the
answer. :meth:`MultiTask.step` puts the user's closure, teleports, the optimizer and a second look around it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlcore import audit, checkpoint, configuration, inner_loop, inputs, reading, roster, scaling, trajectory, tuning
from mtlcore.asking import aggregator as asking
from mtlcore.asking.detector import detect
from mtlcore.asking.seeds import step_seed
from mtlcore.contracts import (
    Aggregation,
    Aggregator,
    Conflict,
    ConflictDetector,
    Needs,
    StepView,
    TeleportStrategy,
)
from mtlcore.distributed.local import Local
from mtlcore.distributed.processes import Members, Processes, told
from mtlcore.distributed.sharded import Sharded, is_sharded
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.geometry.metric import METRICS, in_metric
from mtlcore.geometry.taken import Watch
from mtlcore.gradients import received, waiting
from mtlcore.gradients.accumulation import MicroBatches
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.losses_only import Weighted
from mtlcore.gradients.planner import Planner
from mtlcore.gradients.refresh import Keeper, Refresh
from mtlcore.gradients.task_gradients import Answer, TaskGradients
from mtlcore.inputs import Closure, Features, Losses
from mtlcore.presence import Presence
from mtlcore.progress import Progress
from mtlcore.registry import registry
from mtlcore.report import StepReport, TeleportResult
from mtlcore.snapshot import Gradients, Noise, Snapshot, interrupts_held
from mtlcore.teleporting import Brakes, Follower, Teleporter


class MultiTask:
    """Replaces ``sum(losses).backward()`` by the step of a multi-task method.

    Args:
        trunk: the shared network, or its parameters. Whatever else the losses depend on is task-specific.
        aggregator: a registered name, or an instance (for hyper-parameters: ``create("aggregator", name, ...)``). The
            default follows the evidence: of the methods that keep non-conflict, the one with the best mean rank in the
            committed results (docs/explanation/cost.md, whole trainings).
        optimizer: the user's own, or several; needed by :meth:`step` only.
        detector: a conflict detector (name or instance), or None.
        teleport: a teleport strategy (name or instance), tried in :meth:`step` when the detector fires (without a
            detector: whenever the brakes allow), or None. For other options than ``tolerance``, a
            :class:`mtlcore.teleporting.Teleporter`, of which the tolerance is then taken.
        gradients: "auto", or the gradient source to force: "sequential", "batched", "streaming", "streaming-together",
            "features" or "losses" (see :mod:`mtlcore.gradients.plan`).
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
        name: of this run, for reports and loggers.
        process_group: with whom the method of the global batch is taken: "auto" is torch.distributed's default group,
            if there is one of more than one process; or a ``ProcessGroup``, or one dimension of a ``DeviceMesh``; None
            makes each process solve its own problem (see docs/explanation/distributed.md).
        check_source: whether the first step with a new graph compares the gradient source with plain autograd, which
            costs one or two passes more.
        metric: "euclidean", or "optimizer": the method's laws then hold for the move that the optimizer makes of its
            direction (SGD, Adam, AdamW, RMSprop, Adagrad; see docs/explanation/step.md). Gramian and rows are those of
            that metric everywhere: for method, detector and report. It takes K x P numbers twice.
        taken: whether :meth:`step` measures what the optimizer's step did to every task (``report.taken``). Takes whole
            rows, a copy of the trunk's parameters, and one product.

    Raises:
        UnknownPluginError, PluginError: from looking up the plugins.
        ConfigurationError: the same, or an argument that is not what it should be.
        TeleportError: the history of this optimizer cannot be carried across a teleport.
    """

    def __init__(
        self,
        trunk: nn.Module | Iterable[nn.Parameter],
        aggregator: str | Aggregator = "nash-mtl",
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
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
        name: str = "",
        process_group: Any = "auto",
        check_source: bool = True,
        metric: str = "euclidean",
        taken: bool = False,
    ) -> None:
        self._trunk = trunk if isinstance(trunk, nn.Module) else None
        self._parameters = inputs.trunk_parameters(trunk)
        inputs.check_helpers(optimizer, heads, probe)
        self.aggregator: Aggregator = inputs.plugin("aggregator", aggregator, Aggregator)
        self.detector: ConflictDetector | None = None
        if detector is not None:
            self.detector = inputs.plugin("detector", detector, ConflictDetector)
        self.name = str(name)
        self.optimizer = optimizer
        self.brakes = inputs.brakes(brakes)
        self._heads = heads
        self._heads_then = [] if heads is None else list(heads.parameters())
        self._probe = probe
        self._teleporter = self._make_teleporter(teleport, tolerance)
        self._planner = Planner(gradients, gradient_memory, check_source)
        self._keeper = self._make_keeper(refresh)
        self._metric, self._taken = metric, bool(taken)
        self._check_geometry(gradients)
        self._micro: MicroBatches | None = None
        self._processes = Processes(process_group)
        self._waiting: list[tuple[Losses, Features]] = []
        names = None if tasks is None else inputs.task_names(tasks)
        self._progress = Progress(tasks=names, seed=inputs.whole_number("seed", seed))
        self._reach = audit.Reach(inputs.parameter_names(self._trunk, self._parameters))

    def _make_teleporter(
        self, teleport: str | TeleportStrategy | Teleporter | None, tolerance: float
    ) -> Teleporter | None:
        if teleport is None:
            return None
        own = teleport if isinstance(teleport, Teleporter) else None
        strategy = inputs.plugin("teleport", teleport if own is None else own.strategy, TeleportStrategy)
        if self._trunk is None:
            raise ConfigurationError("a teleport moves a network: pass the trunk as an nn.Module, not its parameters.")
        teleporter = own or Teleporter(strategy, tolerance=tolerance)
        if teleporter.detector is None:
            teleporter.detector = self.detector
        if teleporter.history == "carry":
            trajectory.check_supported(self.optimizer)
        return teleporter

    def _check_geometry(self, gradients: str) -> None:
        if self._metric not in METRICS:
            raise ConfigurationError(f"metric={self._metric!r}: choose one of {', '.join(METRICS)}.")
        if not self._whole_rows:
            return
        what = "taken=True" if self._metric == "euclidean" else f'metric="{self._metric}"'
        if self.optimizer is None:
            raise ConfigurationError(f"{what} looks at the optimizer: pass optimizer=... to MultiTask.")
        if self._keeper is not None or gradients in ("features", "losses"):
            raise ConfigurationError(
                f"{what} needs the task gradients of every step: leave refresh and gradients= out."
            )
        if self._metric != "euclidean" and self._teleporter is not None:
            raise ConfigurationError(f"{what} shows a teleport gradients that are not the network's: leave one out.")
        if self._metric != "euclidean" and self.aggregator.needs == Needs.LOSSES:
            who = registry().identify(self.aggregator)
            raise ConfigurationError(f"{what} would change nothing: aggregator {who} reads losses only.")

    @property
    def _whole_rows(self) -> bool:
        """Whether the step reads rows, whatever the method does."""
        return self._taken or self._metric != "euclidean"

    def _make_keeper(self, refresh: int | Refresh) -> Keeper | None:
        policy = refresh if isinstance(refresh, Refresh) else Refresh(refresh)
        if policy.every == 1:
            return None
        if self.detector is not None or self._teleporter is not None:
            raise ConfigurationError(
                "refresh skips the task gradients that a detector or a teleport looks at: leave one of them out."
            )
        return Keeper(policy)

    def __repr__(self) -> str:
        shared = sum(p.numel() for p in self._parameters if p.requires_grad)
        parts = [repr(self.name)] if self.name else []
        parts.append(f"{registry().name_of(self.aggregator)} on {shared:,} shared parameters")
        if self.detector is not None:
            parts.append(f"detector {registry().name_of(self.detector)}")
        if self._teleporter is not None:
            parts.append(f"teleport {self._teleporter.name}")
        tasks = self._progress.tasks
        parts.append("tasks as they come" if tasks is None else f"tasks {', '.join(map(str, tasks))}")
        return f"MultiTask({'; '.join(parts)}; after {self._progress.step} steps)"

    # --- one step -----------------------------------------------------------------------------------------

    @told
    def backward(self, losses: Losses, features: Features = None, scaler: Any = None) -> StepReport:
        """Fill ``.grad`` of trunk and heads; replaces ``sum(losses).backward()`` and accumulates like it.

        Args:
            losses: {task: scalar} or a list of scalars, with graphs. A task missing from this batch is left out of
                the dict, or None: it gets no weight, which is not the same as a zero gradient. Or a tensor (K,): for a
                method without a state or option per task these are anonymous, and K may vary with the batch.
            features: the trunk's output(s) that the heads received; makes the search for head parameters cheap.
            scaler: a ``torch.amp.GradScaler``. Hand over the *unscaled* losses: the method sees them and their true
                gradients, ``.grad`` is scaled, and an overflow makes a skipped step (``report.skipped``), which
                ``scaler.step`` and ``scaler.update`` then handle as always.

        Raises:
            LossError: no loss, not a scalar, no graph, unknown task, or no loss reaches the trunk.
            FeaturesError: features that are not in the graph of the losses.
            NonFiniteError: NaN or infinity in a loss or a task's gradient; parameters and state are untouched.
            PluginError: the method broke its contract; names plugin and distribution.
            ConfigurationError: the method needs :meth:`step`, or the forced gradient source cannot serve it.
        """
        who = registry().identify(self.aggregator)
        if self.aggregator.batches > 1:
            raise ConfigurationError(
                f"aggregator {who} needs several batches in a step: call step(closures) instead of backward(losses)."
            )
        self._check_observed()
        scale = scaling.scale_of(scaler, self._parameters[0].device)
        try:
            prepared = self._prepare(losses, features, scale)
            report = self._finish(prepared, self._detect(prepared), None)
        except NonFiniteError:
            if scale is None:
                raise
            report = self._skip(losses)
        self._announce(report)
        return report

    @told
    def observe(self, losses: Losses) -> None:
        """The second look of a method that looks twice (FAMO), after the user's own optimizer step: the losses of the
        same batch where the optimizer arrived. Other methods need no call; it does nothing for them.

        Raises:
            ConfigurationError: no :meth:`backward` came before.
            NonFiniteError: a loss is NaN or infinite; the method's state is as before.
            LossError, PluginError: as :meth:`backward`.
        """
        if not self.aggregator.looks_twice():
            return
        if not self._progress.awaiting:
            raise ConfigurationError("observe(losses) follows a backward(losses) and the optimizer's step.")
        self._progress = dataclasses.replace(self._progress, state=self._observed(losses), awaiting=False)

    def _check_observed(self) -> None:
        if self._progress.awaiting:
            raise ConfigurationError(
                f"aggregator {registry().identify(self.aggregator)} looks at the losses twice in a step: after the "
                f"optimizer's step, call observe(losses) with the losses of the same batch, or use step(closure)."
            )

    @told
    def accumulate(self, losses: Losses, features: Features = None, scaler: Any = None) -> None:
        """One micro-batch of a larger batch: the next :meth:`backward`, on the last micro-batch, asks the method once
        about all of them. Nothing reaches ``.grad`` before that. Scale the losses as for any gradient accumulation (for
        a mean over n equal micro-batches: divide by n).

        For a method that reads gradients each micro-batch is differentiated and let go of, and K x P numbers are kept.
        For one that reads losses only the graphs wait for the weights (:mod:`mtlcore.gradients.waiting` says why), and
        the step stays one backward pass; with ``gradients="sequential"`` they do not wait, and K x P numbers are kept.

        Raises:
            As :meth:`backward`; after an error the micro-batches so far are forgotten.
        """
        micro, waits, self._micro, self._waiting = self._micro, self._waiting, None, []
        self._check_observed()
        self._refuse_anonymous(losses)
        scale = scaling.scale_of(scaler, self._parameters[0].device)
        batch = self._batch(losses, features, scale)
        if self._planner.waits_for_weights(self._needs()) and batch.shared:
            if scale is None:
                inputs.values_of(batch.losses, batch.stacked, batch.names)
            self._waiting = [*waits, (losses, features)]
            return
        batch, micro = received.found(batch.without_unread()), micro or MicroBatches()
        try:
            micro.add(batch, inputs.values_of(batch.losses, batch.stacked, batch.names))
        except NonFiniteError:
            if scale is None:
                raise
            micro.overflowed = True
        self._micro = micro

    @told
    def step(self, closure: Closure | Sequence[Closure], scaler: Any = None) -> StepReport:
        """One whole training step: zero the gradients, forward, (teleport,) backward, optimizer, (second look).

        All or nothing: after an error or Ctrl-C at any moment parameters, buffers, random streams, optimizer, method,
        counters and ``.grad`` are as before the step. The one exception is an optimizer whose own step raises half way:
        what it moved stays moved where no copy was made (without teleport and second look), and a note on the error
        says so.

        Args:
            closure: a function of no arguments that evaluates one batch and returns ``(losses, features)`` or
                ``losses``. It must give the same batch each time it is called within a step. A method that needs
                several independent batches gets a list of closures. For all others a list is the micro-batches of
                one batch, as for :meth:`accumulate`; in a step that may teleport all their graphs are alive at once.
            scaler: a ``torch.amp.GradScaler``, as for :meth:`backward`; its ``step`` and ``update`` are called here.

        Raises:
            As :meth:`backward`; ConfigurationError without an optimizer.
        """
        closures = self._checked_closures(closure)
        before, progress = self._before_step(), self._progress
        scaler_before = None if scaler is None else scaler.state_dict()
        self._arrived = self._moved = False
        self._outside = None
        try:
            before.take_gradients()
            report = self._whole_step(closures, scaler)
        except BaseException as error:
            self._micro, self._waiting = None, []
            if not self._arrived:
                with interrupts_held():
                    self._progress = progress
                    if scaler is not None and scaler_before:
                        scaler.load_state_dict(scaler_before)
                    before.restore()
                    if self._outside is not None:
                        self._outside.restore()
            _say_which(error, self._arrived, copied=not self._moved or self._copies())
            raise
        finally:
            self._last_losses, self._outside = (), None  # nothing keeps a graph alive after its step
        self._announce(report)
        return report

    # --- what a run may do between two steps ----------------------------------------------------------------

    def tune(self, closure: Closure, repeats: int = 5) -> tuning.Table:
        """Measure every gradient source on a batch, and use the fastest from now on; the choice goes into the
        checkpoint. Nothing else in mtlcore looks at a clock. Parameters, buffers, random streams and ``.grad`` are as
        before.

        Args:
            closure: evaluates one batch of the usual size, as for :meth:`step`.
            repeats: how often each source is timed; the median counts.

        Returns:
            One row per source: seconds, ratio to the fastest, or why it cannot serve this network. Prints as a table.
        """

        def evaluate() -> Batch:
            return self._batch(*inputs.evaluated(closure)).without_unread()

        modules = [m for m in (self._trunk, self._heads) if m is not None]
        with Snapshot(modules=modules).restored():
            needs, together = self._needs(), self._processes.several(self._modules())
            needs = Needs.JACOBIAN if together and needs == Needs.GRAMIAN else needs  # others need whole rows
            measure = functools.partial(tuning.measure, self._planner, needs, evaluate, repeats)
            table = tuning.merged(self._processes.gathered(measure)) if together else measure()
        if table.fastest is not None and needs > Needs.LOSSES:
            self._planner.pin(needs, table.fastest)
        return table

    def refresh_parameters(self) -> None:
        """Take the trunk's present parameters (after a layer, an adapter or a parametrisation came or went); the
        method's state stays.

        Raises:
            ConfigurationError: the trunk was handed over as a list of parameters: make a new MultiTask, and load the
                state of this one.
        """
        if self._trunk is None:
            raise ConfigurationError(
                "refresh_parameters needs the trunk as an nn.Module; this MultiTask was made of a list of parameters: "
                "make a new one of the new list, and load_state_dict(old.state_dict())."
            )
        self._parameters = inputs.trunk_parameters(self._trunk)
        self._reach = audit.Reach(inputs.parameter_names(self._trunk, self._parameters))
        self._processes.forget()
        self._micro, self._waiting = None, []

    def add_task(self, name: str) -> None:
        """One more task, the last in the order. In the method's state it starts with what ``init`` gives; the numbers
        of the others stay as they are (:mod:`mtlcore.roster` has the rule). Its head's parameters join the optimizer
        by ``add_param_group``.

        Raises:
            ConfigurationError: the run has it already, or has no tasks yet; a step is half done; the method refuses so
                many tasks (it has an option for each, say).
            StateError: it cannot be told which numbers of the state belong to which task.
        """
        tasks = self._roster()
        if name in tasks:
            raise ConfigurationError(f"there is a task {name!r} already: this run has {', '.join(map(str, tasks))}.")
        self._change(inputs.task_names([*tasks, name]), [*range(len(tasks)), None])

    def remove_task(self, name: str) -> None:
        """One task less: its numbers leave the method's state, those of the others stay as they are.

        Raises:
            ConfigurationError, StateError: as :meth:`add_task`; also for a task that the run does not have, or the
                only one.
        """
        tasks = self._roster()
        if name not in tasks or len(tasks) == 1:
            raise ConfigurationError(
                f"cannot remove task {name!r}: this run has {', '.join(map(str, tasks))}, and keeps at least one."
            )
        self._change(tuple(n for n in tasks if n != name), [i for i, n in enumerate(tasks) if n != name])

    def _roster(self) -> tuple[str, ...]:
        if self._micro is not None or self._waiting or self._progress.awaiting:
            raise ConfigurationError("tasks come and go between two steps: finish this one with backward or observe.")
        if self._progress.tasks is None:
            raise ConfigurationError(
                "this run has no tasks yet, they are those of its first batch: declare MultiTask(..., tasks=[...])."
            )
        return self._progress.tasks

    def _change(self, names: tuple[str, ...], positions: roster.Positions) -> None:
        asking.start(self.aggregator, len(names))
        state, old = self._progress.state, len(self._progress.tasks or ())
        state = None if state is None else roster.moved(self.aggregator, state, positions, old)
        self._progress = dataclasses.replace(self._progress, tasks=names, state=state)
        self._reach = audit.Reach(inputs.parameter_names(self._trunk, self._parameters))
        if self._keeper is not None:
            self._keeper.restore({})  # weights for other tasks

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

    def _checked_closures(self, closure: Closure | Sequence[Closure]) -> list[Closure]:
        if self.optimizer is None:
            raise ConfigurationError("step(closure) moves the parameters: pass optimizer=... to MultiTask.")
        if self._micro is not None or self._waiting:
            raise ConfigurationError(
                "micro-batches are waiting: finish them with backward(losses), not with step(closure)."
            )
        closures = [closure] if callable(closure) else list(closure)
        if len(closures) != self.aggregator.batches and (self.aggregator.batches > 1 or not closures):
            raise ConfigurationError(
                f"aggregator {registry().identify(self.aggregator)} needs {self.aggregator.batches} closures, one per "
                f"independent batch; got {len(closures)}."
            )
        if self._progress.step == 0:
            names = inputs.parameter_names(self._trunk, self._parameters)
            shared = [p for p in self._parameters if p.requires_grad]
            audit.check_optimizer(trajectory.each(self.optimizer), shared, [names[id(p)] for p in shared])
        return closures

    def _copies(self) -> bool:
        """Whether parameters and optimizer are copied before a step."""
        return self._may_teleport() or self.aggregator.looks_twice()

    def _before_step(self) -> Snapshot:
        """Everything that this step may disturb. Parameters and optimizer are copied only where something after the
        optimizer's step, or before it, can fail: with teleports and second looks."""
        moves = self._copies()
        held = [p for o in trajectory.each(self.optimizer) for g in o.param_groups for p in g["params"]]
        everything = list({id(p): p for p in (*self._parameters, *held)}.values())
        followers = () if self._teleporter is None else self._teleporter.followers
        copies = [p for follower in followers for p in follower.parameters()]
        return Snapshot(
            modules=self._modules(),
            parameters=[*everything, *copies] if moves else (),
            gradients=everything,
            optimizer=self.optimizer if moves else None,
        )

    def _whole_step(self, closures: Sequence[Closure], scaler: Any) -> StepReport:
        for optimizer in trajectory.each(self.optimizer):
            optimizer.zero_grad()
        scale = scaling.scale_of(scaler, self._parameters[0].device)
        moment = Snapshot(modules=self._modules()) if self._may_teleport() else None
        first, further = closures[0], closures[1:]
        if further and self.aggregator.batches == 1:
            first, further = self._whole(closures), []
        pieces = [] if first is closures[0] or moment is not None else closures[:-1]
        last = first if not pieces else closures[-1]
        self._last_losses = []
        watch: Watch | None = None
        try:
            prepared, noise = self._look(pieces, last, first, further, scaler)
            conflict = self._detect(prepared)
            teleport = self._teleport(first, prepared, conflict)
            if moment is not None and teleport is not None and teleport.accepted:
                # The step begins anew at the new point. After a refusal the old graph is still good.
                moment.restore()
                prepared, noise = self._look([], first, first, further, scaler)
            held = {id(p) for o in trajectory.each(self.optimizer) for g in o.param_groups for p in g["params"]}
            held |= set(map(id, self._parameters))
            self._outside = Gradients([p for i, p in prepared.batch.leaves.items() if i not in held])
            if self._taken and prepared.batch.shared:
                watch = Watch(self.optimizer, prepared.batch.shared)
            finish: Callable[[], StepReport] = lambda: self._finish(prepared, conflict, teleport)
            report = self._move(finish, scaler)
        except NonFiniteError:
            if scale is None or self._moved:
                raise
            report = self._move(lambda: self._skip(self._last_losses), scaler)
        if not report.skipped and noise is not None:
            self._look_again(first, noise)
        self._arrived = True
        if watch is not None and not report.skipped:
            report = dataclasses.replace(report, taken=watch.taken(prepared.plain.rows(), prepared.view.presence))
        return report

    def _whole(self, closures: Sequence[Closure]) -> Closure:
        """The micro-batches of a step as one batch."""

        def evaluate() -> tuple[Losses, Features]:
            parts = [inputs.evaluated(c) for c in closures]
            self._refuse_anonymous(parts[0][0])
            return waiting.together(parts, self._progress.tasks)

        return evaluate

    def _look(
        self, pieces: Sequence[Closure], last: Closure, whole: Closure, further: Sequence[Closure], scaler: Any
    ) -> tuple[_Prepared, Noise | None]:
        """Evaluate every batch of the step; and for a second look the noise under which the first batch was.

        Args:
            pieces: micro-batches to be accumulated before the last.
            last: the last micro-batch, or the only batch.
            whole: all of them as one batch.
            further: the other independent batches that the method needs.
            scaler: as for :meth:`step`.
        """
        scale = scaling.scale_of(scaler, self._parameters[0].device)
        others = [self._other_view(c, scale) for c in further]
        noise = Noise() if self.aggregator.looks_twice() else None
        for closure in pieces:
            self.accumulate(*inputs.evaluated(closure), scaler)
        self._last_losses, features = inputs.evaluated(last)
        return self._prepare(self._last_losses, features, scale, others, self._inner(whole)), noise

    _last_losses: Losses = ()
    """Of the step that is running, for one that is skipped."""
    _arrived = False
    """Whether the step that is running, or was the last, has come to its end."""
    _moved = False
    """Whether its optimizer has moved."""
    _outside: Gradients | None = None
    """The ``.grad`` of leaves that no optimizer of the run holds."""

    def _move(self, finish: Callable[[], StepReport], scaler: Any) -> StepReport:
        """Write the gradients and let the optimizers move; a Ctrl-C waits until both are done."""
        with interrupts_held():
            report = finish()
            if self._teleporter is not None and not report.skipped:
                self._teleporter.memory.remember([p for p in self._parameters if p.requires_grad])
            self._moved = True
            for optimizer in trajectory.each(self.optimizer):
                optimizer.step() if scaler is None else scaler.step(optimizer)
            if scaler is not None:
                scaler.update()
            self._arrived = not self.aggregator.looks_twice() or report.skipped
        return report

    def _look_again(self, closure: Closure, noise: Noise) -> None:
        """The second look, under the noise of the first; it leaves no trace but the method's state."""
        with Snapshot(modules=self._modules()).restored():
            noise.restore()
            losses, _ = inputs.evaluated(closure)
            state = self._observed(losses)
        self._progress = dataclasses.replace(self._progress, state=state, awaiting=False)

    def _modules(self) -> list[nn.Module]:
        return [m for m in (self._trunk, self._heads) if m is not None]

    def _may_teleport(self) -> bool:
        progress = self._progress
        return self._teleporter is not None and self.brakes.allows(progress.step, progress.teleport_steps)

    def _inner(self, closure: Closure) -> Callable[..., StepView]:
        """The service behind ``view.inner``: inner gradient steps on this step's batch, undone afterwards."""
        return functools.partial(
            inner_loop.descend,
            evaluate=lambda: self._named(*inputs.evaluated(closure)),
            parameters=[
                *self._parameters,
                *(p for o in trajectory.each(self.optimizer) for group in o.param_groups for p in group["params"]),
            ],
            modules=self._modules(),
            together=self._processes if self._processes.several() else None,
        )

    def _needs(self) -> Needs:
        """The most that somebody reads in this step."""
        needs = self.aggregator.needs
        if self.detector is not None and self._looks_for_conflict():
            needs = max(needs, self.detector.needs)
        return max(needs, Needs.GRAMIAN) if self._whole_rows else needs

    def _batch(self, losses: Losses, features: Features, scale: float | None = None) -> Batch:
        """What the user handed over, checked."""
        presence, scalars = inputs.present_losses(losses, self._progress.tasks)
        if self._trunk is not None and not is_sharded(self._parameters):
            audit.check_unchanged(self._trunk, self._parameters)
        shared = tuple([p for p in self._parameters if p.requires_grad])
        if self._anonymous(losses):
            assert isinstance(losses, Tensor)
            return Batch(presence, scalars, inputs.flat(features), shared, losses, scale, losses)
        return Batch(presence, scalars, inputs.flat(features), shared, inputs.stack(scalars), scale)

    def _anonymous(self, losses: Losses) -> bool:
        """Whether these are a vector of anonymous tasks: no number of the run belongs to one of them.

        Raises:
            ConfigurationError: weights are to be kept for other samples.
        """
        if not isinstance(losses, Tensor) or self._progress.tasks is not None or self._task_state:
            return False
        if self._keeper is not None:
            raise ConfigurationError("refresh keeps weights by task, and a vector of losses has none: leave it out.")
        return True

    def _refuse_anonymous(self, losses: Losses) -> None:
        if self._anonymous(losses):
            raise ConfigurationError(
                "micro-batches are added up task by task, and the losses of a vector have no names: hand over "
                "{task: loss}, or take the vector's whole batch in one backward."
            )

    @functools.cached_property
    def _task_state(self) -> bool:
        return roster.has_task_state(self.aggregator)

    def _prepare(
        self,
        losses: Losses,
        features: Features,
        scale: float | None = None,
        others: Sequence[StepView] = (),
        inner: Callable[..., StepView] | None = None,
    ) -> _Prepared:
        """From what the user handed over to the view. Changes nothing."""
        micro, waits, self._micro, self._waiting = self._micro, self._waiting, None, []
        if waits:
            losses, features = waiting.together([*waits, (losses, features)], self._progress.tasks)
        needs = self._needs()
        work = functools.partial(self._local, losses, features, scale, needs, micro)
        together = self._processes.several(self._modules())
        if together and self._whole_rows:
            raise ConfigurationError(
                "metric and taken are for one process so far: leave them out, or pass process_group=None."
            )
        local = (
            self._processes.merged(work, functools.partial(self._members, losses), self._tag(), needs)
            if together
            else work()
        )
        presence, batch, seen = local.presence, local.batch, inputs.flat(features)
        found = local.found if scale is None else scaling.Scaled(local.found, scale)
        plain, reason = found, local.reason
        if self._metric == "optimizer" and batch.shared:
            found, reason = in_metric(found, self.optimizer, batch.shared), f"{reason}; in the optimizer's metric"
        gram = found.gramian() if local.has_gramian else None
        if local.values is None:
            values, gram = reading.read(batch, found, gram)
        else:
            values, gram = local.values, None if gram is None else reading.checked(gram.cpu(), presence.present)
        view = StepView(
            losses=presence.spread_numbers(values),
            gramian=None if gram is None else presence.spread_pairs(gram, float("nan")),
            jacobian=(lambda: presence.spread(found.rows())) if needs == Needs.JACOBIAN else None,
            present=presence,
            step=self._progress.step,
            generator=lambda: step_seed(self._progress.seed, self._progress.step),
            features=seen,
            others=others,
            inner=inner,
            needs=needs,
        )
        pieces = f"; through the graphs of {len(waits) + 1} micro-batches" if waits else ""
        return _Prepared(view, batch, found, gram, reason + pieces, local.kept, plain)

    def _local(
        self, losses: Losses, features: Features, scale: float | None, needs: Needs, micro: MicroBatches | None
    ) -> Local:
        """What this process finds in its batch."""
        batch = self._batch(losses, features, scale)
        if is_sharded(batch.shared):
            return self._sharded(batch, needs, micro)
        audit.check_reached(batch)
        if not self._reach.done and batch.vector is None:
            self._reach.look(batch)
        if micro is not None:
            self._refuse_anonymous(losses)
        if needs > Needs.LOSSES or micro is not None:
            batch = received.found(batch.without_unread()) if batch.shared else batch.without_unread()
        if micro is None:
            found, reason, kept = self._collect(batch, needs)
            return Local(batch, batch.presence, found, reason, kept)
        micro.add(batch, inputs.values_of(batch.losses, batch.stacked, batch.names))
        presence, values, found, reason = micro.finish(batch.presence.names, batch.shared)
        return Local(batch, presence, found, reason, values=values)

    def _sharded(self, batch: Batch, needs: Needs, micro: MicroBatches | None) -> Local:
        """A trunk in shards, whose parameters the graph does not show.

        Raises:
            ConfigurationError: what is not served there.
        """
        what = "a method or detector that reads whole rows" if needs == Needs.JACOBIAN else ""
        what = "accumulate(...)" if micro is not None else "refresh" if self._keeper is not None else what
        if not self._processes.several():
            what = "process_group=None, or one process alone,"
        if what:
            raise ConfigurationError(
                f"{what} is not served with a sharded trunk (FSDP2): use a method that reads the Gramian or losses, "
                f"one batch per step, on several processes."
            )
        found = Sharded(batch, self._modules(), self._members([]).told, needs == Needs.LOSSES)
        return Local(batch, batch.presence, found, "sharded: one backward pass through FSDP for each task")

    def _members(self, losses: Losses) -> Members:
        """What takes part in this run, for the first step of several processes."""
        held = [p for o in trajectory.each(self.optimizer) for g in o.param_groups for p in g["params"]]
        heads = [] if self._heads is None else list(self._heads.parameters())
        if is_sharded(self._parameters):  # between forward and backward, FSDP has whole ones in their place
            heads = self._heads_then
        mine = set(map(id, self._parameters))
        given = losses.values() if isinstance(losses, Mapping) else losses
        return Members(
            modules=self._modules(),
            parameters=self._parameters,
            told=[p for p in {id(p): p for p in (*heads, *held)}.values() if id(p) not in mine],
            about={r: configuration.describe(p) for r, p in self._plugins().items()},
            teleport=self._teleporter is not None,
            losses=[v for v in given if isinstance(v, Tensor)],
        )

    def _tag(self) -> str:
        """What must be the same on all processes in this step."""
        progress = self._progress
        return f"step {progress.step}; seed {progress.seed}"

    def _collect(self, batch: Batch, needs: Needs) -> tuple[TaskGradients, str, bool]:
        """Task gradients, the reason, and whether the last weights are to be used again."""
        if not batch.shared:
            return Weighted(batch), _FROZEN, False
        if self._keeper is not None and needs > Needs.LOSSES:
            several = self._processes.several()
            kept = self._keeper.reuse(batch, self._processes.presence if several else None)
            if kept is not None:
                return kept, "features: the weights of an earlier step, one pass through the trunk", True
        found, reason = self._planner.collect(needs, batch, rows=self._processes.several() or self._whole_rows)
        return found, reason, False

    def _looks_for_conflict(self) -> bool:
        """Whether the detector is asked in this step. Where that costs task gradients which the method does not need,
        and a verdict could not lead to a teleport, it is not."""
        if self.detector is None or self._progress.step % self.brakes.detect_every:
            return False
        free = self.aggregator.needs >= self.detector.needs
        return free or self._teleporter is None or self._may_teleport()

    def _detect(self, prepared: _Prepared) -> Conflict | None:
        if self.detector is None or not self._looks_for_conflict() or not prepared.batch.shared:
            return None
        conflict = detect(self.detector, prepared.view)
        if conflict.conflicting and registry().listens("mtlcore_conflict_detected"):
            registry().announce(
                "mtlcore_conflict_detected", conflict=conflict, report=self._report(prepared, None, conflict, None)
            )
        return conflict

    def _teleport(self, closure: Closure, prepared: _Prepared, conflict: Conflict | None) -> TeleportResult | None:
        teleporter = self._teleporter
        if teleporter is None or not self._may_teleport() or not prepared.batch.shared:
            return None
        if self.detector is not None and (conflict is None or not conflict.conflicting):
            return None
        assert self._trunk is not None
        probe, progress = self._probe, self._progress
        result = teleporter.attempt(
            trunk=self._trunk,
            heads=self._heads,
            closure=lambda: self._named(*inputs.evaluated(closure)),
            probe=None if probe is None else lambda: inputs.probed(probe, progress.tasks),
            view=prepared.view,
            optimizer=self.optimizer,
            generator=torch.Generator().manual_seed(step_seed(progress.seed + 1, progress.step)),
        )
        self._progress = dataclasses.replace(progress, teleport_steps=(*progress.teleport_steps, progress.step))
        registry().announce("mtlcore_teleported", result=result)
        return result

    def _named(self, losses: Losses, features: Features) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        tasks = self._progress.tasks
        return {n: v for n, v in inputs.by_name(losses, tasks).items() if v is not None}, inputs.flat(features)

    def _finish(self, prepared: _Prepared, conflict: Conflict | None, teleport: TeleportResult | None) -> StepReport:
        """Ask the method, write the gradients, and only then commit the new state."""
        ask = functools.partial(self._ask, prepared)
        together = self._processes.several()
        answer = self._processes.answered(ask, registry().identify(self.aggregator)) if together else ask()
        presence = prepared.view.presence
        weights, heads = answer.weights, answer.head_weights
        if heads is None and self.aggregator.needs == Needs.LOSSES and not prepared.found.weights_whole_losses:
            heads = weights
        if answer.feature_gradient and not prepared.found.weights_whole_losses:
            raise ConfigurationError(
                f"aggregator {registry().identify(self.aggregator)} returns feature gradients, which need a method on "
                f"losses (needs = Needs.LOSSES), the whole batch at once (no micro-batches) and no forced source."
            )
        # Before the backward pass, which turns all caches over: written then, a report costs half.
        report = self._report(prepared, answer, conflict, teleport)
        with interrupts_held():
            prepared.found.write(
                Answer(
                    weights=None if weights is None else presence.pick(weights),
                    direction=answer.direction,
                    head_weights=None if heads is None else presence.pick(heads),
                    feature_gradient=answer.feature_gradient,
                )
            )
            if self._keeper is not None:
                self._keeper.commit()
            names = None if prepared.batch.vector is not None else presence.names
            self._progress = self._progress.after(names, answer.state, conflict, self.aggregator.looks_twice())
        return report

    def _ask(self, prepared: _Prepared) -> Aggregation:
        """The method's answer, or its last one again; the plain sum for the heads of a frozen trunk."""
        keeper, view, state = self._keeper, prepared.view, self._progress.state
        state = state if state is not None else asking.start(self.aggregator, view.n_tasks)
        if not prepared.batch.shared and self.aggregator.needs > Needs.LOSSES:
            return Aggregation(weights=view.present.double(), state=state)
        if prepared.kept and keeper is not None:
            weights, heads, notes = keeper.kept()
            return Aggregation(weights=weights, head_weights=heads, state=state, diagnostics=notes)
        size = prepared.batch.size if self.aggregator.needs > Needs.LOSSES else None
        answer = asking.call(self.aggregator, view, state, size)
        if keeper is not None and prepared.gramian is not None:
            gram = view.presence.spread_pairs(prepared.gramian, float("nan"))
            notes = keeper.renew(answer.weights, answer.head_weights, view.present, gram)
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
        looks, fired = self._progress.counts(conflict)
        if looks:
            diagnostics |= {"detector_looks": looks, "detector_fired": fired}
        view, gram = prepared.view, prepared.gramian
        return StepReport(
            step=self._progress.step,
            task_names=view.task_names,
            losses=view.losses,
            weights=weights,
            gramian=None if gram is None else view.presence.spread_pairs(gram, float("nan")).clone(),
            conflict=conflict,
            teleport=teleport,
            diagnostics=diagnostics,
            gradient_source=prepared.reason,
            method=registry().name_of(self.aggregator),
            run=self.name,
        )

    def _skip(self, losses: Losses) -> StepReport:
        """A step whose gradients overflowed under a scaler: the scaler is shown the overflow, nothing else changes."""
        presence, scalars = inputs.present_losses(losses, self._progress.tasks)
        scaling.poison([*self._parameters, *scaling.leaves(scalars)])
        values = presence.spread_numbers(inputs.numbers(scalars))
        return StepReport(
            step=self._progress.step,
            task_names=presence.names,
            losses=torch.tensor(values, dtype=torch.float64, device="cpu"),
            weights=None,
            gramian=None,
            conflict=None,
            teleport=None,
            diagnostics={},
            gradient_source="skipped: the scaled gradients overflowed",
            method=registry().name_of(self.aggregator),
            run=self.name,
            skipped=True,
        )

    def _other_view(self, closure: Closure, scale: float | None) -> StepView:
        """The view of a further independent batch; its rows are copied, for the buffer serves the next batch."""
        prepared = self._prepare(*inputs.evaluated(closure), scale)
        view = prepared.view
        rows = view.jacobian.clone() if self.aggregator.needs == Needs.JACOBIAN else None
        return StepView(
            losses=view.losses,
            gramian=None if prepared.gramian is None else view.presence.spread_pairs(prepared.gramian, float("nan")),
            jacobian=rows,
            present=view.presence,
            step=self._progress.step,
            needs=self.aggregator.needs,
        )

    def _observed(self, losses: Losses) -> dict[str, Tensor]:
        """The method's state after a second look at these losses."""
        progress = self._progress
        assert progress.state is not None

        def look() -> tuple[Presence, list[float]]:
            presence, scalars = inputs.present_losses(losses, progress.tasks, graph=False)
            return presence, inputs.finite(inputs.numbers(scalars), presence.present, when="after the step ")

        presence, values = self._processes.looked(look) if self._processes.several() else look()
        view = StepView(
            losses=presence.spread_numbers(values),
            present=presence,
            step=progress.step - 1,
            generator=step_seed(progress.seed, progress.step - 1),
            needs=Needs.LOSSES,
        )
        return asking.observe(self.aggregator, view, progress.state)

    def _announce(self, report: StepReport) -> None:
        registry().announce("mtlcore_step_finished", report=report)

    # --- checkpoints ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if never interrupted (beside trunk, heads and optimizer): numbers, strings
        and tensors only, so that ``torch.load(..., weights_only=True)`` reads it. Between two steps: micro-batches that
        wait for their :meth:`backward` are not in it, as ``.grad`` is not in an optimizer's."""
        return checkpoint.pack(self._progress, self._plugins(), self._planner, self._keeper, self._teleporter)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`. Nothing is changed if the state does not fit. Where it was saved with another
        detector or teleport, another version of a plugin, or other hyper-parameters, a ``PluginWarning`` gives both
        values, and the run goes on with its own.

        Raises:
            StateError: the state of another method, of other tasks, or not such a state at all; names the entry.
        """
        loaded = checkpoint.unpack(state, self._progress, self._plugins(), self._keeper)
        self._micro, self._waiting = None, []
        self._progress = loaded.progress
        self._planner.restore(loaded.pins)
        if self._keeper is not None:
            self._keeper.restore(loaded.kept)
        if self._teleporter is not None:
            self._teleporter.restore(loaded.teleporter)

    def _plugins(self) -> dict[str, Any]:
        strategy = None if self._teleporter is None else self._teleporter.strategy
        return {"aggregator": self.aggregator, "detector": self.detector, "teleport": strategy}


_FROZEN = (
    "losses: no parameter of the trunk requires gradients, so that the heads train on their own losses and a method "
    "that reads gradients is not asked"
)


class _Prepared(NamedTuple):
    """One evaluated batch, differentiated but not yet written anywhere."""

    view: StepView
    batch: Batch
    found: TaskGradients
    gramian: Tensor | None
    """(k, k) of the tasks present."""
    reason: str
    kept: bool
    plain: TaskGradients
    """``found`` in the Euclidean metric."""


def _say_which(error: BaseException, arrived: bool, copied: bool) -> None:
    """Add to an error what it left behind.

    Args:
        error: on its way out of a step.
        arrived: whether the step had come to its end.
        copied: whether parameters and optimizer were put back, or had not been touched.
    """
    if not hasattr(error, "add_note"):  # Python 3.10
        return
    if arrived:
        where = "are as after the step: it was finished"
    elif copied:
        where = "are as before the step: nothing was changed"
    else:
        where = (
            "are as before the step, but for parameters and optimizer: the optimizer's own step failed, and may have "
            "moved some of them"
        )
    error.add_note(f"mtlcore: parameters, optimizer, method and counters {where}.")
