"""From what the user handed over to the view: the batch, its task gradients, and what the method may see of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtlcore import audit, configuration, inputs, reading, scaling
from mtlcore.asking.seeds import step_seed
from mtlcore.contracts import Needs, StepView
from mtlcore.distributed.local import Local
from mtlcore.distributed.processes import Members
from mtlcore.distributed.sharded import Mode, Sharded
from mtlcore.distributed.sums import Sums
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.geometry.metric import EUCLIDEAN, Curvature, in_metric, in_metric_of
from mtlcore.gradients import received, waiting
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.losses_only import Weighted
from mtlcore.gradients.task_gradients import TaskGradients
from mtlcore.inputs import Features, Losses
from mtlcore.step.run import Pending, Run


class Prepared(NamedTuple):
    """One evaluated batch, differentiated but not yet written anywhere."""

    view: StepView
    batch: Batch
    found: TaskGradients
    gramian: Tensor | None
    """(k, k) of the tasks present."""
    reason: str
    kept: bool
    """Whether the last weights are to be used again."""
    plain: TaskGradients
    """``found`` in the Euclidean metric."""


def prepare(
    run: Run,
    losses: Losses,
    features: Features,
    scale: float | None = None,
    others: Sequence[StepView] = (),
    inner: Callable[..., StepView] | None = None,
    curvature: Curvature | None = None,
) -> Prepared:
    """Changes nothing of the run except for the micro-batches that waited: they are part of this batch.

    Args:
        run: whose batch it is.
        losses: as ``MultiTask.backward`` takes them.
        features: the same.
        scale: of a ``GradScaler``.
        others: views of the other independent batches of this step.
        inner: the service behind ``view.inner``.
        curvature: the service behind ``view.curvature``.
    """
    pending = run.take_pending()
    if pending.waiting:
        losses, features = waiting.together([*pending.waiting, (losses, features)], run.progress.tasks)
    local = _everywhere(run, losses, features, scale, pending)
    presence, batch, needs = local.presence, local.batch, run.needs()
    plain = local.found if scale is None else scaling.Scaled(local.found, scale)
    found, reason = plain, local.reason
    if run.metric != EUCLIDEAN and batch.shared:
        found = in_metric(found, run.optimizer, batch.shared, run.metric)
        reason = f"{reason}; in the optimizer's metric"
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
        step=run.progress.step,
        generator=lambda: step_seed(run.progress.seed, run.progress.step),
        features=inputs.flat(features),
        others=others,
        inner=inner,
        curvature=in_metric_of(found, curvature),
        needs=needs,
    )
    pieces = f"; through the graphs of {len(pending.waiting) + 1} micro-batches" if pending.waiting else ""
    return Prepared(view, batch, found, gram, reason + pieces, local.kept, plain)


def other_view(run: Run, losses: Losses, features: Features, scale: float | None) -> StepView:
    """The view of a further independent batch; its rows are copied, because the buffer serves the next batch."""
    prepared = prepare(run, losses, features, scale)
    view, gram = prepared.view, prepared.gramian
    return StepView(
        losses=view.losses,
        gramian=None if gram is None else view.presence.spread_pairs(gram, float("nan")),
        jacobian=view.jacobian.clone() if run.aggregator.needs == Needs.JACOBIAN else None,
        present=view.presence,
        step=run.progress.step,
        needs=run.aggregator.needs,
    )


def make_batch(run: Run, losses: Losses, features: Features, scale: float | None = None) -> Batch:
    """What the user handed over, checked."""
    if torch.is_inference_mode_enabled():
        raise ConfigurationError(
            "a step cannot be taken inside torch.inference_mode(): nothing made there has gradients, nor can be "
            "written to outside of it. Leave that block."
        )
    presence, scalars = inputs.present_losses(losses, run.progress.tasks)
    if run.trunk is not None and not run.sharded:
        audit.check_unchanged(run.trunk, run.parameters)
    seen = inputs.flat(features)
    if run.anonymous(losses):
        assert isinstance(losses, Tensor)
        return Batch(presence, scalars, seen, run.shared(), losses, scale, losses)
    return Batch(presence, scalars, seen, run.shared(), inputs.stack(scalars), scale)


def members(run: Run, losses: Losses) -> Members:
    """What takes part in this run, for the first step of several processes."""
    heads = [] if run.heads is None else list(run.heads.parameters())
    if run.sharded:  # between forward and backward, FSDP has whole ones in their place
        heads = run.heads_then
    mine = set(map(id, run.parameters))
    given = losses.values() if isinstance(losses, Mapping) else losses
    return Members(
        modules=run.modules(),
        parameters=run.parameters,
        told=[p for p in {id(p): p for p in (*heads, *run.held())}.values() if id(p) not in mine],
        about={**{r: configuration.describe(p) for r, p in run.plugins().items()}, **run.settings()},
        teleport=run.teleporter is not None,
        losses=[v for v in given if isinstance(v, Tensor)],
    )


# --- this process, and all of them ------------------------------------------------------------------------------


def _everywhere(run: Run, losses: Losses, features: Features, scale: float | None, pending: Pending) -> Local:
    """What this process finds; with several processes, what all of them find together.

    Raises:
        ConfigurationError: what several processes cannot do.
    """
    work = functools.partial(_here, run, losses, features, scale, pending)
    if not run.processes.several(run.modules(), run.parameters):
        return work()
    whole = run.whole_rows or (run.taken and not run.sharded)  # shards need no rows to be compared with a step
    needs = Needs.JACOBIAN if whole else run.needs()
    return run.processes.merged(work, functools.partial(members, run, losses), _tag(run, scale), needs)


def _tag(run: Run, scale: float | None) -> str:
    """What must be the same on all processes."""
    scaled = "" if scale is None else f"; gradients scaled by {scale:g}"
    return f"step {run.progress.step}; seed {run.progress.seed}{scaled}"


def added(run: Run, losses: Losses, features: Features, scale: float | None, pending: Pending) -> Pending:
    """One more micro-batch that is not the last, of a trunk in shards.

    Raises:
        As :func:`prepare`.
    """
    waits = run.needs() == Needs.LOSSES or not run.shared()

    def work() -> Local:
        return _sharded(run, make_batch(run, losses, features, scale), run.needs(), pending, last=False)

    tag = f"{_tag(run, scale)}; a micro-batch"
    run.processes.several(run.modules(), run.parameters)
    if run.processes.wire is None:
        work()  # refuses
    sums, waiting = pending.shards, pending.waiting
    try:
        local = run.processes.added(work, functools.partial(members, run, losses), tag, start=not waits)
        assert isinstance(local.found, Sharded)
        sums = None if waits else local.found.sums
    except NonFiniteError:
        if scale is None:
            raise
        if not waits:  # a graph that waits overflows once more
            sums = sums or Sums()
            sums.overflowed = True
    return Pending(waiting=(*waiting, (losses, features))) if waits else Pending(shards=sums)


def _here(run: Run, losses: Losses, features: Features, scale: float | None, pending: Pending) -> Local:
    """What this process finds in its batch."""
    micro, needs = pending.added, run.needs()
    batch = make_batch(run, losses, features, scale)
    if run.sharded:
        return _sharded(run, batch, needs, pending)
    audit.check_reached(batch)
    if not run.reach.done and batch.vector is None:
        run.reach.look(batch, run.names)
    if micro is not None:
        run.refuse_anonymous(losses)
    if needs > Needs.LOSSES or micro is not None:
        batch = received.found(batch.without_unread()) if batch.shared else batch.without_unread()
    if micro is None:
        found, reason, kept = _collect(run, batch, needs)
        return Local(batch, batch.presence, found, reason, kept)
    micro.add(batch, inputs.values_of(batch.losses, batch.stacked, batch.names))
    presence, values, found, reason = micro.finish(batch.presence.names, batch.shared)
    reading.check_heads(found.heads, presence.present)
    return Local(batch, presence, found, reason, values=values)


def _collect(run: Run, batch: Batch, needs: Needs) -> tuple[TaskGradients, str, bool]:
    """Task gradients, the reason, and whether the last weights are to be used again."""
    if not batch.shared:
        return Weighted(batch), _FROZEN, False
    several = run.processes.wire is not None
    if run.keeper is not None and needs > Needs.LOSSES:
        kept = run.keeper.reuse(batch, run.processes.presence if several else None)
        if kept is not None:
            return kept, _KEPT, True
    found, reason = run.planner.collect(needs, batch, rows=several or run.whole_rows)
    return found, reason, False


def _sharded(run: Run, batch: Batch, needs: Needs, pending: Pending, last: bool = True) -> Local:
    """A trunk in shards, whose parameters the graph does not show.

    Raises:
        ConfigurationError: what is not served there.
        NonFiniteError: a micro-batch before overflowed.
    """
    wire = run.processes.wire
    if wire is None:
        raise ConfigurationError(
            "process_group=None, or one process alone, is not served with a sharded trunk (FSDP2): take several "
            "processes, or keep the trunk whole."
        )
    if pending.shards is not None and pending.shards.overflowed:
        raise NonFiniteError("a loss of an earlier micro-batch was not finite.")
    mode, reason = _mode(run, batch, needs, last and not pending)
    told, heads = members(run, []).told, (run.heads, run.heads_then)
    found = Sharded(batch, run.modules(), heads, told, wire.size, mode, pending.shards)
    return Local(batch, batch.presence, found, reason, kept=mode == "kept")


def _mode(run: Run, batch: Batch, needs: Needs, whole: bool) -> tuple[Mode, str]:
    """What is read of a trunk in shards, and why; ``whole``: in one batch."""
    run.planner.check_forced(needs)
    if not batch.shared:
        return "losses", _FROZEN
    if needs == Needs.LOSSES:
        return "losses", "losses: the method needs no task gradients, one backward pass through FSDP"
    if whole and run.keeper is not None and not run.keeper.due(batch, run.processes.presence):
        return "kept", _KEPT
    if run.planner.at_features:
        if not whole:
            raise ConfigurationError(
                'gradients="features" takes the whole batch at once where the trunk is sharded (FSDP2): leave '
                'accumulate out, or use gradients="auto".'
            )
        return "features", "features: forced"
    return "rows", "sharded: one backward pass through FSDP for each task"


_KEPT = "features: the weights of an earlier step, one pass through the trunk"
_FROZEN = (
    "losses: no parameter of the trunk requires gradients, so that the heads train on their own losses and a method "
    "that reads gradients is not asked"
)
