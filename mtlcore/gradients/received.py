"""The tensor that the heads received, where the user holds a copy or a cast of it.

A wrapper (mixed precision of a training library, say) may hand out a copy of the trunk's output, while the losses were
made of the output itself. The copy's graph leads to it: back through copies, casts and views to a function that the
losses reach. The tensor itself is kept by a function that read it (a linear layer keeps its input).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mtlcore.errors import FeaturesError
from mtlcore.gradients import graph, torch_internals
from mtlcore.gradients.batch import Batch

_COPIES = {"ToCopyBackward0", "CloneBackward0", "AliasBackward0", "ViewBackward0", "UnsafeViewBackward0"}


def found(batch: Batch) -> Batch:
    """The same with features that are in the graph of the losses.

    Raises:
        FeaturesError: as ``batch.reach``, where one is not, and no such tensor was found for it.
    """
    try:
        batch.reach  # noqa: B018 (it is kept, and needed in any case)
    except FeaturesError:
        seen: set[Any] = set()
        graph.leaves(batch.losses, seen=seen)
        features = tuple(_instead(f, seen) for f in batch.features)
        if all(a is b for a, b in zip(features, batch.features)):
            raise
        batch = dataclasses.replace(batch, features=tuple({id(f): f for f in features}.values()))
    return batch


def _instead(feature: Tensor, functions: set[Any]) -> Tensor:
    """The tensor, or the feature where it is in the graph or nothing was found."""
    node, output = feature.grad_fn, feature.output_nr
    if node in functions:
        return feature
    while node is not None and node not in functions and type(node).__name__ in _COPIES:
        node, output = node.next_functions[0]
    kept = _kept((node, output), functions) if node in functions else None
    return feature if kept is None else kept


def _kept(edge: graph.Edge, functions: Iterable[Any]) -> Tensor | None:
    for function in functions:
        if edge not in function.next_functions:
            continue
        for value in torch_internals.saved_tensors(function):
            if (value.grad_fn, value.output_nr) == edge:
                return value
    return None
