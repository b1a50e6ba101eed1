"""What a source found in one step, the method's answer to it, and how both become ``.grad``."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import linalg

Pair = tuple[Tensor, Tensor]
"""A leaf and its gradient."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a method decided for the k tasks present.

    Args:
        weights: (k,) weights of the task gradients, or None with a ``direction``.
        direction: (P,) in the order of ``Batch.shared``, or None with ``weights``.
        head_weights: (k,) factors of the task-specific gradients; None means ones.
        feature_gradient: extra cotangents of the features, sent through the trunk in the same pass.
    """

    weights: Tensor | None = None
    direction: Tensor | None = None
    head_weights: Tensor | None = None
    feature_gradient: tuple[Tensor, ...] = ()


class TaskGradients(abc.ABC):
    """What a source found in one step. Nothing reaches ``.grad`` before :meth:`write`."""

    weights_whole_losses: ClassVar[bool] = False
    """Whether ``weights`` reach the task-specific parameters too, so that ``head_weights`` cannot differ."""
    heads: Sequence[list[Pair]] = ()
    """For each task the task-specific leaves and their gradients, as far as they are known before :meth:`write`."""

    @abc.abstractmethod
    def gramian(self) -> Tensor:
        """(k, k) float64."""

    @abc.abstractmethod
    def rows(self) -> Tensor:
        """(k, P) task gradients; a buffer that the next step overwrites."""

    def across(self, vectors: Tensor) -> Tensor:
        """J V^T, (k, m) float64, of m vectors (m, P); also after :meth:`write`."""
        return linalg.across(self.rows(), vectors)

    @abc.abstractmethod
    def write(self, answer: Answer) -> None:
        """Add the step's gradients to ``.grad`` of shared and task-specific parameters. All of them, or none."""


def accumulate(parameter: Tensor, gradient: Tensor, *, fresh: bool) -> None:
    """``parameter.grad += gradient`` with the semantics of ``backward()``: in place if there is a gradient already.

    Args:
        parameter: a leaf.
        gradient: of its shape.
        fresh: whether nobody else holds or will read ``gradient``. What autograd returns is not: one tensor may be the
            gradient of two parameters that are added up, or a single number expanded.
    """
    if gradient.dtype != parameter.dtype:
        gradient, fresh = gradient.to(parameter.dtype), True
    if parameter.grad is None:
        parameter.grad = gradient if fresh else gradient.clone()
    elif parameter.grad.is_sparse:
        parameter.grad = gradient + parameter.grad
    else:
        parameter.grad.add_(gradient)


def all_or_nothing(leaves: Sequence[Tensor]) -> AbstractContextManager[None]:
    """Inside, the ``.grad`` of ``leaves`` starts empty. On leaving it is added to what was there before, in place;
    after an error it is as before."""
    return _AllOrNothing(leaves)


class _AllOrNothing(AbstractContextManager[None]):
    # Not a generator: one that an interrupt leaves open runs its end when it is collected, after a rollback.
    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self._leaves = leaves
        self._before = [(p, p.grad) for p in leaves if p.grad is not None]

    def __enter__(self) -> None:
        for p, _ in self._before:
            p.grad = None

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            for p in self._leaves:
                p.grad = None
            for p, old in self._before:
                p.grad = old
        elif self._before:
            with torch.no_grad():
                for p, old in self._before:
                    new, p.grad = p.grad, old
                    if new is not None:
                        accumulate(p, new, fresh=True)


def write_heads(heads: Iterable[list[Pair]], head_weights: Tensor | None) -> None:
    """Add each task's own gradients, scaled, to its task-specific parameters.

    Args:
        heads: for each task its (leaf, gradient) pairs; emptied, so that no gradient is kept twice.
        head_weights: (k,) or None for ones.
    """
    with torch.no_grad():
        factors = None if head_weights is None else head_weights.tolist()
        for i, pairs in enumerate(heads):
            pairs.reverse()
            while pairs:
                leaf, gradient = pairs.pop()
                if factors is not None:
                    gradient = gradient * factors[i]
                accumulate(leaf, gradient, fresh=factors is not None)
