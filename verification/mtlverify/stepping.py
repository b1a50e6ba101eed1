"""One step of an optimizer on losses whose task gradients are those of an example: for laws about the step itself.

The losses are l_i + <g_i, x - x0>, whose values stay where they were: constant gradients, so that whatever the step
does to a task, to first order, is what it does. The optimizer has a past of its own, drawn with the example.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtlcore import MultiTask, Needs
from mtlcore.report import StepReport
from mtlverify.example import Example
from mtlverify.strategies import Draw
from mtlverify.strategies import pick as st

RATE, DECAY, MOMENTUM = 2.0**-7, 0.125, 0.9
KINDS = ("sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad")
PLAIN = ("sgd", "nesterov")
"""Those whose D does not depend on the gradient."""


def pasts(draw: Draw, k: int, p: int) -> dict[str, Any]:
    """An optimizer and its past: old gradients that may point anywhere, mean squares that differ by factors of 256."""
    return {
        "optimizer": draw(st.sampled_from(KINDS)),
        "plain": draw(st.sampled_from(PLAIN)),
        "metric": draw(st.sampled_from(("optimizer", "step"))),
        "unit": 2.0 ** draw(st.integers(1, 6)),
        "old": draw(st.lists(st.integers(-9, 9), min_size=p, max_size=p)),
        "roots": draw(st.lists(st.integers(-4, 4), min_size=p, max_size=p)),
        "place": draw(st.lists(st.integers(-3, 3), min_size=p, max_size=p)),
    }


def takes_steps(plugin: Any) -> str | None:
    """Applicability of laws about the step. Read from what the plugin declares; it is not asked."""
    if plugin.needs == Needs.LOSSES:
        return "reads losses only: a metric changes nothing of its answer"
    return None


class Stepper:
    """A run of ``MultiTask`` on an example.

    Args:
        plugin: the method. A mutant may bring a ``multitask`` of its own: these laws are about what surrounds a method.
        example: gradients, losses, and the optimizer's past in ``extra``.
        metric: of the run.
        kind: of the optimizer, one of :data:`KINDS`.
        rates: of the first coordinate and of the others, as shares of the rate.
        unit: s: all coordinates but the first are measured in units of s, x = s y, and the optimizer is transported.
    """

    def __init__(
        self,
        plugin: Any,
        example: Example,
        metric: str,
        kind: str,
        *,
        rates: tuple[float, float] = (1.0, 1.0),
        unit: float = 1.0,
    ) -> None:
        self._rows, self._losses = example.jacobian.double(), example.losses.double()
        self._units, self._batches = (1.0, unit), getattr(plugin, "batches", 1)
        p = self._rows.shape[1]
        size = float(self._rows.norm(dim=1).max()) / p**0.5 or 1.0
        old = size * _cycled(example.extra["old"], p)
        root = size * 2.0 ** _cycled(example.extra["roots"], p)
        place = _cycled(example.extra["place"], p) * (size if kind in PLAIN else 1.0)
        pieces = [slice(0, 1), slice(1, p)] if p > 1 else [slice(0, 1)]
        self.parameters = [nn.Parameter(place[piece] / s) for piece, s in zip(pieces, self._units)]
        groups = [
            {"params": [q], **_group(kind, RATE * rate, s)} for q, rate, s in zip(self.parameters, rates, self._units)
        ]
        self.optimizer = _optimizer(kind, groups)
        for q, piece, s in zip(self.parameters, pieces, self._units):
            self.optimizer.state[q] = _state(kind, old[piece], root[piece], s)
        make = getattr(plugin, "multitask", MultiTask)
        self.run = make(
            self.parameters, plugin, self.optimizer, metric=metric, gradients="sequential", seed=example.seed,
            check_source=False,
        )  # fmt: skip

    def place(self) -> Tensor:
        """(P,) x."""
        return torch.cat([s * q.detach() for q, s in zip(self.parameters, self._units)])

    def step(self) -> tuple[Tensor, StepReport]:
        """(P,) the change of x, and the report."""
        before = self.place()
        closures = [self._closure] * self._batches
        report = self.run.step(closures if self._batches > 1 else self._closure)
        return self.place() - before, report

    def alone(self, task: int) -> Tensor:
        """(P,) the change of x that the optimizer makes of one task's gradient, without any method."""
        before = self.place()
        for q, s, g in zip(self.parameters, self._units, self._rows[task].split([q.numel() for q in self.parameters])):
            q.grad = s * g
        self.optimizer.step()
        return self.place() - before

    def _closure(self) -> list[Tensor]:
        x = torch.cat([s * q for q, s in zip(self.parameters, self._units)])
        first = self._rows @ x
        return list((self._losses + (first - first.detach())).unbind())


def _cycled(numbers: list[int], p: int) -> Tensor:
    """(p,): the minimiser drops coordinates."""
    return torch.tensor([float(numbers[i % len(numbers)]) for i in range(p)], dtype=torch.float64)


def _group(kind: str, rate: float, s: float) -> dict[str, Any]:
    """Options of a group whose coordinates are measured in units of s, so that it makes the same step of x."""
    if kind in PLAIN:
        return {"lr": rate / s**2, "weight_decay": DECAY * s**2}
    return {"lr": rate / s, "eps": 1e-8 * s, "weight_decay": DECAY * (s if kind == "adamw" else s**2)}


def _optimizer(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if kind in PLAIN:
        return torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=kind == "nesterov")
    if kind == "rmsprop":
        return torch.optim.RMSprop(groups, momentum=0.5)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}[kind](groups)


def _state(kind: str, old: Tensor, root: Tensor, s: float) -> dict[str, Any]:
    """Old gradients, and roots of mean squares, in units of s."""
    steps = torch.tensor(1000.0)
    if kind in PLAIN:
        return {"momentum_buffer": s * old}
    if kind == "rmsprop":
        return {"step": steps, "square_avg": (s * root) ** 2, "momentum_buffer": old / root}
    if kind == "adagrad":
        return {"step": steps, "sum": (s * root) ** 2}
    return {"step": steps, "exp_avg": s * old, "exp_avg_sq": (s * root) ** 2}
