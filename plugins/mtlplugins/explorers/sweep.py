"""Base of the sweeps: one model per preference of a grid, each trained with a method for its preference."""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor

from mtlcore import Aggregator, Explorer, integer, simplex
from mtlcore.contracts import Learnt
from mtlcore.exploring import Exploration

PREFERENCES = "preferences"
MODEL = "model."


@dataclasses.dataclass(frozen=True)
class Sweep(Explorer, abc.ABC):
    """``points`` models, each with an equal part of the budget and the same initial weights.

    The preferences are those of :func:`mtlcore.simplex.grid`. For any other preference the model of the nearest one is
    read (Euclidean distance; of equally near ones the first). [choice]
    """

    points: int = integer(5, low=2)

    @abc.abstractmethod
    def method(self, preferences: Tensor, index: int, steps: int) -> Aggregator:
        """The aggregator of the model for row ``index`` of the preferences (n, K), which is trained for ``steps``."""

    def rows(self, n_tasks: int) -> Tensor:
        """(n, K): the preferences of the models."""
        return simplex.grid(n_tasks, self.points)

    def search(self, work: Exploration) -> dict[str, Tensor]:
        """One model after the other is trained."""
        preferences = self.rows(len(work.tasks))
        steps = work.steps(work.price(self.method(preferences, 0, 1)), len(preferences))
        states = []
        for index in range(len(preferences)):
            method, model = self.method(preferences, index, steps), work.fresh()
            shared, own = work.split(model)
            work.train(
                lambda step, model=model: work.losses(model, step),  # type: ignore[misc]
                shared, own, method, steps=steps, index=index,
            )  # fmt: skip
            states.append(model.state_dict())
        return {PREFERENCES: preferences} | {MODEL + n: torch.stack([s[n] for s in states]) for n in states[0]}

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        """The model of the nearest preference."""
        index = int((learnt[PREFERENCES] - preference).norm(dim=1).argmin())
        return {n.removeprefix(MODEL): v[index] for n, v in learnt.items() if n.startswith(MODEL)}
