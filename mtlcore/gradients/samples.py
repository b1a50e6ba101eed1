"""A vector of losses of which the i-th depends on the i-th sample only: K task gradients from one pass.

Let y = A W^T be a layer with R rows per sample, D the cotangent of y for the sum of all losses. If no loss depends on
another's sample, the cotangent for loss i alone is D in the rows of sample i and zero elsewhere, and its gradient
is D_i^T A_i. So one pass gives all task gradients, and for R = 1 <g_i, g_j> = <D_i, D_j> <A_i, A_j> (the products are
taken in float64). A convolution is such a layer, with the patches of its images as A and a row for every site. A loss
that is made of derivatives of the network (the residual of a differential equation) reads W in y = A W, too, with the
gradient A_i^T D_i. The gradients of several uses add up.

Whether the losses are independent cannot be read off the graph (a batch norm mixes samples), so it is tested in every
step: with cotangents u_i of the losses, all different, D must become u_i D in the rows of sample i. If D had a part of
loss j in a row of sample i, it would get u_j times that part. Where the test fails, or a layer is of an unknown kind,
:func:`collect` returns None and any other source serves. The direction is a backward pass of the weighted losses.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlcore import linalg
from mtlcore.errors import NonFiniteError, PluginError
from mtlcore.gradients import check, graph, rows, torch_internals
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.taps import Taps
from mtlcore.gradients.task_gradients import Answer, TaskGradients, accumulate, all_or_nothing
from mtlcore.gradients.torch_internals import saved

_GOLDEN = 0.6180339887498949
REASON = "samples: each loss of the vector depends on its own sample only; one pass for all tasks"


def collect(batch: Batch) -> TaskGradients | None:
    """The Gramian of a vector of per-sample losses; None where it is not such a vector."""
    vector = batch.vector
    if vector is None or batch.scale is not None or not torch_internals.shows_saved():
        return None
    layers = _layers(batch, vector)
    if not layers:
        return None
    nodes = list(dict.fromkeys(use.node for uses in layers for use in uses))
    taps = Taps(nodes)
    try:
        if taps.hooked:
            return None
        edges = [GradientEdge(n, 0) for n in nodes]
        ones = torch.ones_like(vector)
        spread = torch.tensor([1.0 + (i * _GOLDEN) % 1.0 for i in range(len(vector))]).to(vector)
        found = taps.differentiate([vector], edges, [ones], retain=True)
        again = taps.differentiate([vector], edges, [spread], retain=True)
    finally:
        taps.remove()
    if not all(_independent(a, b, spread, check.tolerance(batch)) for a, b in zip(found, again)):
        return None
    cotangents = dict(zip(nodes, map(_flat, found)))
    total = torch.zeros(len(vector), len(vector), dtype=torch.float64, device=vector.device)
    with torch.no_grad():
        for uses in layers:
            reached = [(use, d) for use in uses if (d := cotangents[use.node]) is not None]
            if reached:
                total += _gramian(reached, len(vector))
    return _Samples(batch, vector, total)


class _Use(NamedTuple):
    """A place where a parameter is read."""

    parameter: Tensor
    node: Any
    kind: str
    """As of :class:`graph.Use`."""

    def input(self) -> Tensor:
        """A of y = A W^T or y = A W."""
        added = type(self.node).__name__ == "AddmmBackward0"
        found: Tensor = saved(self.node, "mat1" if added else "self").detach()
        return found

    def served(self) -> bool:
        """Whether the products below are its gradient."""
        if self.kind == "convolution" or (self.kind == "bias" and type(self.node).__name__ == "ConvolutionBackward0"):
            return self.kind == "bias" or rows.unfolds(self.node, self.parameter)
        added = type(self.node).__name__ == "AddmmBackward0"
        if added and (saved(self.node, "alpha") != 1 or saved(self.node, "beta") != 1):
            return False
        if self.kind == "bias":
            return added and self.parameter.ndim == 1
        a = self.input()
        return a.ndim == 2 and a.layout == torch.strided and a.dtype == self.parameter.dtype


def _layers(batch: Batch, vector: Tensor) -> list[list[_Use]] | None:
    """The uses of every parameter of the trunk that the losses reach; None if one is used in an unknown way."""
    known, reached = graph.uses([vector]), batch.leaves
    out = []
    for p in batch.shared:
        if id(p) not in reached:
            continue
        uses = [_Use(p, u.node, u.kind) for u in known.get(id(p)) or ()]
        kinds = {u.kind for u in uses}
        alike = kinds in ({"bias"}, {"convolution"}) or kinds <= {"linear", "matmul"}
        if not uses or not alike or torch_internals.tensor_hooks(p) or not all(u.served() for u in uses):
            return None
        out.append(uses)
    return out


def _independent(once: Tensor | None, spread: Tensor | None, u: Tensor, tolerance: float) -> bool:
    if once is None or spread is None:
        return once is spread
    if once.ndim not in (2, 4) or len(once) == 0 or len(once) % len(u):
        return False
    once, spread = once.flatten(1), spread.flatten(1)
    factors = u.to(once).repeat_interleave(len(once) // len(u))[:, None]
    wrong, size = (spread - factors * once).norm(dim=1), (factors * once).norm(dim=1)
    return bool((wrong <= tolerance * size).all())


def _flat(cotangent: Tensor | None) -> Tensor | None:
    """(rows, out): of images (n, out, height, width) every site is a row."""
    if cotangent is None or cotangent.ndim == 2:
        return cotangent
    return cotangent.flatten(2).transpose(1, 2).flatten(0, 1)


def _gramian(uses: list[tuple[_Use, Tensor]], k: int) -> Tensor:
    """(K, K) of one parameter's gradients."""
    kind = uses[0][0].kind
    if kind == "bias":
        return linalg.gramian(_by_sample([d for _, d in uses], k).sum(1))
    if kind == "convolution":
        cotangents = [(use, d.view(k, -1, d.shape[1])) for use, d in uses]
        wide, fan_in = uses[0][1].shape[1], uses[0][0].parameter[0].numel()
        blocks = _blocks(wide, k * fan_in)
        return _sum(linalg.gramian(_sum(_convolved(use, d[:, :, b]) for use, d in cotangents)) for b in blocks)
    # The gradient of W^T for y = A W is D_i^T A_i, as that of W for y = A W^T: D and A are exchanged.
    left = _by_sample([use.input() if use.kind == "matmul" else d for use, d in uses], k)
    right = _by_sample([d if use.kind == "matmul" else use.input() for use, d in uses], k)
    if left.shape[1] == 1:
        return linalg.gramian(left[:, 0]) * linalg.gramian(right[:, 0])
    blocks = _blocks(left.shape[2], k * right.shape[2])
    return _sum(linalg.gramian(torch.bmm(left[:, :, b].transpose(1, 2), right).flatten(1)) for b in blocks)


