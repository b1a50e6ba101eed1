"""What the autograd graph says: which leaves a loss depends on, and how the trunk uses its weights.

A training step is told the trunk, not the heads: task-specific parameters are whatever the losses reach
besides the trunk. Walking the graph also finds what features alone would miss: a trunk parameter used again
by a head (tied embeddings), whose gradient has a part that does not pass through the features.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError, FeaturesError, listed
from mtlcore.gradients import torch_internals
from mtlcore.gradients.torch_internals import LEAF as _LEAF

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
    first: list[Edge] = []
    for root in roots:
        if root.grad_fn is not None:
            first.append((root.grad_fn, root.output_nr))
        elif root.requires_grad:
            found.setdefault(id(root), root)
    edges: Iterable[Edge] = first
    while True:  # without a function for each edge: every step walks the whole graph
        for to in edges:
            function = to[0]
            if to in stop:
                reached.add(to)
            elif function not in met and function is not None:
                met.add(function)
                stack.append(function)
        if not stack:
            return found, reached
        function = stack.pop()
        if type(function) is _LEAF:
            variable, edges = function.variable, ()
            found.setdefault(id(variable), variable)
        else:
            edges = function.next_functions


@dataclasses.dataclass(frozen=True)
class Reach:
    """Which leaves belong to which task.

    Args:
        own: for each loss, the leaves it may reach without passing through the features (trunk parameters among
            them are tied weights). Without features every loss gets the leaves of all: a superset costs nothing
            but a few None results.
        behind: the leaves behind the features; () without features. They are the trunk's parameters, and any leaf
            outside the trunk that feeds it: an input that requires gradients, or a shared module left out of it.
        frees: for each loss whether no later one shares a part of its graph above the features, so that its pass may
            free it.
        last_to_all: whether the last loss depends on every feature, so that its pass frees all of the trunk's graph.
        size: how many functions were met; a graph of another size is another graph.
        sparse: whether a table with sparse gradients is among them.
    """

    own: tuple[tuple[Tensor, ...], ...]
    behind: tuple[Tensor, ...]
    frees: tuple[bool, ...]
    last_to_all: bool
    size: int
    sparse: bool


def reach(losses: Sequence[Tensor], features: Sequence[Tensor], names: Sequence[str]) -> Reach:
    """Walk the graph once.

    Raises:
        FeaturesError: a feature tensor is not part of the graph of any loss, or does not require gradients.
    """
    if not features:
        everything: set[Any] = set()
        union = tuple(leaves(losses, seen=everything)[0].values())
        none, size = (False,) * len(losses), len(everything)
        return Reach((union,) * len(losses), (), none, last_to_all=True, size=size, sparse=_sparse(everything))
    stop: dict[Edge, int] = {}
    for position, feature in enumerate(features):
        where = edge(feature)
        if where is None and feature.requires_grad:
            raise FeaturesError(
                f"features[{position}] (shape {tuple(feature.shape)}) is a leaf: nothing stands before it. Pass what "
                f"the trunk computes and the heads receive, or leave features out."
            )
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
    above: list[set[Any]] = []
    hit: set[Edge] = set()
    for loss in losses:
        seen: set[Any] = set()
        found, hit = leaves([loss], frozen, seen)
        own.append(tuple(found.values()))
        reached |= hit
        # A parameter's own node holds no buffers: two heads may share parameters and still be freed one by one.
        above.append({f for f in seen if type(f) is not _LEAF})
    for where in stop.keys() - reached:
        feature = features[stop[where]]
        raise FeaturesError(
            f"features[{stop[where]}] (shape {tuple(feature.shape)}) is not in the graph of any loss "
            f"({listed(names)}). Pass the very tensor the heads received, not a copy of it (a wrapper may "
            f"have made one, or trunk and heads are compiled as one), or leave features out: the gradients are the "
            f"same, and each task then costs a pass through the whole graph."
        )
    trunk: set[Any] = set()
    behind = tuple(leaves(features, seen=trunk)[0].values())
    everything, frees = set(), []
    for inner in reversed(above):
        frees.append(inner.isdisjoint(everything))
        everything |= inner
    size = len(everything) + len(trunk)
    order = tuple(reversed(frees))
    return Reach(tuple(own), behind, order, last_to_all=hit == frozen, size=size, sparse=_sparse(trunk))


def _sparse(functions: Iterable[Any]) -> bool:
    tables = [f for f in functions if (type(f).__name__, 0) in _TABLES]
    return bool(tables) and any(torch_internals.saved(f, "sparse") for f in tables)


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
    """One place where the graph reads a parameter in a known way.

    Args:
        node: the function that does it; its saved tensors hold the other factor.
        kind: "linear" (y = A W^T), "matmul" (y = A W), "convolution", "bias" (added to one of these) or "table" (rows
            of W are looked up).
    """

    node: Any
    kind: str


_DIRECT = {
    ("AddmmBackward0", 0): "bias",
    ("AddmmBackward0", 2): "matmul",
    ("MmBackward0", 1): "matmul",
    ("ConvolutionBackward0", 1): "convolution",
    ("ConvolutionBackward0", 2): "bias",
    ("EmbeddingBackward0", 0): "table",
    ("EmbeddingBagBackward0", 0): "table",
}
_TABLES = {where for where, kind in _DIRECT.items() if kind == "table"}
_TRANSPOSED = {("AddmmBackward0", 2), ("MmBackward0", 1)}


def uses(roots: Iterable[Tensor]) -> dict[int, list[Use] | None]:
    """For every leaf behind ``roots`` all its uses; None for a leaf with a use of another kind.

    Decided edge by edge, so that nothing is missed: a weight that is read by a matrix product *and* by anything
    else (a penalty, a hand-written attention) is None, and is differentiated by autograd as a whole.
    """
    found: dict[int, list[Use] | None] = {}
    seen: set[Any] = set()
    stack: list[Any] = [r.grad_fn for r in roots if r.grad_fn is not None]

    def add(leaf: Tensor, use: Use | None) -> None:
        known = found.setdefault(id(leaf), [])
        if use is None or known is None:
            found[id(leaf)] = None
        else:
            known.append(use)

    for node in stack:
        variable, _ = _transposed(node)
        if variable is not None:  # a transposed weight that is handed over itself
            add(variable, None)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        name = type(node).__name__
        for slot, (child, _) in enumerate(node.next_functions):
            if child is None:
                continue
            if type(child) is _LEAF:
                if name != "TBackward0":  # judged below, at the function that reads the transpose
                    kind = _DIRECT.get((name, slot))
                    add(child.variable, None if kind is None else Use(node, kind))
                continue
            variable, twice = _transposed(child)
            if variable is not None and name != "TBackward0":
                kind = "matmul" if twice else "linear"
                add(variable, Use(node, kind) if (name, slot) in _TRANSPOSED else None)
            stack.append(child)
    return found


def _transposed(node: Any) -> tuple[Tensor | None, bool]:
    """The leaf of which this is a transpose, and whether it is transposed back, as in the derivative of a layer that is
    differentiated once more; None for anything else."""
    twice = True
    while type(node).__name__ == "TBackward0":
        node, twice = node.next_functions[0][0], not twice
    # An even number of transposes is at least two here: nobody asks about the leaf itself.
    return (node.variable, twice) if type(node) is _LEAF else (None, False)


def opaque(roots: Iterable[Tensor]) -> bool:
    """Whether ``roots`` come from a function written in Python: a reentrant checkpoint, say, whose backward pass
    reaches leaves that the graph does not show."""
    seen: set[Any] = set()
    leaves(roots, seen=seen)
    return any(isinstance(function, torch.autograd.function.BackwardCFunction) for function in seen)


def count(roots: Iterable[Tensor]) -> int:
    """How many functions ``roots`` come from, leaves' included."""
    seen: set[Any] = set()
    leaves(roots, seen=seen)
    return len(seen)


