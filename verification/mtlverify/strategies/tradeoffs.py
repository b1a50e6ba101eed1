"""Problems with a declared Pareto set, as models that an explorer can train.

An example is a recipe, so it shrinks to the simplest problem and fits into a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import mtlcore
from mtlcore.exploring import Exploration
from mtlverify.problems import Problem
from mtlverify.strategies import Strata, Stratum
from mtlverify.strategies import pick as st
from mtlverify.strategies.networks import seeded
from mtlverify.strategies.strata import Draw

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "right-angle": ("quadratics", {"angle": 90.0}),
    "opposed": ("quadratics", {"angle": 150.0}),
    "three-tasks": ("quadratics", {"n_tasks": 3, "angle": 100.0}),
    "curved": ("curved-quadratics", {"eccentricity": 4.0}),
}
"""Family -> a convex problem and its options."""

RATE = 0.05
"""Adam's rate on problems whose Pareto sets are of length 1 to 3."""


@dataclasses.dataclass(frozen=True)
class TradeoffExample:
    """The recipe of a search.

    Args:
        family: one of ``FAMILIES``.
        passes: the budget.
        seed: of everything that is random.
    """

    family: str
    passes: int
    seed: int

    def simpler(self) -> Iterator[TradeoffExample]:
        """The same family with a smaller seed: a smaller budget would be another statement."""
        yield from (dataclasses.replace(self, seed=s) for s in (0, 1) if s < self.seed)

    def size(self) -> tuple[int, int]:
        """What "smaller" means."""
        return self.passes, self.seed

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TradeoffExample:
        """The inverse of :meth:`to_json`."""
        return TradeoffExample(**data)

    def problem(self) -> Problem:
        """With its declared Pareto set."""
        name, options = FAMILIES[self.family]
        made: Problem = mtlcore.create("problem", name, **options)
        return made

    def model(self) -> Placed:
        """Where the search starts."""
        return Placed(self.problem(), self.seed)


class Placed(nn.Module):
    """A point x (P,) as the output of a linear layer for the input 1, so that a model can be made of it."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__()
        self.problem = problem
        self.layer = nn.utils.skip_init(nn.Linear, 1, problem.shape[1], dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.copy_(problem.start(torch.Generator().manual_seed(seed)))

    def forward(self) -> Tensor:
        """x."""
        return self.layer(torch.ones(1, dtype=torch.float64))


def losses(model: Placed, batch: Any) -> dict[str, Tensor]:
    """The losses of the problem, by name; there is only one batch."""
    return {f"task-{i}": loss for i, loss in enumerate(model.problem.losses(model()))}


def work(example: TradeoffExample) -> Exploration:
    """What an explorer is handed."""
    model = example.model()
    return Exploration(
        model,
        losses,
        batches=lambda step: None,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=RATE),
        schedule=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        shared=frozenset(n for n, _ in model.named_parameters()),
        passes=example.passes,
        seed=example.seed,
    )


def learnt(plugin: Any, example: TradeoffExample) -> dict[str, Tensor]:
    """What it learns; without the core's checks, which would refuse what a law is to find."""
    with torch.random.fork_rng(devices=[]):
        seeded(example.seed)
        found: dict[str, Tensor] = plugin.search(work(example))
    return found


def placed(plugin: Any, found: dict[str, Tensor], preferences: Tensor, example: TradeoffExample) -> Tensor:
    """(n, P): the x of each preference (n, K)."""
    front = mtlcore.Front(example.model(), plugin, [f"task-{i}" for i in range(preferences.shape[1])], found)
    return torch.stack([front.model(p)().detach() for p in preferences])


SHORT = 30
"""Passes of a search of which only the form is looked at."""
LONG = 800
"""Passes of a search that shall find the front."""


def short_searches() -> Strata:
    """Searches of every family that do not converge."""
    return _searches(SHORT, 2**16)


def long_searches() -> Strata:
    """Searches of every family that may converge."""
    return _searches(LONG, 1)


def _searches(passes: int, last_seed: int) -> Strata:
    def recipe(family: str) -> Stratum:
        def drawn(draw: Draw) -> TradeoffExample:
            return TradeoffExample(family, passes, draw(st.integers(0, last_seed)))

        return Stratum(drawn, family)

    return Strata(tuple(recipe(family) for family in FAMILIES), pool=f"searches of {passes} passes")
