"""One scalar that stands for all losses: where a trainer calls its ``backward()``, a MultiTask takes its step.

Trainers own the backward pass: they divide the loss by the number of micro-batches, scale it, and call ``backward()``.
So they are given a scalar whose value is the sum of the losses and whose backward pass is ``mt.backward``. What a
trainer multiplied the loss by arrives there as its cotangent c. A scaler's share s of it is known, and handed over as
the scale; the rest, c / s, is what every loss is multiplied by before the method sees it, as in a loop of one's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError, LossError
from mtlcore.inputs import Features, Losses
from mtlcore.multitask import MultiTask
from mtlcore.report import StepReport


def _always() -> bool:
    return True


@dataclasses.dataclass
class Step:
    """What is done when the trainer differentiates.

    Args:
        mt: takes the step.
        losses, features: as ``MultiTask.backward`` takes them.
        last: whether this is the last micro-batch of its step; asked in the backward pass.
        scaler: the trainer's ``GradScaler``, or None.
        told: hears the report of a finished step.
    """

    mt: MultiTask
    losses: Losses
    features: Features
    last: Callable[[], bool] = _always
    scaler: Any = None
    told: Callable[[StepReport], None] | None = None
    done: bool = False

    def take(self, cotangent: float) -> None:
        """The step, or one micro-batch of it.

        Raises:
            LossError: it was taken already.
            MtlError: as ``MultiTask.backward``.
        """
        if self.done:
            raise LossError("this loss was differentiated already: make a new one of a fresh forward pass.")
        losses, features = self.losses, self.features
        self.done, self.losses, self.features = True, (), ()  # the graph must not outlive the step
        scale = _scale(self.scaler)
        scaler = None if scale is None else _Known(scale)
        losses = _times(losses, cotangent if scale is None else cotangent / scale)
        if not self.last():
            self.mt.accumulate(losses, features, scaler=scaler)
            return
        report = self.mt.backward(losses, features, scaler=scaler)
        if self.told is not None:
            self.told(report)


def joint(step: Step, instead: str) -> Tensor:
    """The sum of the losses, whose ``backward()`` takes the step; without gradients (in evaluation) just the sum.

    Args:
        step: what is taken.
        instead: the way out for a method that needs the closure of the step.

    Raises:
        ConfigurationError: a teleport, or a method that looks twice or at several batches.
    """
    check_served(step.mt, instead)
    value = _sum(step.losses)
    if not torch.is_grad_enabled():
        return value
    anchor = torch.zeros((), device=value.device, requires_grad=True)
    found: Tensor = _Joint.apply(anchor, value, step)  # type: ignore[no-untyped-call]
    return found


def check_served(mt: MultiTask, instead: str) -> None:
    """
    Raises:
        ConfigurationError: this MultiTask evaluates its batch again, which a trainer's own step cannot do.
    """
    run = mt._run
    what = "a teleport" if run.teleporter is not None else ""
    what = f"aggregator {run.who}, which looks at the losses twice" if run.aggregator.looks_twice() else what
    what = f"aggregator {run.who}, which needs several batches," if run.aggregator.batches > 1 else what
    if what:
        raise ConfigurationError(
            f"{what} evaluates the batch again within a step, which a trainer's own backward pass cannot do: {instead}."
        )


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, step: Step) -> Tensor:
        ctx.step = step
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        with torch.enable_grad():
            ctx.step.take(float(cotangents[0]))
        return None, None, None


def _sum(losses: Losses) -> Tensor:
    """For logs; what is wrong with the losses is said in the step, where all processes hear of it."""
    given = losses.values() if isinstance(losses, Mapping) else losses
    there = [torch.as_tensor(v).detach().sum() for v in given if v is not None]
    if not there:
        return torch.zeros(())
    return torch.stack([v.to(there[0]) for v in there]).sum()


def _times(losses: Losses, factor: float) -> Losses:
    if factor == 1.0:
        return losses
    if isinstance(losses, Tensor):
        return losses * factor
    if isinstance(losses, Mapping):
        return {name: _product(v, factor) for name, v in losses.items()}
    return [_product(v, factor) for v in losses]


def _product(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, Tensor) else value


def _scale(scaler: Any) -> float | None:
    if scaler is None or not scaler.is_enabled():
        return None
    return float(scaler.get_scale())


class _Known:
    """A scaler as ``MultiTask.backward`` asks for one, whose scale is known."""

    def __init__(self, value: float) -> None:
        self._value = value

    def is_enabled(self) -> bool:
        return True

    def scale(self, tensor: Tensor) -> Tensor:
        return tensor * self._value

    def step(self, optimizer: Any) -> None:
        raise NotImplementedError  # the trainer's own does


class Through:
    """A scaler for ``MultiTask.step``, behind which the trainer's own optimizers step: it counts their steps, clips
    where it is asked to, and unscales.

    Args:
        optimizers: the trainer's; each has the user's own as ``optimizer``.
        scaler: the trainer's ``GradScaler``, or None.
    """

    def __init__(self, optimizers: Sequence[Any], scaler: Any = None) -> None:
        self._by_id = {id(o.optimizer): o for o in optimizers}
        self._scaler = scaler

    def is_enabled(self) -> bool:
        """Whether losses are scaled."""
        return self._scaler is not None and bool(self._scaler.is_enabled())

    def scale(self, tensor: Tensor) -> Tensor:
        """As a ``GradScaler`` does."""
        found: Tensor = self._scaler.scale(tensor)
        return found

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The trainer's, which steps its scaler too."""
        self._by_id[id(optimizer)].step()

    def update(self) -> None:
        """The trainer has done it."""

    def state_dict(self) -> dict[str, Any]:
        """Of the trainer's scaler."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The same."""
        self._scaler.load_state_dict(state)


def hand_over(mt: MultiTask, optimizers: Sequence[Any]) -> None:
    """Let ``mt.step`` move the user's optimizers that are inside the trainer's."""
    inner = [o.optimizer for o in optimizers]
    held = mt.optimizer if isinstance(mt.optimizer, Sequence) else [mt.optimizer]
    if [id(o) for o in held] != [id(o) for o in inner]:
        mt.optimizer = inner[0] if len(inner) == 1 else inner