_ROWS = 1 << 25
"""Numbers that a block of task gradients may take: they are needed for their inner products only."""


def _blocks(width: int, each: int) -> list[slice]:
    """Of the outputs of a layer, of which one has ``each`` numbers in all task gradients together."""
    step = max(1, _ROWS // max(each, 1))
    return [slice(start, start + step) for start in range(0, width, step)]


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _by_sample(pieces: list[Tensor], k: int) -> Tensor:
    """(K, rows of a sample at all uses, n)."""
    return torch.cat([t.view(k, -1, t.shape[1]) for t in pieces], 1)


_PATCHES = 1 << 24
"""Numbers that the patches of a convolution may take at once."""


def _convolved(use: _Use, cotangent: Tensor) -> Tensor:
    """(K, out x fan-in): the gradients of a kernel, some samples at a time, for patches repeat every pixel."""
    k, sites, out = cotangent.shape
    fan_in = use.parameter[0].numel()
    images = len(saved(use.node, "input")) // k
    found = cotangent.new_empty(k, out * fan_in)
    some = max(1, _PATCHES // (sites * fan_in))
    for start in range(0, k, some):
        end = min(start + some, k)
        patches = rows.patches(use.node, use.parameter, slice(start * images, end * images))
        products = torch.bmm(cotangent[start:end].transpose(1, 2), patches.reshape(end - start, sites, fan_in))
        found[start:end] = products.flatten(1)
    return found


class _Samples(TaskGradients):
    def __init__(self, batch: Batch, vector: Tensor, gramian: Tensor) -> None:
        self._batch = batch
        self._vector = vector
        self._gramian = gramian

    def gramian(self) -> Tensor:
        """(K, K) float64."""
        return self._gramian

    def rows(self) -> Tensor:
        """Not known."""
        raise PluginError("the source for per-sample losses keeps no rows.")

    def write(self, answer: Answer) -> None:
        """See :class:`TaskGradients`: a pass for the heads' own parameters, and one for the trunk."""
        if answer.weights is None:
            raise PluginError("a method that returns a direction needs rows, and per-sample losses keep none.")
        vector, shared = self._vector, self._batch.shared
        ids = set(map(id, shared))
        own = [t for i, t in self._batch.leaves.items() if i not in ids]
        heads = torch.ones_like(vector) if answer.head_weights is None else linalg.placed(answer.head_weights, vector)
        with all_or_nothing([*shared, *own]):
            found = graph.differentiate([vector], own, [heads], retain=True)
            for leaf, gradient in zip(own, found):
                if gradient is not None:
                    accumulate(leaf, gradient, fresh=False)
            graph.backward([vector], [linalg.placed(answer.weights, vector)], shared)
            if not graph.finite([t.grad for t in (*shared, *own) if t.grad is not None]):
                raise NonFiniteError(
                    "the gradient of the vector of losses is NaN or infinite although the losses are finite. Nothing "
                    "was changed: parameters, method state and .grad are as before. Look for sqrt, log or a division "
                    "at zero."
                )
