"""MultiTask: the one object a training loop holds.

Its methods are the public contract; what they do is in :mod:`mtlcore.step`. One step, read from top to bottom:
:meth:`MultiTask.backward` *prepares* what the user handed over (a batch, its task gradients, the view), *looks* for
conflict, and *finishes*: the method answers, and its answer is written. :meth:`MultiTask.step` puts the user's closure,
teleports, the optimizer and a second look around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mtlcore import checkpoint, inputs, tuning
from mtlcore.contracts import Aggregator, ConflictDetector, TeleportStrategy
from mtlcore.distributed.hook import CommunicationHook
from mtlcore.distributed.processes import told
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.gradients.refresh import Refresh
from mtlcore.inputs import Closure, Features, Losses
from mtlcore.registry import registry
from mtlcore.report import StepReport
from mtlcore.step import answer, conflict, micro, second_look, tasks, tell, whole
from mtlcore.step.alone import alone
from mtlcore.step.assembly import assembled
from mtlcore.step.prepare import prepare
from mtlcore.step.run import Pending
from mtlcore.teleporting import Brakes, Follower, Teleporter


class MultiTask:
    """Replaces ``sum(losses).backward()`` by the step of a multi-task method.

    Args:
        trunk: the shared network, or its parameters. Whatever else the losses depend on is task-specific.
        aggregator: a registered name, or an instance (for hyper-parameters: ``create("aggregator", name, ...)``). The
            default follows the evidence: of the methods that keep non-conflict, the one with the best mean rank in the
            committed results (docs/explanation/cost-measured.md, whole trainings).
        optimizer: the user's own, or several; needed by :meth:`step` only.
        detector: a conflict detector (name or instance), or None.
        teleport: a teleport strategy (name or instance), tried in :meth:`step` when the detector fires (without a
            detector: whenever the brakes allow), or None. For other options than ``tolerance``, a
            :class:`mtlcore.Teleporter`, of which the tolerance is then taken.
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
        metric: "euclidean"; "optimizer": the method's laws then hold for the move that the optimizer makes of its
            direction (SGD, Adam, AdamW, RMSprop, Adagrad; see docs/explanation/step.md); or "step": besides, fresh
            gradients are added until the *whole* step, with momentum and weight decay, raises no task's loss to first
            order (``report.diagnostics["step_safe"]`` says whether it does; change ``.grad`` no more after that).
            Gramian and rows are those of that metric everywhere: for method, detector and report. It takes K x P
            numbers twice.
        taken: whether :meth:`step` measures what the optimizer's step did to every task (``report.taken``). Takes a
            copy of the trunk's parameters and two products of the task gradients; nothing is cut into blocks.

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
        self._run = assembled(
            trunk,
            aggregator,
            optimizer,
            detector,
            teleport,
            gradients,
            seed,
            tasks=tasks,
            heads=heads,
            brakes=brakes,
            probe=probe,
            tolerance=tolerance,
            gradient_memory=gradient_memory,
            refresh=refresh,
            name=name,
            process_group=process_group,
            check_source=check_source,
            metric=metric,
            taken=taken,
        )

    def __repr__(self) -> str:
        return self._run.describe()

    @property
    def aggregator(self) -> Aggregator:
        """The method."""
        return self._run.aggregator

    @property
    def detector(self) -> ConflictDetector | None:
        """The conflict detector."""
        return self._run.detector

    @property
    def name(self) -> str:
        """Of this run."""
        return self._run.name

    @property
    def optimizer(self) -> torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None:
        """What :meth:`step` moves; may be exchanged between two steps."""
        return self._run.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None) -> None:
        self._run.exchange_optimizer(optimizer)

    @property
    def brakes(self) -> Brakes:
        """When detection and teleports are allowed; may be exchanged between two steps."""
        return self._run.brakes

    @brakes.setter
    def brakes(self, brakes: Brakes) -> None:
        self._run.brakes = inputs.brakes(brakes)

    # --- one step -----------------------------------------------------------------------------------------

    @told
    @alone
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
        run = self._run
        if run.aggregator.batches > 1:
            raise ConfigurationError(
                f"aggregator {run.who} needs several batches in a step: call step(closures), not backward(losses)."
            )
        second_look.check_taken(run)
        scale = run.scale(scaler)
        try:
            prepared = prepare(run, losses, features, scale)
            report = answer.finish(run, prepared, conflict.look(run, prepared), None)
        except NonFiniteError:
            if scale is None:
                raise
            report = tell.skipped(run, losses)
        registry().announce("mtlcore_step_finished", report=report)
        return report

    @told
    @alone
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
        if not self._run.progress.awaiting:
            raise ConfigurationError("observe(losses) follows a backward(losses) and the optimizer's step.")
        second_look.take(self._run, losses)

    @told
    @alone
    def accumulate(self, losses: Losses, features: Features = None, scaler: Any = None) -> None:
        """One micro-batch of a larger batch: the next :meth:`backward`, on the last micro-batch, asks the method once
        about all of them. Nothing reaches ``.grad`` before that. Scale the losses as for any gradient accumulation (for
        a mean over n equal micro-batches: divide by n).

        For a method that reads gradients each micro-batch is differentiated and freed, and K x P numbers are kept.
        For one that reads losses only the graphs wait for the weights (:mod:`mtlcore.gradients.waiting` says why), and
        the step stays one backward pass; with ``gradients="sequential"`` they do not wait, and K x P numbers are kept.

        Raises:
            As :meth:`backward`; after an error the micro-batches so far are forgotten.
        """
        micro.add(self._run, losses, features, self._run.scale(scaler))

    @told
    @alone
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
        report = whole.WholeStep(self._run, whole.checked_closures(self._run, closure), scaler).take()
        registry().announce("mtlcore_step_finished", report=report)
        return report

    # --- what a run may do between two steps ----------------------------------------------------------------

    def tune(self, closure: Closure, repeats: int = 5) -> tuning.Table:
        """Measure every gradient source on a batch, and use the fastest from now on; the choice goes into the
        checkpoint. Nothing else in mtlcore looks at a clock. Parameters, buffers, random streams and ``.grad`` are as
        before.

        Args:
            closure: evaluates one batch of the usual size, as for :meth:`step`.
            repeats: how often each source is timed; the median counts.

        Raises:
            ConfigurationError: not a function, or not a number of repeats.
            What the closure raises; LossError for what it returns.

        Returns:
            One row per source: seconds, ratio to the fastest, or why it cannot serve this network. Prints as a table.
        """
        return tuning.tune(self._run, closure, repeats)

    def refresh_parameters(self) -> None:
        """Take the trunk's present parameters (after a layer, an adapter or a parametrisation came or went); the
        method's state stays.

        Raises:
            ConfigurationError: the trunk was handed over as a list of parameters: make a new MultiTask, and load the
                state of this one.
        """
        self._run.refresh_parameters()

    def add_task(self, name: str) -> None:
        """One more task, the last in the order. In the method's state it starts with what ``init`` gives; the numbers
        of the others stay as they are (:mod:`mtlcore.roster` has the rule). Its head's parameters join the optimizer
        by ``add_param_group``.

        Raises:
            ConfigurationError: the run has it already, or has no tasks yet; a step is half done; the method refuses so
                many tasks (it has an option for each, say).
            StateError: it cannot be told which numbers of the state belong to which task.
        """
        tasks.add(self._run, name)

    def remove_task(self, name: str) -> None:
        """One task less: its numbers leave the method's state, those of the others stay as they are.

        Raises:
            ConfigurationError, StateError: as :meth:`add_task`; also for a task that the run does not have, or the
                only one.
        """
        tasks.remove(self._run, name)

    def register_comm_hook(self, hook: CommunicationHook) -> None:
        """Code gradients on their way between processes, as :class:`mtlcore.distributed.hook.Rounded` does. Register
        the same on all of them.

        Raises:
            ConfigurationError: it does not encode and decode.
        """
        self._run.processes.register(hook)

    def follow(self, averaged_model: nn.Module, of: nn.Module | None = None) -> None:
        """Take an averaged copy of the network (``torch.optim.swa_utils.AveragedModel``) along in every exact teleport;
        what cannot be carried is said in a warning and in ``report.teleport.diagnostics["averaged_copy"]``. Not in a
        checkpoint: call it again after loading one. Without a teleport it only checks.

        Args:
            averaged_model: the copy, of the trunk or of a network that contains it.
            of: the module that it is a copy of, if names and shapes of parameters do not tell.

        Raises:
            ConfigurationError: it cannot be told which of its parameters stand for the trunk's, or the trunk was handed
                over as a list of parameters.
        """
        run = self._run
        if run.trunk is None:
            raise ConfigurationError(
                "follow: a teleport moves a network, and the trunk of this MultiTask is a list of parameters: pass it "
                "as an nn.Module."
            )
        follower = Follower(averaged_model, run.trunk, run.heads, of)
        if run.teleporter is not None:
            run.teleporter.followers.append(follower)

    # --- checkpoints ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if never interrupted (beside trunk, heads and optimizer): numbers, strings
        and tensors only, so that ``torch.load(..., weights_only=True)`` reads it. Between two steps: micro-batches that
        wait for their :meth:`backward` are not in it, as ``.grad`` is not in an optimizer's."""
        run = self._run
        return checkpoint.pack(run.progress, run.plugins(), run.planner, run.keeper, run.teleporter)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`. Nothing is changed if the state does not fit. Where it was saved with another
        detector or teleport, another version of a plugin, or other hyper-parameters, a ``PluginWarning`` gives both
        values, and the run goes on with its own.

        Raises:
            StateError: the state of another method, of other tasks, or not such a state at all; names the entry.
        """
        run = self._run
        loaded = checkpoint.unpack(state, run.progress, run.plugins(), run.keeper)
        run.pending, run.progress = Pending(), loaded.progress
        run.planner.restore(loaded.pins)
        if run.keeper is not None:
            run.keeper.restore(loaded.kept)
        if run.teleporter is not None:
            run.teleporter.restore(loaded.teleporter)
