"""Methods in a broken training step: laws about the step look at what surrounds a method, and so do these mutants.

``multitask`` is what :class:`mtlverify.stepping.Stepper` takes in the place of ``mtlcore.MultiTask``. ``KILLED_BY``
says which laws must see the blunder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

from mtlcore import MultiTask
from mtlcore.geometry import whole
from mtlcore.gradients.task_gradients import TaskGradients
from mtlcore.step import prepare
from mtlverify.mutants.twins import ConeMean, Mean

frozen = dataclasses.dataclass(frozen=True)


def _as(forced: str, *args: Any, **options: Any) -> MultiTask:
    """Whatever metric is asked for."""
    return MultiTask(*args, **{**options, "metric": forced})


class _Spoiled(MultiTask):
    """One function of the step is another one."""

    where: ClassVar[Any]
    name: ClassVar[str]

    @staticmethod
    def spoil(right: Callable[..., Any]) -> Callable[..., Any]:
        """The wrong function, from the right one."""
        raise NotImplementedError

    def step(self, *args: Any, **options: Any) -> Any:
        """As it is, with the wrong function in its place."""
        wrong = self.spoil(getattr(self.where, self.name))
        with mock.patch.object(self.where, self.name, wrong):
            return super().step(*args, **options)


class _Doubled(_Spoiled):
    where: ClassVar[Any] = whole
    name: ClassVar[str] = "multipliers"

    @staticmethod
    def spoil(right: Callable[..., Any]) -> Callable[..., Any]:
        """Twice as much as is needed."""
        return lambda gram, gains: 2.0 * right(gram, gains)


class _Thirds(_Spoiled):
    where: ClassVar[Any] = prepare
    name: ClassVar[str] = "in_metric"

    @staticmethod
    def spoil(right: Callable[..., Any]) -> Callable[..., Any]:
        """D is taken for 1/3 where it is 1: the same direction, but for the bits."""

        def wrong(inner: TaskGradients, optimizer: Any, parameters: Any, *rest: Any) -> TaskGradients:
            from mtlcore.geometry.metric import InMetric

            size = sum(p.numel() for p in parameters)
            return InMetric(inner, torch.full((size,), 3.0**-0.5, dtype=torch.float64))

        return wrong


class _Unfolded(_Spoiled):
    where: ClassVar[Any] = whole
    name: ClassVar[str] = "ahead"

    @staticmethod
    def spoil(right: Callable[..., Any]) -> Callable[..., Any]:
        """Momentum and decay are forgotten."""

        def wrong(moves: Any, parameters: Any, gradient: Tensor) -> Any:
            found = right(moves, parameters, gradient)
            return found._replace(moved=found.diagonal * gradient)

        return wrong


@frozen
class TheDirectionWillDo(ConeMean):
    """The cone is that of the direction; momentum may go where it likes."""

    multitask: ClassVar[Any] = functools.partial(_as, "optimizer")


@frozen
class ForgetsThePast(Mean):
    """The step is looked at without momentum and decay."""

    multitask: ClassVar[Any] = _Unfolded


@frozen
class TwiceAsMuch(ConeMean):
    """Adds twice what would do: harmless, too, and farther away."""

    multitask: ClassVar[Any] = _Doubled


@frozen
class ThreeThirds(ConeMean):
    """Divides by three and multiplies by three where there is nothing to be done."""

    multitask: ClassVar[Any] = _Thirds


@frozen
class EuclideanAfterAll(ConeMean):
    """Takes inner products of gradients as if all parameters had one unit."""

    multitask: ClassVar[Any] = functools.partial(_as, "euclidean")


KILLED_BY: dict[type, tuple[str, ...]] = {
    TheDirectionWillDo: ("step-non-conflicting", "step-nearest", "step-descent"),
    ForgetsThePast: ("step-non-conflicting", "step-descent"),
    TwiceAsMuch: ("step-nearest",),
    ThreeThirds: ("metric-identity",),
    EuclideanAfterAll: ("step-unit-free",),
}
