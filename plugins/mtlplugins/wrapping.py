"""Base of the wrappers: aggregators that change the input or the answer of another aggregator.

A wrapper is a frozen dataclass. Its first field is the wrapped method, given by its registered name or as an instance.
:attr:`Wrapper.keeps` says which promises of that method hold for the wrapper, too. All others are dropped, because a
promise about gradients need not hold for averaged, clipped or weighted gradients. The state has the entries of the
wrapped method, with keys that begin with ``method.``, and the wrapper's own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from mtlcore import Aggregation, Aggregator, Needs, StepView, create
from mtlcore.contracts import State
from mtlcore.errors import ConfigurationError

T = TypeVar("T")
_PREFIX = "method."


@dataclasses.dataclass(frozen=True)
class Wrapper(Aggregator):
    """Abstract: an aggregator around another one.

    Args:
        method: the wrapped aggregator, a registered name (with its default hyper-parameters) or an instance.
    """

    keeps: ClassVar[frozenset[str]] = frozenset()
    """Laws that hold for the wrapper whenever they hold for the wrapped method."""
    adds: ClassVar[frozenset[str]] = frozenset({"resume-equivalent"})
    """Laws that hold for every wrapped method."""
    least: ClassVar[Needs] = Needs.LOSSES
    """What the wrapper itself reads."""

    method: str | Aggregator = "upgrad"

    def __post_init__(self) -> None:
        super().__post_init__()
        wrapped = create("aggregator", self.method) if isinstance(self.method, str) else self.method
        if not isinstance(wrapped, Aggregator):
            raise ConfigurationError(
                f"{type(self).__name__}(method={self.method!r}): method must be a registered aggregator's name or an "
                f"mtlcore.Aggregator."
            )
        object.__setattr__(self, "method", wrapped)

    @property
    def wrapped(self) -> Aggregator:
        """The wrapped method."""
        assert isinstance(self.method, Aggregator)
        return self.method

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """What either of the two reads."""
        return max(self.least, self.wrapped.needs)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """The wrapped method's promises that are kept, and those that the wrapper adds."""
        return (self.wrapped.claims & self.keeps) | self.adds

    @property
    def degree(self) -> float:  # type: ignore[override]
        """That of the wrapped method."""
        return self.wrapped.degree

    @property
    def batches(self) -> int:  # type: ignore[override]
        """As many as the wrapped method asks for."""
        return self.wrapped.batches

    @property
    def handles_absent(self) -> bool:  # type: ignore[override]
        """As the wrapped method."""
        return self.wrapped.handles_absent

    def looks_twice(self) -> bool:  # type: ignore[override]
        """Only if the wrapped method does."""
        return self.wrapped.looks_twice()

    def init(self, n_tasks: int) -> State:
        """The wrapped method's state."""
        return within(self.wrapped.init(n_tasks))

    def observe(self, view: StepView, state: State) -> State:
        """The wrapped method's second look."""
        return {**state, **within(self.wrapped.observe(view, part_of(state)))}

    def asked(self, view: StepView, state: State) -> tuple[Aggregation, State]:
        """The wrapped method's answer, and the wrapper's state with its next one."""
        answer = self.wrapped.aggregate(view.limited_to(self.wrapped.needs), part_of(state))
        return answer, {**state, **within(answer.state)}

    def heads(self, answer: Aggregation) -> Tensor | None:
        """Factors (K,) of the task-specific parameters, the same as without the wrapper."""
        if answer.head_weights is None and self.wrapped.needs == Needs.LOSSES:
            return answer.weights
        return answer.head_weights


def part_of(state: State) -> State:
    """The wrapped method's part of a wrapper's state."""
    return {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}


def within(state: State) -> State:
    """A wrapped method's state as part of a wrapper's."""
    return {_PREFIX + name: value for name, value in state.items()}


Inner = Callable[[StepView, Callable[[StepView], Tensor], int, float], StepView]
Curvature = Callable[[StepView, Tensor], Tensor]


def changed(
    view: StepView,
    *,
    losses: Tensor | None = None,
    gramian: Tensor | None = None,
    jacobian: Tensor | None = None,
    others: Sequence[StepView] | None = None,
    inner: Inner | None = None,
    curvature: Curvature | None = None,
) -> StepView:
    """The same view with other losses or gradients. Given a Gramian alone, there are no rows. Services that are not
    given are those of the view."""
    if inner is None and view.inner is not None:
        inner = functools.partial(_past, view.inner)
    if curvature is None and view.curvature is not None:
        curvature = functools.partial(_past, view.curvature)
    return StepView(
        losses=view.losses if losses is None else losses,
        gramian=gramian,
        jacobian=jacobian,
        present=None if view.complete else view.present,
        task_names=view.task_names,
        task_index=view.task_index,
        step=view.step,
        generator=view.generator,
        features=view.features,
        others=view.others if others is None else others,
        inner=inner,
        curvature=curvature,
    )


def _past(service: Callable[..., T], _: StepView, *arguments: Any) -> T:
    """The service of the view that was changed, for the changed one."""
    return service(*arguments)


def scaled(view: StepView, factors: Tensor, needs: Needs, *, losses: bool = False) -> StepView:
    """The view with task i's gradient multiplied by factor i (K,), as much of it as ``needs`` asks for, and with
    ``losses`` its loss, too. In the further batches of the step, along inner steps and in second derivatives the
    factors are the same."""
    gramian = jacobian = None
    if needs >= Needs.GRAMIAN:
        gramian = view.gramian * factors[:, None] * factors[None, :]
    if needs == Needs.JACOBIAN:
        jacobian = _scaled_rows(view.jacobian, factors)
    by_task = dict(zip(view.task_index, factors.tolist()))
    inner, curvature = view.inner, view.curvature

    def descend(_: StepView, weigh: Callable[[StepView], Tensor], steps: int, lr: float) -> StepView:
        """The steps on the scaled gradients, and the view there."""
        assert inner is not None

        def at(point: StepView) -> StepView:
            return scaled(point, factors, Needs.LOSSES, losses=losses)

        return at(inner(lambda point: weigh(at(point)).cpu().double() * factors, steps, lr))

    def products(_: StepView, vectors: Tensor) -> Tensor:
        """With the Hessians times the factors."""
        assert curvature is not None
        return curvature(_scaled_rows(vectors, factors))

    return changed(
        view,
        losses=view.losses * factors if losses else None,
        gramian=gramian,
        jacobian=jacobian,
        others=[_other(batch, by_task, losses) for batch in view.others],
        inner=None if inner is None else descend,
        curvature=None if curvature is None else products,
    )


def _other(batch: StepView, by_task: dict[int, float], losses: bool) -> StepView:
    """A further batch, scaled. Its tasks may be others; a method reads only those that the first batch has, too."""
    factors = torch.tensor([by_task.get(i, 1.0) for i in batch.task_index], dtype=torch.float64, device="cpu")
    rows = batch.jacobian
    return changed(batch, losses=batch.losses * factors if losses else None, jacobian=_scaled_rows(rows, factors))


def _scaled_rows(rows: Tensor, factors: Tensor) -> Tensor:
    return (rows.double() * factors.to(rows.device)[:, None]).to(rows.dtype)


def finite(factors: Tensor) -> Tensor:
    """Factors (K,) with the reciprocal of zero replaced by zero: a task without a gradient keeps none."""
    return torch.where(factors.isfinite(), factors, 0.0)
