"""The router: a tiny network W whose output sigma(W) weights the tasks.

Its parameters are one flat float64 vector, so that state and optimizer see a plain vector whatever its form:

- ``free``: one score per task, no input (K parameters); :mod:`.free_router`.
- ``linear``: scores = A phi + b, phi the pooled features (K F + K); :mod:`.dense_router`.
- ``mlp``: scores = A relu(B phi + c) + b (H F + H + K H + K); :mod:`.dense_router`.

Derivatives are written out: for graphs this small, building and walking an autograd tape would cost more than the
method itself. The tests compare them with autograd.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any, NamedTuple

from mtlcore.contracts import State, StepView
from mtlplugins.arrays import Array
from mtlplugins.vectors import Vector

KINDS = ("free", "linear", "mlp")


class Rule(NamedTuple):
    """How a router's parameters move against a gradient."""

    optimizer: str
    """"adam" or "sgd"."""
    lr: float
    beta1: float
    beta2: float
    eps: float


class Router(abc.ABC):
    """W at one step, with the moments of its optimizer. Immutable."""

    @abc.abstractmethod
    def scores(self, view: StepView) -> tuple[Vector, Any]:
        """Scores (K,) of the view's tasks, and what :meth:`pullback` must know about the features they come from."""

    @abc.abstractmethod
    def pullback(self, view: StepView, seen: Any, gradient: Vector) -> tuple[Iterable[float], Array | None]:
        """Cotangents of the parameters, and of the pooled features (F,) if there are any, for a cotangent ``gradient``
        (K,) of the scores."""

    @abc.abstractmethod
    def trained(self, view: StepView, gradient: Any, rule: Rule) -> State:
        """The router's entries of the next state. Parameters and moments of tasks that are not in the view stay as
        they are: absent is not zero gradient."""
