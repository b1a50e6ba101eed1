"""A micro-batch that is not the last of its step."""

from __future__ import annotations

from mtlcore import inputs
from mtlcore.errors import NonFiniteError
from mtlcore.gradients import received
from mtlcore.gradients.accumulation import MicroBatches
from mtlcore.inputs import Features, Losses
from mtlcore.step import second_look
from mtlcore.step.prepare import added, make_batch
from mtlcore.step.run import Pending, Run


def add(run: Run, losses: Losses, features: Features, scale: float | None) -> None:
    """Differentiate it, or let its graph wait for the weights; ``MultiTask.accumulate`` says when which. After an
    error the micro-batches so far are forgotten.

    Args:
        run: whose step it is a part of.
        losses: as ``MultiTask.accumulate`` takes them.
        features: the same.
        scale: of a ``GradScaler``; under it an overflow makes a skipped step, and is not an error here.
    """
    pending = run.take_pending()
    second_look.check_taken(run)
    run.refuse_anonymous(losses)
    if run.sharded:
        run.pending = added(run, losses, features, scale, pending)
        return
    batch = make_batch(run, losses, features, scale)
    if run.planner.waits_for_weights(run.needs()) and batch.shared:
        if scale is None:
            inputs.values_of(batch.losses, batch.stacked, batch.names)
        run.pending = Pending(waiting=(*pending.waiting, (losses, features)))
        return
    batch, sums = received.found(batch.without_unread()), pending.added or MicroBatches()
    try:
        sums.add(batch, inputs.values_of(batch.losses, batch.stacked, batch.names))
    except NonFiniteError:
        if scale is None:
            raise
        sums.overflowed = True
    run.pending = Pending(added=sums)
