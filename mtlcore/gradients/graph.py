"""What the autograd graph says: which leaves a loss depends on, and how the trunk uses its weights.

A training step is told the trunk, not the heads: task-specific parameters are whatever the losses reach
besides the trunk. Walking the graph also finds what features alone would miss: a trunk parameter used again
by a head (tied embeddings), whose gradient has a part that does not pass through the features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError, FeaturesError, LossError

Edge = tuple[Any, int]


def edge(tensor: Tensor) -> Edge | None:
    """The autograd edge that produces ``tensor``; None for a leaf or a constant."""
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def leaves(
    roots: Iterable[Tensor], stop: frozenset[Edge] = frozenset(), seen: set[Any] | None = None
) -> tuple[dict[int, Tensor], set[Edge]]:
    """Leaves that require gradients behind ``roots``, in the order found, not looking beyond ``stop``.

    Args:
        roots: where to start.
        stop: edges not to cross.
        seen: filled with the functions met.

    Returns:
        ({id: leaf}, the edges of ``stop`` that were reached).
    """
    found: dict[int, Tensor] = {}
    reached: set[Edge] = set()
    met: set[Any] = set() if seen is None else seen
    stack: list[Any] = []

    def visit(function: Any, output: int) -> None:
        if (function, output) in stop:
            reached.add((function, output))
        elif function not in met:
            met.add(function)
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


@dataclasses.dataclass(frozen=True)
class Reach:
    """Which leaves belong to which task.

    Args:
        own: for each loss, the leaves it may reach without passing through the features (trunk parameters among
            them are tied weights). Without features every loss gets the leaves of all: a superset costs nothing
            but a few None results.
        behind: the leaves behind the features; () without features. They are the trunk's parameters, and any leaf
            outside the trunk that feeds it: an input that requires gradients, or a shared module left out of it.
        disjoint: whether no two losses share a part of the graph above the features, so that one may be freed
            without the others.
    """

    own: tuple[tuple[Tensor, ...], ...]
    behind: tuple[Tensor, ...]
    disjoint: bool


def reach(losses: Sequence[Tensor], features: Sequence[Tensor], names: Sequence[str]) -> Reach:
    """Walk the graph once.

    Raises:
        FeaturesError: a feature tensor is not part of the graph of any loss, or does not require gradients.
    """
    if not features:
        union = tuple(leaves(losses)[0].values())
        return Reach((union,) * len(losses), (), disjoint=False)
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
    own: list[tuple[Tensor, ...]] = []
    reached: set[Edge] = set()
    everything: set[Any] = set()
    total = 0
    for loss in losses:
        seen: set[Any] = set()
        found, hit = leaves([loss], frozen, seen)
        own.append(tuple(found.values()))
        reached |= hit
        # A parameter's own node holds no buffers: two heads may share parameters and still be freed one by one.
        inner = {f for f in seen if getattr(f, "variable", None) is None}
        everything |= inner
        total += len(inner)
    for where in stop.keys() - reached:
        feature = features[stop[where]]
        raise FeaturesError(
            f"features[{stop[where]}] (shape {tuple(feature.shape)}) is not in the graph of any loss "
            f"({', '.join(names)}). Pass the very tensor the heads received, not a copy of it, or leave features out."
        )
    return Reach(tuple(own), tuple(leaves(features)[0].values()), disjoint=total == len(everything))


def nested(features: Sequence[Tensor]) -> bool:
    """Whether one feature tensor is computed from another (a U-Net's skip connections, say)."""
    edges = [e for e in map(edge, features) if e is not None]
    for feature in features:
        others = frozenset(e for e in edges if e != edge(feature))
        if others and leaves([feature], others)[1]:
            return True
    return False


@dataclasses.dataclass(frozen=True)
class Use:
    """One place where the graph multiplies by a parameter.

    Args:
        node: the function that does it; its saved tensors hold the other factor.
        kind: "linear" (y = A W^T), "matmul" (y = A W), "convolution" or "table" (rows of W are looked up).
    """

    node: Any
    kind: str


_DIRECT = {
    ("AddmmBackward0", 2): "matmul",
    ("MmBackward0", 1): "matmul",
    ("ConvolutionBackward0", 1): "convolution",
    ("EmbeddingBackward0", 0): "table",
}
_TRANSPOSED = {("AddmmBackward0", 2), ("MmBackward0", 1)}


def uses(roots: Iterable[Tensor]) -> dict[int, list[Use] | None]:
    """For every leaf behind ``roots`` all its uses; None for a leaf with a use of another kind.

    Decided edge by edge, so that nothing is missed: a weight that is read by a matrix product *and* by anything
    else (a penalty, a hand-written attention) is None, and is differentiated by autograd as a whole.
    """
    found: dict[int, list[Use] | None] = {}
    seen: set[Any] = set()
    stack = [r.grad_fn for r in roots if r.grad_fn is not None]

    def add(leaf: Tensor, use: Use | None) -> None:
        known = found.setdefault(id(leaf), [])
        if use is None or known is None:
            found[id(leaf)] = None
        else:
            known.append(use)

    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        name = type(node).__name__
        for slot, (child, _) in enumerate(node.next_functions):
            if child is None:
                continue
            leaf = getattr(child, "variable", None)
            if leaf is not None:
                if name != "TBackward0":  # judged below, at the function that reads the transpose
                    kind = _DIRECT.get((name, slot))
                    add(leaf, None if kind is None else Use(node, kind))
                continue
            if type(child).__name__ == "TBackward0":
                leaf = getattr(child.next_functions[0][0], "variable", None)
                if leaf is not None:
                    add(leaf, Use(node, "linear") if (name, slot) in _TRANSPOSED else None)
            stack.append(child)
    return found


def differentiate(
    outputs: Sequence[Tensor], inputs: Sequence[Any], seeds: Sequence[Tensor] | None = None, *, retain: bool
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad`` with None where nothing depends, and torch's two riddles answered.

    Raises:
        ConfigurationError: reentrant checkpointing, which torch allows in a plain ``backward()`` only.
        LossError: the graph is gone.
    """
    if not inputs:
        return ()
    try:
        return torch.autograd.grad(outputs, inputs, seeds, retain_graph=retain, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise ConfigurationError(
                "the network uses torch.utils.checkpoint with use_reentrant=True, which torch cannot differentiate for "
                'one task alone: use checkpoint(..., use_reentrant=False). Only gradients="losses" (a method that '
                "needs losses only) works with reentrant checkpoints."
            ) from error
        if "second time" in str(error):
            raise LossError(
                "the graph of these losses was freed already: was backward() called on one of them, or their sum, "
                "before? Hand over losses of a fresh forward pass."
            ) from error
        raise
