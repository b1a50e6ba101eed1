"""Which leaves a loss depends on, read off the autograd graph.

A training step is told the trunk, not the heads: task-specific parameters are whatever the losses reach
besides the trunk. Walking the graph also finds what features alone would miss: a trunk parameter used again
by a head (tied embeddings), whose gradient has a part that does not pass through the features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from mtlcore.errors import FeaturesError

Edge = tuple[Any, int]


def edge(tensor: Tensor) -> Edge | None:
    """The autograd edge that produces ``tensor``; None for a leaf or a constant."""
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def leaves(roots: Iterable[Tensor], stop: frozenset[Edge] = frozenset()) -> tuple[dict[int, Tensor], set[Edge]]:
    """Leaves that require gradients behind ``roots``, in the order found, not looking beyond ``stop``.

    Returns:
        ({id: leaf}, the edges of ``stop`` that were reached).
    """
    found: dict[int, Tensor] = {}
    reached: set[Edge] = set()
    seen: set[Any] = set()
    stack: list[Any] = []

    def visit(function: Any, output: int) -> None:
        if (function, output) in stop:
            reached.add((function, output))
        elif function not in seen:
            seen.add(function)
            stack.append(function)

    for root in roots:
        if root.grad_fn is not None:
            visit(root.grad_fn, root.output_nr)
        elif root.requires_grad:
            found.setdefault(id(root), root)
    while stack:
        function = stack.pop()
        variable = getattr(function, "variable", None)
        if variable is not None:
            found.setdefault(id(variable), variable)
            continue
        for parent, output in function.next_functions:
            if parent is not None:
                visit(parent, output)
    return found, reached


def task_leaves(
    losses: Sequence[Tensor], features: Sequence[Tensor], names: Sequence[str]
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Which leaves belong to which task.

    Without features one walk over the whole graph serves all tasks and each gets the union: a superset costs
    nothing but a few None results.

    Returns:
        (for each loss, the leaves it may reach without passing through the features; the leaves behind the
        features, () without features). The latter are the trunk's parameters, and any leaf outside the trunk that
        feeds it: an input that requires gradients, or a shared module that was left out of ``trunk``.

    Raises:
        FeaturesError: a feature tensor is not part of the graph of any loss, or does not require gradients.
    """
    if not features:
        union = list(leaves(losses)[0].values())
        return [union] * len(losses), []
    stop: dict[Edge, int] = {}
    for position, feature in enumerate(features):
        where = edge(feature)
        if where is None:
            raise FeaturesError(
                f"features[{position}] (shape {tuple(feature.shape)}) has no gradient graph: it was detached, or made "
                f"under no_grad, or no trunk parameter that requires gradients stands before it. "
                f"Pass the trunk's output itself, or leave features out."
            )
        stop[where] = position
    frozen = frozenset(stop)
    out: list[list[Tensor]] = []
    reached: set[Edge] = set()
    for loss in losses:
        found, hit = leaves([loss], frozen)
        out.append(list(found.values()))
        reached |= hit
    for where in stop.keys() - reached:
        feature = features[stop[where]]
        raise FeaturesError(
            f"features[{stop[where]}] (shape {tuple(feature.shape)}) is not in the graph of any loss "
            f"({', '.join(names)}). Pass the very tensor the heads received, not a copy of it, or leave features out."
        )
    return out, list(leaves(features)[0].values())


def nested(features: Sequence[Tensor]) -> bool:
    """Whether one feature tensor is computed from another (a U-Net's skip connections, say)."""
    edges = [e for e in map(edge, features) if e is not None]
    for feature in features:
        others = frozenset(e for e in edges if e != edge(feature))
        if others and leaves([feature], others)[1]:
            return True
    return False
