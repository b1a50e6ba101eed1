"""The method's answer, and its way into ``.grad``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from mtlcore.asking import aggregator as asking
from mtlcore.contracts import Aggregation, Conflict, Needs
from mtlcore.distributed import answers
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.geometry.metric import STEP
from mtlcore.geometry.promise import Promise
from mtlcore.geometry.whole import settled
from mtlcore.gradients import graph
from mtlcore.gradients.task_gradients import Answer, TaskGradients
from mtlcore.report import StepReport, TeleportResult
from mtlcore.snapshot import interrupts_held
from mtlcore.step import tell
from mtlcore.step.prepare import Prepared
from mtlcore.step.run import Run


def finish(run: Run, prepared: Prepared, conflict: Conflict | None, teleport: TeleportResult | None) -> StepReport:
    """Ask the method, write the gradients, and only then commit the new state.

    Raises:
        As :func:`decided`, and what it returns.
    """
    return decided(run, prepared, conflict, teleport)()


def decided(
    run: Run, prepared: Prepared, conflict: Conflict | None, teleport: TeleportResult | None
) -> Callable[[], StepReport]:
    """Ask the method. What is returned writes the gradients and commits; in between a Ctrl-C or a time limit still
    stops a method that hangs.

    Raises:
        ConfigurationError: feature gradients where they cannot be used.
        PluginError: the method broke its contract.
        NonFiniteError: under a ``GradScaler`` what was written overflowed, so that it will skip the optimizer.
    """
    ask = functools.partial(_ask, run, prepared)
    answer = ask() if run.processes.wire is None else answers.agreed(run.processes, ask, run.who)
    written, target = _written(run, prepared, answer), prepared.found
    whole = run.metric == STEP and bool(prepared.batch.shared)
    if whole:
        answer, written, target = _settled(run, prepared, answer, written)
    # Before the backward pass, which turns all caches over: written then, a report costs half.
    report = tell.report(run, prepared, answer, conflict, teleport)

    def write() -> StepReport:
        with interrupts_held():
            target.write(written)
            _check_scaled(run, prepared)
            if whole:
                run.promise.end()
                run.promise = Promise(run.optimizer, prepared.batch.shared, prepared.batch.scale)
            if run.keeper is not None:
                run.keeper.commit()
            presence = prepared.view.presence
            names = None if prepared.batch.vector is not None else presence.names
            awaited = presence.present if run.aggregator.looks_twice() else None
            run.progress = run.progress.after(names, answer.state, conflict, awaited)
        return report

    return write


def _check_scaled(run: Run, prepared: Prepared) -> None:
    """Weights may take scaled gradients, finite task by task, beyond what their type holds. With several processes
    nobody looks: they would not all see the same."""
    if prepared.batch.scale is None or run.processes.wire is not None:
        return
    leaves = {id(p): p for p in (*prepared.batch.leaves.values(), *run.shared(), *run.held())}
    if not graph.finite([p.grad for p in leaves.values() if p.grad is not None]):
        raise NonFiniteError("the weighted gradients overflow at the present scale.")


def _settled(
    run: Run, prepared: Prepared, answer: Aggregation, written: Answer
) -> tuple[Aggregation, Answer, TaskGradients]:
    """What is written so that the whole step raises no task's loss, and where; and the answer with what was added."""
    batch, presence = prepared.batch, prepared.view.presence
    found = settled(prepared.found, prepared.plain, written, run.optimizer, batch.shared, batch.scale)
    weights = answer.weights
    if weights is not None:
        weights = weights + presence.spread(found.added).to(weights)
    answer = dataclasses.replace(answer, weights=weights, diagnostics={**answer.diagnostics, **found.notes})
    return answer, found.answer, prepared.plain


def _ask(run: Run, prepared: Prepared) -> Aggregation:
    """The method's answer, or its last one again; the plain sum for the heads of a frozen trunk."""
    view, state = prepared.view, run.progress.state
    state = state if state is not None else asking.start(run.aggregator, view.n_tasks)
    if not prepared.batch.shared and run.aggregator.needs > Needs.LOSSES:
        return Aggregation(weights=view.present.double(), state=state)
    if prepared.kept and run.keeper is not None:
        weights, heads, notes = run.keeper.kept()
        return Aggregation(weights=weights, head_weights=heads, state=state, diagnostics=notes)
    size = prepared.batch.size if run.aggregator.needs > Needs.LOSSES else None
    answer = asking.call(run.aggregator, view, state, size)
    if run.keeper is None or prepared.gramian is None:
        return answer
    gram = view.presence.spread_pairs(prepared.gramian, float("nan"))
    notes = run.keeper.renew(answer.weights, answer.head_weights, view.present, gram)
    return dataclasses.replace(answer, diagnostics={**answer.diagnostics, **notes})


def _written(run: Run, prepared: Prepared, answer: Aggregation) -> Answer:
    """What goes into ``.grad``, of the tasks present."""
    presence, whole = prepared.view.presence, prepared.found.weights_whole_losses
    weights, heads = answer.weights, answer.head_weights
    if heads is None and run.aggregator.needs == Needs.LOSSES and not whole:
        heads = weights
    if answer.feature_gradient and not whole:
        raise ConfigurationError(
            f"aggregator {run.who} returns feature gradients, which need a method on losses (needs = Needs.LOSSES), "
            f"the whole batch at once (no micro-batches) and no forced source."
        )
    return Answer(
        weights=None if weights is None else presence.pick(weights),
        direction=answer.direction,
        head_weights=None if heads is None else presence.pick(heads),
        feature_gradient=answer.feature_gradient,
    )
