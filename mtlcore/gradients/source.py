"""The one interface between a training step and the ways of obtaining task gradients."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore.contracts import Needs
from mtlcore.gradients import graph

Outline = tuple[str, int, bool, int]
"""Of a task in a graph: its name, how many functions the graph has, whether features separate, and how many hooks are
on the trunk's parameters."""


@dataclasses.dataclass(frozen=True)
class GradientProblem:
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

    def without_unread(self) -> GradientProblem:
        """The same without features that no loss reads, as where each task has features of its own and one is absent.
        (If none is read, all stay: that is a mistake, and :attr:`reach` says so.)"""
        edges = [graph.edge(f) for f in self.features]
        _, read = graph.leaves(self.losses, frozenset(e for e in edges if e is not None))
        kept = tuple(f for f, e in zip(self.features, edges) if e is None or e in read)
        return dataclasses.replace(self, features=kept) if read else self

    @functools.cached_property
    def reach(self) -> graph.Reach:
        """Which leaves belong to which task."""
        return graph.reach(self.losses, self.features, self.names)

    @functools.cached_property
    def separated(self) -> bool:
        """Whether the features separate heads from trunk: there are some, none is computed from another or has a hook
        (which would run in both parts), and no head uses again a leaf that is behind them or in the trunk."""
        behind = {id(p) for p in self.shared} | {id(t) for t in self.reach.behind}
        tied = any(id(t) in behind for own in self.reach.own for t in own)
        hooked = any(f._backward_hooks for f in self.features)
        return bool(self.features) and not (tied or hooked or graph.nested(self.features))

    @functools.cached_property
    def outlines(self) -> frozenset[Outline]:
        """One per task present. A task with an outline that it did not have before is in another graph. (A hook on a
        result inside the trunk cannot be seen from outside.)"""
        hooks = sum([len(p._backward_hooks or ()) for p in self.shared])  # they are no functions
        return frozenset((name, self.reach.size, self.separated, hooks) for name in self.names)


class TaskGradients(abc.ABC):
    """What a source found in one step. Nothing reaches ``.grad`` before :meth:`write`."""

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


@contextlib.contextmanager
def all_or_nothing(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the ``.grad`` of ``leaves`` starts empty. On leaving it is added to what was there before, in place;
    after an error it is as before."""
    before = [(p, p.grad) for p in leaves if p.grad is not None]
    for p, _ in before:
        p.grad = None
    try:
        yield
    except BaseException:
        for p in leaves:
            p.grad = None
        for p, old in before:
            p.grad = old
        raise
    with torch.no_grad():
        for p, old in before:
            new, p.grad = p.grad, old
            if new is not None:
                accumulate(p, new, fresh=True)


def write_heads(heads: Iterable[list[tuple[Tensor, Tensor]]], head_weights: Tensor | None) -> None:
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
