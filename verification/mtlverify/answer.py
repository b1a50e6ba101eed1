"""Asking a method one question. Laws look at methods only through here, so that all of them ask alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mtlcore import Aggregation, Aggregator, Needs, StepView
from mtlcore.asking.aggregator import call
from mtlcore.errors import PluginError
from mtlcore.linalg import combine
from mtlverify.example import Example


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a method answered, and the direction that follows from it.

    Args:
        direction: (P,) in the dtype of the rows.
        weights: (K,) float64, or None if the method gave a direction.
        dtype: in which the method gave its weights or its direction.
        state: the next state.
        jacobian: (K, P) the rows it was asked about.
    """

    direction: Tensor
    weights: Tensor | None
    state: dict[str, Tensor]
    jacobian: Tensor
    dtype: torch.dtype

    @property
    def length(self) -> float:
        """|d|, computed without overflow."""
        return float(self.direction.double().norm())

    @property
    def size(self) -> float:
        """The magnitude out of which d was made, |w_1||g_1| + ... + |w_K||g_K|.

        Cancellation makes d shorter than this, and rounding is relative to this, not to |d|. For a method that
        returns no weights it is taken as |g_1| + ... + |g_K|.
        """
        norms = self.jacobian.double().norm(dim=1)
        made_of = float(norms.sum() if self.weights is None else (self.weights.abs() * norms).sum())
        return max(made_of, self.length)


def view_of(
    plugin: Any,
    jacobian: Tensor,
    losses: Tensor,
    *,
    seed: int | torch.Generator = 0,
    step: int = 0,
    needs: Needs | None = None,
    present: Tensor | None = None,
) -> StepView:
    """The view of one step, limited to what the plugin says it needs. Further batches are this same batch again."""
    limit = plugin.needs if needs is None else needs

    def view(others: tuple[StepView, ...] = ()) -> StepView:
        return StepView(
            losses=losses, jacobian=jacobian, present=present, generator=seed, step=step, others=others, needs=limit
        )

    return view(tuple(view() for _ in range(getattr(plugin, "batches", 1) - 1)))


def start(plugin: Aggregator, example: Example) -> int:
    """Number of the step with which a run starts: 0, but for a method without a state any: it knows no first step."""
    return 0 if plugin.init(example.n_tasks) else example.seed


def ask(plugin: Aggregator, example: Example, *, state: dict[str, Tensor] | None = None, **changes: Any) -> Answer:
    """One step of a method on ``example`` (with ``changes`` to it); a fresh state unless one is given."""
    at = start(plugin, example)
    example = example.with_(**changes) if changes else example
    view = view_of(plugin, example.jacobian, example.losses, seed=example.seed, step=at)
    state = plugin.init(example.n_tasks) if state is None else state
    return answered(stepped(plugin, view, state, example.jacobian), example.jacobian)


def stepped(plugin: Aggregator, view: StepView, state: dict[str, Tensor], jacobian: Tensor) -> Aggregation:
    """``plugin.aggregate``, looked at as in a step: an answer of a wrong shape or type is refused in the core's words.

    What the method raises comes as it was raised, and numbers that are not finite pass, because laws measure them.
    """
    try:
        return call(plugin, view, state, jacobian.shape[1])
    except PluginError as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None
        with torch.no_grad():  # as in a step
            returned = plugin.aggregate(view, dict(state))
        if isinstance(returned, Aggregation):
            given = (returned.weights, returned.head_weights, returned.direction)
            if any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in given):
                return returned
        raise


def answered(aggregation: Aggregation, jacobian: Tensor) -> Answer:
    """The answer in one form, whichever form the method chose."""
    if aggregation.weights is not None:
        weights = aggregation.weights.detach().to(torch.float64)
        return Answer(combine(jacobian, weights), weights, dict(aggregation.state), jacobian, aggregation.weights.dtype)
    assert aggregation.direction is not None  # the constructor of Aggregation asks for exactly one of the two
    direction = aggregation.direction.detach()
    return Answer(direction, None, dict(aggregation.state), jacobian, direction.dtype)


def uses_randomness(plugin: Aggregator) -> bool:
    """Whether the answer depends on the seed of the generator, found out by asking with different seeds.

    Asked about ordinary gradients and about gradients all of which conflict: PCGrad's order matters there only.
    """
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    for rows in (ordinary, ordinary - 1.1 * ordinary.mean(dim=0)):
        example = Example(rows, torch.ones(4, dtype=torch.float64))
        first = ask(plugin, example).direction
        if any(not torch.equal(first, ask(plugin, example, seed=seed).direction) for seed in range(1, 9)):
            return True
    return False
