"""The router: a tiny network W whose output sigma(W) weights the tasks.

Whatever its form, its parameters are one flat vector. The state holds it as the first row of a float64 matrix, whose
other rows are Adam's moments (see mtlplugins.adam); with plain gradient descent there are none. The forms:

- ``free``: one score per task, no input (K parameters); :mod:`.free_router`.
- ``linear``: scores = A phi + b, phi the pooled features (K F + K); :mod:`.dense_router`.
- ``mlp``: scores = A relu(B phi + c) + b (H F + H + K H + K); :mod:`.dense_router`.

Derivatives are written out: for graphs this small, building and walking an autograd tape would cost more than the
method itself. The tests compare them with autograd.
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
    """How a router's parameters move against a gradient; all but ``lr`` are Adam's."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    unit: float
    """Adam gets the gradient in this unit: its moments outlive a change of the unit, and their squares are floats."""


class Router(Protocol):
    """W at one step, with the moments of its optimizer. Immutable."""

    def scores(self, view: StepView) -> tuple[Vector, Any]:
        """Scores (K,) of the view's tasks, and what :meth:`pullback` must know about the features they come from."""

    def pullback(self, view: StepView, seen: Any, gradient: Vector) -> tuple[Iterable[float], Array | None]:
        """Cotangents of the parameters, and of the pooled features (F,) if there are any, for a cotangent ``gradient``
        (K,) of the scores."""

    def trained(self, view: StepView, gradient: Any, rule: Rule) -> Tensor:
        """The router's matrix in the next state. Parameters and moments of tasks that are not in the view stay as
        they are: absent is not zero gradient."""
