"""A vector of losses of which the i-th depends on the i-th sample only: K task gradients from one pass.

Let y = A W^T be a layer with R rows per sample, D the cotangent of y for the sum of all losses. If no loss depends on
another's sample, the cotangent for loss i alone is D in the rows of sample i and zero elsewhere, and its gradient
is D_i^T A_i. So one pass gives all task gradients, and for R = 1 <g_i, g_j> = <D_i, D_j> <A_i, A_j> (the products are
taken in float64).

Whether the losses are independent cannot be read off the graph (a batch norm mixes samples), so it is tested in every
step: with cotangents u_i of the losses, all different, D must become u_i D in the rows of sample i. If D had a part of
loss j in a row of sample i, it would get u_j times that part. Where the test fails, or a layer is of an unknown kind,
:func:`collect` returns None and any other source serves. The direction is a backward pass of the weighted losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlcore import linalg
from mtlcore.errors import NonFiniteError, PluginError
from mtlcore.gradients import check, graph, torch_internals
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.taps import Taps
from mtlcore.gradients.task_gradients import Answer, TaskGradients, accumulate, all_or_nothing
from mtlcore.gradients.torch_internals import saved

_GOLDEN = 0.6180339887498949
REASON = "samples: each loss of the vector depends on its own sample only; one pass for all tasks"


def collect(batch: Batch) -> TaskGradients | None:
    """The Gramian of a vector of per-sample losses; None where it is no such vector."""
    vector = batch.vector
    if vector is None or batch.scale is not None or not torch_internals.shows_saved():
        return None
    layers = _layers(batch, vector)
    if not layers:
        return None
    nodes = list(dict.fromkeys(node for uses in layers for node, _ in uses))
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
    cotangents = dict(zip(nodes, found))
    total = torch.zeros(len(vector), len(vector), dtype=torch.float64, device=vector.device)
    with torch.no_grad():
        for uses in layers:
            total += _gramian([(cotangents[n], a) for n, a in uses if cotangents[n] is not None], len(vector), total)
    return _Samples(batch, vector, total)


Uses = list[tuple[Any, Tensor | None]]
"""Of a parameter: the functions that read it, and what it is multiplied with; None for a bias."""


def _layers(batch: Batch, vector: Tensor) -> list[Uses] | None:
    """Of every parameter of the trunk that the losses reach; None if one is used in an unknown way."""
    known, reached = graph.uses([vector]), batch.leaves
    out = []
    for p in batch.shared:
        uses = known.get(id(p))
        if id(p) not in reached:
            continue
        if not uses or torch_internals.tensor_hooks(p) or len({u.kind for u in uses}) != 1:
            return None
        mine: Uses = []
        for use in uses:
            added = type(use.node).__name__ == "AddmmBackward0"
            if use.kind not in ("linear", "matmul", "bias") or (use.kind == "bias" and not added):
                return None
            if added and (saved(use.node, "alpha") != 1 or saved(use.node, "beta") != 1):
                return None
            a = None if use.kind == "bias" else saved(use.node, "mat1" if added else "self").detach()
            if a is not None and (a.ndim != 2 or a.layout != torch.strided or a.dtype != p.dtype):
                return None
            if use.kind == "bias" and p.ndim != 1:
                return None
            mine.append((use.node, a))
        out.append(mine)
    return out


def _independent(once: Tensor | None, spread: Tensor | None, u: Tensor, tolerance: float) -> bool:
    if once is None or spread is None:
        return once is spread
    if once.ndim != 2 or len(once) == 0 or len(once) % len(u):
        return False
    factors = u.to(once).repeat_interleave(len(once) // len(u))[:, None]
    wrong, size = (spread - factors * once).norm(dim=1), (factors * once).norm(dim=1)
    return bool((wrong <= tolerance * size).all())


def _gramian(uses: list[tuple[Tensor | None, Tensor | None]], k: int, like: Tensor) -> Tensor:
    """(K, K) of one parameter's gradients."""
    if not uses:
        return torch.zeros_like(like)
    cotangents = torch.cat([d.view(k, -1, d.shape[1]) for d, _ in uses if d is not None], 1)
    if uses[0][1] is None:
        return linalg.gramian(cotangents.sum(1))
    inputs = torch.cat([a.view(k, -1, a.shape[1]) for _, a in uses if a is not None], 1)
    if cotangents.shape[1] == 1:
        return linalg.gramian(cotangents[:, 0]) * linalg.gramian(inputs[:, 0])
    return linalg.gramian(torch.bmm(cotangents.transpose(1, 2), inputs).flatten(1))


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
