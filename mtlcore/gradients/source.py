"""The one interface between a training step and the ways of obtaining task gradients."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mtlcore.contracts import Needs


class GradientProblem(NamedTuple):
    """One forward pass, ready to be differentiated.

    Args:
        names: the k tasks present in this batch.
        losses: their scalar losses, each with a graph.
        features: the tensors between trunk and heads, or () if unknown.
        shared: the trunk's parameters that require gradients, in the order of their columns in J.
        stacked: the losses as one (k,) tensor with a graph; None if their dtypes or devices differ, or if unknown.
    """

    names: tuple[str, ...]
    losses: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    shared: tuple[Tensor, ...]
    stacked: Tensor | None = None


class TaskGradients(abc.ABC):
    """What a source found in one step. Nothing reaches ``.grad`` before :meth:`write`."""

    deferred: ClassVar[bool] = False
    """Whether :meth:`write` still needs the graph, so that the network must not move before it."""
    weights_whole_losses: ClassVar[bool] = False
    """Whether ``weights`` reach the task-specific parameters too, so that ``head_weights`` cannot differ."""

    @abc.abstractmethod
    def gramian(self) -> Tensor:
        """(k, k) float64."""

    @abc.abstractmethod
    def rows(self) -> Tensor:
        """(k, P) task gradients; a buffer that the next step overwrites."""

    @abc.abstractmethod
    def write(
        self,
        *,
        weights: Tensor | None,
        direction: Tensor | None,
        head_weights: Tensor | None,
        feature_gradient: Sequence[Tensor] = (),
    ) -> None:
        """Add the step's gradients to ``.grad`` of shared and task-specific parameters.

        Args:
            weights: (k,) weights of the task gradients, or None with a ``direction``.
            direction: (P,) in the order of ``GradientProblem.shared``, or None with ``weights``.
            head_weights: (k,) factors of the task-specific gradients; None means the source's default.
            feature_gradient: extra cotangents of the features, sent through the trunk in the same pass.
        """


class GradientSource(abc.ABC):
    """A way of obtaining task gradients. May keep buffers between steps, never results."""

    name: ClassVar[str]
    provides: ClassVar[Needs]

    @abc.abstractmethod
    def collect(self, problem: GradientProblem) -> TaskGradients:
        """Differentiate, as far as this source must before weights are known."""


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """``parameter.grad += gradient`` with the semantics of ``backward()``: in place if there is a gradient already."""
    if gradient.dtype != parameter.dtype:
        gradient = gradient.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = gradient
    elif parameter.grad.is_sparse or gradient.is_sparse:
        parameter.grad = parameter.grad + gradient
    else:
        parameter.grad.add_(gradient)


def write_heads(heads: Sequence[Sequence[tuple[Tensor, Tensor]]], head_weights: Tensor | None) -> None:
    """Add each task's own gradients, scaled, to its task-specific parameters.

    Args:
        heads: for each task its (leaf, gradient) pairs.
        head_weights: (k,) or None for ones.
    """
    with torch.no_grad():
        factors = None if head_weights is None else head_weights.tolist()
        for i, pairs in enumerate(heads):
            for leaf, gradient in pairs:
                accumulate(leaf, gradient if factors is None else gradient * factors[i])
