"""The router: a very small network W whose output sigma(W) are the weights of the tasks.

In every form its parameters are one flat vector. The state has it as the first row of a float64 matrix; the other rows
are Adam's moments (see mtlplugins.adam), and with plain gradient descent there are none. The forms:

- ``free``: one score per task, no input (K parameters); :mod:`.free_router`.
- ``linear``: scores = A phi + b, phi the pooled features (K F + K); :mod:`.dense_router`.
- ``mlp``: scores = A relu(B phi + c) + b (H F + H + K H + K); :mod:`.dense_router`.

The derivatives are written by hand, because for so few numbers autograd would cost more than the method itself. The
tests compare them with autograd.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from mtlcore.contracts import StepView
from mtlplugins.arrays import Array
from mtlplugins.vectors import Vector

KINDS = ("free", "linear", "mlp")


class Rule(NamedTuple):
    """The optimizer of a router's parameters; all fields but ``lr`` are Adam's."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    unit: float
    """The unit of the gradient that Adam gets: its moments stay valid when the unit changes, and do not overflow."""


class Router(Protocol):
    """W at one step, with the moments of its optimizer. Immutable."""

    def scores(self, view: StepView) -> tuple[Vector, Any]:
        """Scores (K,) of the view's tasks, and the data about the features that :meth:`pullback` needs."""

    def pullback(self, view: StepView, seen: Any, gradient: Vector) -> tuple[Iterable[float], Array | None]:
        """Cotangents of the parameters, and of the pooled features (F,) if there are any, for a cotangent ``gradient``
        (K,) of the scores."""

    def trained(self, view: StepView, gradient: Any, rule: Rule) -> Tensor:
        """The router's matrix in the next state. Parameters and moments of tasks that are not in the view do not
        change. (That is not the same as a zero gradient.)"""