def work(use: Use, weight: Tensor) -> int:
    """Multiply-adds that this use of a weight costs in one vector-Jacobian product, and once more if its own gradient
    is wanted: rows (or sites) times the weight's numbers. 0 for what costs no products."""
    if use.kind == "convolution":
        image: Tensor = torch_internals.saved(use.node, "input")
        return len(image) * math.prod(image.shape[2:]) * weight.numel()
    if use.kind in ("linear", "matmul"):
        added = type(use.node).__name__ == "AddmmBackward0"
        rows: Tensor = torch_internals.saved(use.node, "mat1" if added else "self")
        return len(rows) * weight.numel()
    return 0


def differentiate(
    outputs: Sequence[Tensor], inputs: Sequence[Any], seeds: Sequence[Tensor] | None = None, *, retain: bool
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad`` with None where nothing depends, and torch's two riddles answered.

    Args:
        outputs: what to differentiate; scalars if ``seeds`` is None.
        inputs: tensors or gradient edges.
        seeds: cotangents of the outputs, each of its output's shape.
        retain: whether the graph is needed again.

    Raises:
        ConfigurationError: reentrant checkpointing, which torch allows in a plain ``backward()`` only.
        LossError: the graph is gone, or a tensor that it needs was written to.
    """
    if not inputs:
        return ()
    if seeds is None:
        seeds = [torch.ones_like(output) for output in outputs]
    try:
        return torch_internals.vjp(tuple(outputs), tuple(seeds), tuple(inputs), retain)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise ConfigurationError(
                "the network uses torch.utils.checkpoint with use_reentrant=True, which torch cannot differentiate for "
                'one task alone: use checkpoint(..., use_reentrant=False). Only gradients="losses" (a method that '
                "needs losses only) works with reentrant checkpoints."
            ) from error
        spoilt = torch_internals.explained(error)
        if spoilt is None:
            raise
        raise spoilt from error


def backward(outputs: Sequence[Tensor], seeds: Sequence[Tensor], inputs: Sequence[Tensor] = ()) -> None:
    """``torch.autograd.backward``; frees the graph.

    Args:
        outputs: what to differentiate.
        seeds: their cotangents.
        inputs: the leaves whose ``.grad`` to fill; () for all.

    Raises:
        LossError: as :func:`differentiate`.
    """
    try:
        torch_internals.accumulate(tuple(outputs), tuple(seeds), tuple(inputs))
    except RuntimeError as error:
        spoilt = torch_internals.explained(error)
        if spoilt is None:
            raise
        raise spoilt from error


def finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no number is NaN or infinite. NaN and infinity survive a sum, so that one pass and one number per tensor
    do; a finite sum that overflows is looked at again."""
    if not tensors:
        return True
    tensors = [t._values() if t.is_sparse else t for t in tensors]  # torch.isfinite knows no sparse ones
    if tensors[0].is_cpu:
        found = 0.0
        for t in tensors:
            found += t.sum().item()
    else:
        found = total([t.sum() for t in tensors]).item()  # there every number that is read is a wait
    return math.isfinite(found) or all(bool(torch.isfinite(t).all()) for t in tensors)


def total(numbers: Sequence[Tensor]) -> Tensor:
    """The sum of scalars of any dtype on any device."""
    first = numbers[0]
    if any(n.dtype != first.dtype or n.device != first.device for n in numbers):
        numbers = [n.to(first) for n in numbers]
    return torch.stack(tuple(numbers)).sum()


class _Nothing(torch.autograd.Function):
    """The identity, with no gradient at all."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> None:
        return None


def free(outputs: Sequence[Tensor], inputs: Sequence[Any]) -> None:
    """Let go of what the graph between ``inputs`` and ``outputs`` saved, as a backward pass that does not retain it
    does, without computing anything: undefined gradients pass through every function, and each drops its tensors.

    Hooks meet them as None. One that cannot do with that, or a Function, ends the pass early, with a warning: nothing
    but memory is lost, and what is left goes with the losses."""
    apply: Callable[[Tensor], Tensor] = _Nothing.apply
    with torch.enable_grad():
        dead = [apply(output) for output in outputs]
    try:
        differentiate(dead, inputs, [d.detach() for d in dead], retain=False)
    except Exception as error:  # the network's own, of any kind
        warnings.warn(
            f"the graph of this step is freed only together with its losses: a hook or custom Function in the network "
            f"cannot handle an undefined gradient ({type(error).__name__}: {error}). The gradients are right. To save "
            f"the memory, return None where the gradient is None.",
            stacklevel=2,
        )
