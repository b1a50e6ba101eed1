"""Finds models for preferences between the tasks."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mtlcore.hyperparameters import Validated

if TYPE_CHECKING:
    from mtlcore.exploring import Exploration

Learnt = Mapping[str, Tensor]
"""What a search has learnt: names of the explorer's own choice -> tensors."""


@dataclasses.dataclass(frozen=True)
class Explorer(Validated, abc.ABC):
    """A preference on the simplex in, a model out.

    An explorer is a frozen dataclass of hyper-parameters and has no other state. :func:`mtlcore.explore` hands it the
    work, checks what comes back, and makes an :class:`mtlcore.Front` of it. Training goes through the same step as
    everywhere: :meth:`mtlcore.exploring.Exploration.train`.
    """

    claims: ClassVar[frozenset[str]] = frozenset()
    """Ids of the laws this method promises. A class whose promises depend on hyper-parameters overrides this with a
    property."""

    @abc.abstractmethod
    def search(self, work: Exploration) -> dict[str, Tensor]:
        """Train. The same work and seed give the same answer bit for bit.

        Args:
            work: the model, its losses, the budget of passes, and the only source of random numbers.

        Returns:
            Everything that :meth:`read` needs, as finite tensors. It is the state of the front: it is saved and loaded.
        """

    @abc.abstractmethod
    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        """The model for one preference. Pure, and not random: a front answers the same for ever.

        Args:
            learnt: what ``search`` returned, or the same after saving and loading.
            preference: (K,) float64 on the processor, not negative, with sum 1: how much each task counts.

        Returns:
            Entries of the model's state dict, with their shapes. What is left out stays as the user handed it over.
        """
