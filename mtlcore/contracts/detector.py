"""Decides whether task gradients are in conflict."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, final

from torch import Tensor

from mtlcore.contracts.view import Needs, StepView
from mtlcore.hyperparameters import Validated


@final
@dataclasses.dataclass(frozen=True)
class Conflict:
    """What a detector found.

    Args:
        conflicting: the verdict.
        severity: how bad, by the detector's own scale-free measure; larger is worse.
        pairs: (K, K) bool, symmetric, False on the diagonal: pairs of tasks in conflict.
        dominated: (K,) bool: tasks that the mean gradient would harm.
        diagnostics: anything worth logging.
    """

    conflicting: bool
    severity: float
    pairs: Tensor
    dominated: Tensor
    diagnostics: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ConflictDetector(Validated, abc.ABC):
    """Decides whether the task gradients of a step are in conflict. Stateless."""

    needs: ClassVar[Needs] = Needs.GRAMIAN
    """The most that ``detect`` reads from the view."""
    claims: ClassVar[frozenset[str]] = frozenset()
    """Ids of the laws this detector promises."""

    @abc.abstractmethod
    def detect(self, view: StepView) -> Conflict:
        """The verdict on the tasks present; pairs and dominated are False for absent ones."""
