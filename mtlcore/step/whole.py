"""One whole training step around the user's closure: forward, (teleport,) backward, optimizer, (second look).

All or nothing: :class:`WholeStep` knows at every moment what the step has disturbed, and puts it back when it fails.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mtlcore import curvature, inner_loop, inputs, trajectory
from mtlcore.contracts import Needs, StepView
from mtlcore.distributed.passes import forget_whole
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.geometry.metric import Curvature
from mtlcore.geometry.taken import Watch
from mtlcore.gradients import waiting
from mtlcore.inputs import Closure, Features, Losses
from mtlcore.report import StepReport
from mtlcore.snapshot import Gradients, Noise, Snapshot, interrupts_held
from mtlcore.step import answer, conflict, micro, second_look, tell
from mtlcore.step.prepare import Prepared, other_view, prepare
from mtlcore.step.run import Pending, Run


def checked_closures(run: Run, closure: Closure | Sequence[Closure]) -> list[Closure]:
    """The closures of a step, in a list.

    Raises:
        ConfigurationError: no optimizer, or one that lacks the trunk's parameters; micro-batches wait; something that
            cannot be called; another number of closures than the method needs.
    """
    if run.optimizer is None:
        raise ConfigurationError("step(closure) moves the parameters: pass optimizer=... to MultiTask.")
    if run.pending:
        raise ConfigurationError(
            "micro-batches are waiting: finish them with backward(losses), not with step(closure)."
        )
    if not callable(closure) and not (isinstance(closure, Iterable) and all(map(callable, closure := list(closure)))):
        raise ConfigurationError(
            f"step(closure) takes a function that evaluates a batch and returns its losses, or a list of such "
            f"functions; found {closure!r}. With losses at hand, call backward(losses)."
        )
    closures, batches = [closure] if callable(closure) else list(closure), run.aggregator.batches
    if len(closures) != batches and (batches > 1 or not closures):
        raise ConfigurationError(
            f"aggregator {run.who} needs {batches} closures, one per independent batch; got {len(closures)}."
        )
    run.audit_optimizer()
    return closures


class WholeStep:
    """A step that is running.

    Args:
        run: whose step it is.
        closures: as :func:`checked_closures` returns them.
        scaler: a ``torch.amp.GradScaler``, or None.
    """

    def __init__(self, run: Run, closures: Sequence[Closure], scaler: Any) -> None:
        self.run = run
        self.scaler = scaler
        self.scale = run.scale(scaler)
        self.teleports = run.may_teleport()
        whole = closures[0]
        if len(closures) > 1 and run.aggregator.batches == 1:  # micro-batches of one batch
            whole = self._together(closures)
        self.whole = whole
        """The step's batch, all of it."""
        in_pieces = whole is not closures[0] and not self.teleports
        self.pieces = list(closures) if in_pieces else [whole]
        """The same, as it is evaluated: micro-batches one by one; in a step that may teleport all at once."""
        self.further = [] if run.aggregator.batches == 1 else list(closures[1:])
        """The other independent batches."""
        self.last: Losses = ()
        """The losses that were evaluated last, for a step that is skipped."""
        self.emptied = False
        """Whether no parameter has a gradient after the optimizers' ``zero_grad``."""
        self.moved = False
        """Whether an optimizer may have moved."""
        self.arrived = False
        """Whether the step has come to its end."""
        self._outside: Gradients | None = None
        """The ``.grad`` of leaves that no optimizer of the run holds."""

    def take(self) -> StepReport:
        """The step, or an error after which all is as before."""
        before, progress = self._before(), self.run.progress
        scaler_before = None if self.scaler is None else self.scaler.state_dict()
        try:
            before.take_gradients()
            return self._steps()
        except BaseException as error:
            self.run.pending = Pending()
            if not self.arrived:
                with interrupts_held():
                    self.run.progress = progress
                    if self.scaler is not None and scaler_before:
                        self.scaler.load_state_dict(scaler_before)
                    before.restore()
                    if self._outside is not None:
                        self._outside.restore()
                    if self.run.sharded and self.moved:
                        forget_whole(self.run.modules())
            _say_which(error, self.arrived, copied=not self.moved or self._copies())
            raise

    def _before(self) -> Snapshot:
        """Everything that this step may disturb. Parameters and optimizer are copied only where something after the
        optimizer's step, or before it, can fail: with teleports and second looks."""
        run, copies = self.run, self._copies()
        everything = list({id(p): p for p in (*run.parameters, *run.held())}.values())
        followers = () if run.teleporter is None else run.teleporter.followers
        averaged = [p for follower in followers for p in follower.parameters()]
        return Snapshot(
            modules=run.modules(),
            parameters=[*everything, *averaged] if copies else (),
            gradients=everything,
            optimizer=run.optimizer if copies else None,
        )

    def _copies(self) -> bool:
        """Whether parameters and optimizer are copied before the step."""
        return self.teleports or self.run.aggregator.looks_twice()

    def _steps(self) -> StepReport:
        run = self.run
        for optimizer in trajectory.each(run.optimizer):
            optimizer.zero_grad()
        self.emptied = all(p.grad is None for p in run.held())
        watch: Watch | None = None
        try:
            prepared, verdict, jump, noise = self._looked()
            self._note_outside(prepared)
            if run.taken and prepared.batch.shared:
                watch = Watch(run.optimizer, prepared.batch.shared, run.moved)
            report = self._move(answer.decided(run, prepared, verdict, jump))
        except NonFiniteError:
            if self.scale is None or self.moved:
                raise
            report = self._move(lambda: tell.skipped(run, self.last))
        if watch is not None and not report.skipped:
            if run.sharded:  # shards are gathered, by processes whose optimizers have moved
                run.processes.settled(lambda: None)
            report = dataclasses.replace(report, taken=watch.taken(prepared.plain, prepared.view.presence))
        if not report.skipped and noise is not None:
            second_look.take_again(run, self.whole, noise)
        self.arrived = True
        return report

    def _looked(self) -> tuple[Prepared, Any, Any, Noise | None]:
        """The batch, the detector's verdict, the teleport, and the noise of the first look."""
        moment = Snapshot(modules=self.run.modules()) if self.teleports else None
        prepared, noise = self._look()
        verdict = conflict.look(self.run, prepared)
        jump = conflict.teleport(self.run, self.whole, prepared, verdict)
        if moment is not None and jump is not None and jump.accepted:
            # The step starts again at the new point. After a refusal the old graph is still valid.
            moment.restore()
            prepared, noise = self._look()
        return prepared, verdict, jump, noise

    def _look(self) -> tuple[Prepared, Noise | None]:
        """Evaluate every batch of the step; and for a second look the noise under which the first batch was."""
        run = self.run
        others = []
        for closure in self.further:
            self.last, features = inputs.evaluated(closure)
            others.append(other_view(run, self.last, features, self.scale))
        noise = Noise() if run.aggregator.looks_twice() else None
        products = self._curvature()
        *before, last = self.pieces
        for closure in before:
            self.last, features = inputs.evaluated(closure)
            micro.add(run, self.last, features, self.scale)
        self.last, features = inputs.evaluated(last)
        self._check_unwritten()
        return prepare(run, self.last, features, self.scale, others, self._inner(), products), noise

    def _check_unwritten(self) -> None:
        """
        Raises:
            ConfigurationError: a closure has written gradients, which those of the step would be added to.
        """
        if self.emptied and any(p.grad is not None for p in self.run.held()):
            raise ConfigurationError(
                "the closure wrote into .grad of parameters that the optimizer holds: it calls backward itself. A step "
                "takes the gradients of the losses that the closure returns: leave that call out."
            )

    def _inner(self) -> Callable[..., StepView]:
        """The service behind ``view.inner``: inner gradient steps on this step's batch, undone afterwards."""
        run = self.run
        if run.sharded:
            return functools.partial(_refused, run.who, "inner gradient steps (view.inner)")
        return functools.partial(
            inner_loop.descend,
            evaluate=lambda: run.named(*inputs.evaluated(self.whole)),
            parameters=[*run.parameters, *run.held()],
            modules=run.modules(),
            together=run.processes if run.processes.several() else None,
        )

    def _curvature(self) -> Curvature:
        """The service behind ``view.curvature``, made just before the step's batch is evaluated: it evaluates the batch
        again as from here."""
        run = self.run
        if run.sharded:
            return functools.partial(_refused, run.who, "second derivatives (view.curvature)")
        served = run.aggregator.needs == Needs.JACOBIAN  # the view refuses others, for whom nothing has to be kept
        return functools.partial(
            curvature.products,
            evaluate=lambda: run.named(*inputs.evaluated(self.whole)),
            shared=run.shared(),
            start=Snapshot(modules=run.modules() if served else (), noise=served),
            modules=run.modules(),
            scale=self.scale,
            together=run.processes if run.processes.several() else None,
        )

    def _together(self, closures: Sequence[Closure]) -> Closure:
        """The micro-batches of a step as one batch."""

        def evaluate() -> tuple[Losses, Features]:
            parts = [inputs.evaluated(c) for c in closures]
            self.run.refuse_anonymous(parts[0][0])
            return waiting.together(parts, self.run.progress.tasks)

        return evaluate

    def _note_outside(self, prepared: Prepared) -> None:
        inside = {id(p) for p in (*self.run.held(), *self.run.parameters)}
        self._outside = Gradients([p for i, p in prepared.batch.leaves.items() if i not in inside])

    def _move(self, finish: Callable[[], StepReport]) -> StepReport:
        """Write the gradients and let the optimizers move; a Ctrl-C waits until both are done."""
        run, scaler = self.run, self.scaler
        with interrupts_held():
            report = finish()
            if run.teleporter is not None and not report.skipped:
                run.teleporter.memory.remember(list(run.shared()))
            self.moved = True
            for optimizer in trajectory.each(run.optimizer):
                optimizer.step() if scaler is None else scaler.step(optimizer)
            if scaler is not None:
                scaler.update()
            self.arrived = not run.aggregator.looks_twice() or report.skipped
        return report


def _refused(who: str, what: str, *args: object, **options: object) -> Any:
    """
    Raises:
        ConfigurationError: always.
    """
    raise ConfigurationError(
        f"aggregator {who} asks for {what}, and a sharded trunk (FSDP2) does not serve them: FSDP keeps the graph from "
        f"the parameters, has one derivative only, and moves shards. Use another method, or keep the trunk whole on "
        f"every process."
    )


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
            "are as before the step, except for parameters and optimizer: the optimizer's own step failed, and may "
            "have moved some of them"
        )
    error.add_note(f"mtlcore: parameters, optimizer, method and counters {where}.")
