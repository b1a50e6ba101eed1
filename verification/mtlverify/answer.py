"""Asking a method one question. Laws look at methods only through here, so that all of them ask alike."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mtlcore import Aggregation, Aggregator, Needs, StepView
from mtlcore.errors import PluginError
from mtlcore.hosting import ask as call
from mtlcore.hosting import registry
from mtlcore.linalg import combine
from mtlverify.example import Example

STEEPEST = 2.0
"""A degree beyond this, or below minus this, buys no tolerance."""
NATURAL = 2.0**4
"""How much more than necessary a method may have added up before the surplus counts as its own fault."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a method answered about the tasks present, and the direction that follows from it.

    Args:
        direction: (P,) in the dtype of the rows.
        weights: (K,) float64, or None if the method gave a direction.
        dtype: in which the method gave its weights or its direction.
        state: the next state.
        jacobian: (K, P) the rows it was asked about: those of the tasks present.
        losses: (K,) float64 losses of these tasks.
        head_weights: (K,) float64 weights of the task-specific parameters, if the method gave some.
        tasks: which of all tasks these are.
        degree: of homogeneity that the method declares; the length of its directions goes with |g|^degree.
    """

    direction: Tensor
    weights: Tensor | None
    state: dict[str, Tensor]
    jacobian: Tensor
    dtype: torch.dtype
    losses: Tensor | None = None
    head_weights: Tensor | None = None
    tasks: tuple[int, ...] = ()
    degree: float = 1.0

    @property
    def length(self) -> float:
        """|d|, computed without overflow."""
        return float(torch.linalg.vector_norm(self.direction.double()))

    @functools.cached_property
    def size(self) -> float:
        """The magnitude that d is judged by: what it has to be made of. Cancellation makes d shorter than that, and
        rounding is relative to this, not to |d|.

        It is |w_1||g_1| + ... + |w_K||g_K|, as far as d and J explain it: at most |g_1| + ... + |g_K| (powers of these,
        of the degree that the method declares), or a few times the least sum of weights that gives this d. A method
        that adds a multiple of a null vector to its weights does not thereby buy a tolerance. For a method that returns
        no weights it is |g_1| + ... + |g_K|.
        """
        norms = torch.linalg.vector_norm(self.jacobian.double(), dim=1)
        own = norms if self.degree == 1.0 else norms[norms > 0] ** max(-STEEPEST, min(STEEPEST, self.degree))
        total = float(own.sum())
        if self.weights is None:
            return max(total, self.length)
        made_of = float((self.weights.abs() * norms).sum())
        if made_of > max(total, NATURAL * self.length):
            made_of = min(made_of, max(total, NATURAL * self._necessary(norms)))
        return max(made_of, self.length)

    @property
    def cancels(self) -> bool:
        """Whether the weights are far larger than this direction needs: they cancel, and are hardly determined."""
        if self.weights is None:
            return False
        made_of = float((self.weights.abs() * torch.linalg.vector_norm(self.jacobian.double(), dim=1)).sum())
        return made_of > 2.0 * NATURAL * self.size

    def _necessary(self, norms: Tensor) -> float:
        """Sum of the weights, in unit rows, of least norm that give d."""
        alive = norms > 0
        if self.length == 0 or not bool(alive.any()) or not bool(self.direction.isfinite().all()):
            return 0.0
        units = self.jacobian.double()[alive] / norms[alive, None]
        unit = self.direction.double() / self.length
        found = torch.linalg.lstsq(units.T, unit[:, None], driver="gelsd").solution
        return float(found.abs().sum()) * self.length


def view_of(
    plugin: Any,
    jacobian: Tensor,
    losses: Tensor,
    *,
    seed: int | torch.Generator = 0,
    step: int = 0,
    needs: Needs | None = None,
    present: Tensor | None = None,
    tasks: Sequence[int] | None = None,
) -> StepView:
    """The view of one step, limited to what the plugin says it needs.

    Further independent batches have the same tasks with gradients of other lengths; ``tasks`` says which task is which,
    so that they follow a task that is listed elsewhere.
    """
    limit = plugin.needs if needs is None else needs
    names = range(len(losses)) if tasks is None else tasks

    def view(batch: int, others: tuple[StepView, ...] = ()) -> StepView:
        if not batch:
            return StepView(
                losses=losses, jacobian=jacobian, present=present, generator=seed, step=step, others=others,
                curvature=straight, needs=limit,
            )  # fmt: skip
        factors = torch.tensor([2.0 ** ((i + batch) % 3 - 1) for i in names], dtype=torch.float64)
        made = StepView(
            losses=losses * factors, jacobian=jacobian * factors.to(jacobian)[:, None],
            present=present, generator=seed, step=step, others=others, needs=limit,
        )  # fmt: skip
        return made if present is None or plugin.handles_absent else made.restricted(present)

    return view(0, tuple(view(batch) for batch in range(1, getattr(plugin, "batches", 1))))


def straight(_: StepView, vectors: Tensor) -> Tensor:
    """``view.curvature`` of losses that are linear, which is all that a Jacobian says of them."""
    return vectors.new_zeros(vectors.shape[1])


def start(plugin: Aggregator, example: Example) -> int:
    """Number of the step with which a run starts: 0, but for a method without a state any: it knows no first step."""
    return 0 if plugin.init(example.n_tasks) else example.seed


def ask(plugin: Aggregator, example: Example, *, state: dict[str, Tensor] | None = None, **changes: Any) -> Answer:
    """One step of a method on ``example`` (with ``changes`` to it); a fresh state unless one is given."""
    at = start(plugin, example)
    example = example.with_(**changes) if changes else example
    view = view_of(plugin, example.jacobian, example.losses, seed=example.seed, step=at)
    state = plugin.init(example.n_tasks) if state is None else state
    aggregation = stepped(plugin, view, state, example.jacobian)
    return answered(aggregation, example.jacobian, example.losses, degree=degree_of(plugin))


def degree_of(plugin: Any) -> float:
    """Of homogeneity: A(tJ) = t^degree A(J)."""
    return float(getattr(plugin, "degree", 1.0))


class _Heard:
    """A method, and what it last returned: the core refuses some answers, and a law wants to look at them."""

    def __init__(self, plugin: Aggregator) -> None:
        self.plugin = plugin
        self.returned: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plugin, name)

    def aggregate(self, view: StepView, state: dict[str, Tensor]) -> Any:
        """As the method; remembered."""
        self.returned = self.plugin.aggregate(view, state)
        return self.returned


def stepped(plugin: Aggregator, view: StepView, state: dict[str, Tensor], jacobian: Tensor) -> Aggregation:
    """``plugin.aggregate``, looked at as in a step: an answer of a wrong shape or type is refused in the core's words.

    What the method raises comes as it was raised, and numbers that are not finite pass, because laws measure them.
    """
    heard = _Heard(plugin)
    try:
        return call(cast(Aggregator, heard), view, state, jacobian.shape[1])
    except PluginError as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None
        if isinstance(heard.returned, Aggregation):
            given = (heard.returned.weights, heard.returned.head_weights, heard.returned.direction)
            if any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in given):
                return heard.returned
        named = registry().identify
        raise PluginError(str(error).replace(named(heard), named(plugin))) from None


def answered(
    aggregation: Aggregation,
    jacobian: Tensor,
    losses: Tensor | None = None,
    present: Tensor | None = None,
    degree: float = 1.0,
) -> Answer:
    """The answer in one form, whichever form the method chose; about the tasks present, if not all are."""
    k, keep = len(jacobian), None if present is None or bool(present.all()) else present

    def of_present(vector: Tensor | None) -> Tensor | None:
        if vector is None:
            return None
        plain = vector.dtype == torch.float64 and not vector.requires_grad and vector.device.type == "cpu"
        found = vector if plain or vector.device.type == "meta" else vector.detach().to("cpu", torch.float64)
        return found[keep] if keep is not None and len(found) == k else found

    if keep is not None:
        jacobian, losses = jacobian[keep], None if losses is None else losses[keep]
    weights, heads = of_present(aggregation.weights), of_present(aggregation.head_weights)
    tasks = tuple(range(k) if keep is None else keep.nonzero().flatten().tolist())
    if weights is not None and aggregation.weights is not None:
        direction, dtype = combine(jacobian, weights), aggregation.weights.dtype
    else:
        assert aggregation.direction is not None  # the constructor of Aggregation asks for exactly one of the two
        direction = aggregation.direction.detach()
        dtype = direction.dtype
    return Answer(direction, weights, dict(aggregation.state), jacobian, dtype, losses, heads, tasks, degree)


def uses_randomness(plugin: Aggregator) -> bool:
    """Whether the answer depends on the seed of the generator; asked once per method with its hyper-parameters."""
    try:
        return _cached_randomness(plugin)
    except TypeError:  # hyper-parameters that cannot be hashed
        return _asked_for_randomness(plugin)


@functools.lru_cache(maxsize=256)
def _cached_randomness(plugin: Aggregator) -> bool:
    return _asked_for_randomness(plugin)


def _asked_for_randomness(plugin: Aggregator) -> bool:
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
