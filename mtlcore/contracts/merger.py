"""Makes one model of several experts that were fine-tuned from one base."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore.hyperparameters import Validated

Entries = Mapping[str, Tensor]
"""Name of an entry of a state dict -> its value."""


Objective = Callable[[Entries, int], Tensor]
"""Merged parameters theta (not task vectors) and the number of the step -> a number that should be small. Entries that
are left out count as those of the base; gradients flow."""


@dataclasses.dataclass(frozen=True)
class Merger(Validated, abc.ABC):
    """Makes one task vector of several. Stateless.

    The task vector of expert t is tau_t = theta_t - theta_0, entry by entry. :func:`mtlcore.merge` computes the task
    vectors, checks them, and adds what ``merge`` returns to the base.
    """

    claims: ClassVar[frozenset[str]] = frozenset()
    """Ids of the laws this method promises. A class whose promises depend on hyper-parameters overrides this with a
    property."""
    reads_data: ClassVar[bool] = False
    """Whether ``adapt`` looks at data. Then :func:`mtlcore.merge` insists on an objective."""

    @abc.abstractmethod
    def merge(self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator) -> dict[str, Tensor]:
        """The merged task vector: what is to be added to the base.

        Pure: the same arguments and seed give the same answer, and nothing is written to.

        Args:
            base: theta_0, the floating-point parameters by name, as float64 on the device of the base. Statistics (such
                as those of a batch norm) and integers are not among them: the core merges these.
            vectors: tau_1 .. tau_T, T >= 1, each with the names and shapes of ``base``, float64, finite.
            generator: on the processor; the only source of random numbers.

        Returns:
            Name -> tensor of the same shape, dtype and device as in ``base``. A name that is left out stays as in the
            base.
        """

    def adapt(
        self, base: Entries, vectors: Sequence[Entries], generator: torch.Generator, objective: Objective
    ) -> dict[str, Tensor]:
        """The merged task vector for a method that ``reads_data``; otherwise :meth:`merge`, which it overrides.

        Args:
            base, vectors, generator: as for :meth:`merge`.
            objective: what the user wants to be small, for instance the entropy of predictions on unlabelled data.
        """
        return self.merge(base, vectors, generator)
