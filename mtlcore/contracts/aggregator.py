"""Turns what a step knows into task weights or a direction."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, final

from torch import Tensor

from mtlcore.contracts.view import Needs, StepView
from mtlcore.errors import PluginError
from mtlcore.hyperparameters import Validated

State = dict[str, Tensor]
"""What a method keeps from step to step: names of its own choice -> tensors."""


@final
@dataclasses.dataclass(frozen=True)
class Aggregation:
    """The answer of a method: weights *or* a direction, and the next state.

    Args:
        weights: (K,) so that d = J^T w. A method that returns weights works with every gradient source.
        direction: (P,) when d is not a combination of the rows with one weight per task.
        state: the next state; start from the one received.
        diagnostics: anything worth logging (numbers, short strings, small tensors).
        head_weights: (K,) factors for the task-specific parameters' own gradients. Default: ``weights`` for a
            method that reads losses only (it weights whole losses), ones for a method that reads gradients.
        feature_gradient: extra cotangents, one per tensor of ``view.features``, added to the trunk's backward
            pass; for a method whose weights are themselves a differentiable function of the features.
    """

    weights: Tensor | None = None
    direction: Tensor | None = None
    state: State = dataclasses.field(default_factory=dict)
    diagnostics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_weights: Tensor | None = None
    feature_gradient: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.direction is None):
            raise PluginError("Aggregation needs exactly one of weights=(K,) and direction=(P,).")


@dataclasses.dataclass(frozen=True)
class Aggregator(Validated, abc.ABC):
    """Turns losses, Gramian or Jacobian of one step into task weights or a direction.

    A subclass is a frozen dataclass of hyper-parameters and has no other state: what must survive a step is
    returned in ``Aggregation.state`` and handed back in the next step.
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN
    """The most that ``aggregate`` reads from the view."""
    claims: ClassVar[frozenset[str]] = frozenset()
    """Ids of the laws this method promises. `mtl verify` fails if one of them is refuted. A class whose
    promises depend on hyper-parameters overrides this with a property."""
    handles_absent: ClassVar[bool] = False
    """False: when tasks are missing from a batch, the method is called on the sub-problem of those present and
    the absent ones get weight 0; ``view.task_index`` says which tasks they are. True: the method gets the full
    view (losses and Gramian of absent tasks are NaN, their rows 0) and reads ``view.present`` itself."""
    degree: ClassVar[float] = 1.0
    """p in A(t J) = t^p A(J), for a method that claims "positively-homogeneous"; a class whose degree depends on
    hyper-parameters overrides this with a property."""
    batches: ClassVar[int] = 1
    """How many independent batches one step needs; the further ones arrive in ``view.others``."""

    def init(self, n_tasks: int) -> State:
        """State before the first step: a dict of tensors. K = ``n_tasks``. It is also what a task that joins later
        starts with, and its shapes for K and K + 1 tell which numbers belong to which task (:mod:`mtlcore.roster`)."""
        return {}

    @abc.abstractmethod
    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The method itself. Pure: same view, state and generator seed, same answer; neither is written to."""

    def observe(self, view: StepView, state: State) -> State:
        """Called by ``MultiTask.step`` after the optimizer moved, with the new losses of the same batch.

        Override it only in a method that looks twice (FAMO); it costs one more forward pass a step.
        """
        return state

    @classmethod
    def looks_twice(cls) -> bool:
        """Whether ``observe`` is overridden."""
        return cls.observe is not Aggregator.observe
