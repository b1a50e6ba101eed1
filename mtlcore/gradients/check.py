"""Does a plan give what plain autograd gives? Asked once for each new graph, at the price of one backward pass.

With weights w the rows that a plan found must add up to the gradient of sum_i w_i L_i, which one ordinary backward pass
finds, and their Gramian G to w^T G w = |sum_i w_i g_i|^2. The w_i are of the size 1 / |g_i| and all different, so that
no task is too small to be seen and no two can be exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.jacobian import Blocks, Stored

_GOLDEN = 0.6180339887498949
_BLOCK = 1 << 20


def disagreement(found: Stored | Blocks, batch: Batch) -> float | None:
    """The largest error relative to the task gradients' norms; None where they are not finite: nobody is judged then.

    Args:
        found: what the plan found; the graph of ``batch`` must have been kept, and is kept.
        batch: the forward pass.
    """
    gram = found.gramian().cpu()
    norms = gram.diagonal().sqrt()
    if not bool(torch.isfinite(gram).all()):
        return None
    weights = _weights(norms)
    expected = graph.differentiate(batch.losses, batch.shared, batch.seeds(weights), retain=True)
    squares = _total([_dense(g) for g in expected if g is not None])
    if not math.isfinite(squares):
        return None
    scale = float((weights * norms).sum())
    if scale == 0.0:
        return math.sqrt(squares)
    error = abs(float(weights @ gram @ weights) - squares) / scale**2
    if isinstance(found, Stored):
        error = max(error, _distance(found, weights, batch, expected) / scale)
    return error


def tolerance(batch: Batch) -> float:
    """Rounding differs between plans by far less than this, a wrong gradient by far more."""
    rounding = 2.0 * math.sqrt(max(torch.finfo(p.dtype).eps for p in batch.shared))
    # Unless told otherwise, CUDA rounds what convolutions in float32 read to ten bits (TF32).
    ten_bits = any(p.device.type == "cuda" and p.dtype == torch.float32 for p in batch.shared)
    return max(rounding, 2.0**-6) if ten_bits else rounding


def _weights(norms: Tensor) -> Tensor:
    """Between 1 and 2, over the norm of the task's gradient; for one without gradient, the largest of these."""
    spread = torch.tensor([1.0 + (i * _GOLDEN) % 1.0 for i in range(len(norms))], dtype=torch.float64, device="cpu")
    alive = norms > 0
    if not bool(alive.any()):
        return spread
    return spread / torch.where(alive, norms, norms[alive].min())


def _distance(found: Stored, weights: Tensor, batch: Batch, expected: tuple[Tensor | None, ...]) -> float:
    by_id = dict(zip(map(id, batch.shared), expected))
    right, wrong = [], []
    for parameter, gradient in found.combined(weights):
        wanted = by_id[id(parameter)]
        wrong.append(_dense(gradient))
        right.append(torch.zeros_like(wrong[-1]) if wanted is None else _dense(wanted))
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(_blocks(wrong), _blocks(right))))


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _total(tensors: list[Tensor]) -> float:
    """The sum of all squares."""
    return sum(float(block.square().sum()) for block in _blocks(tensors))


def _blocks(tensors: list[Tensor]) -> Iterator[Tensor]:
    """The numbers of all tensors in float64, many small ones at a time: an operation each would take longer than all
    the rest in a network of ten thousand layers."""
    waiting: list[Tensor] = []
    size = 0
    for t in tensors:
        if waiting and waiting[0].device != t.device:
            yield torch.cat(waiting).to(torch.float64)
            waiting, size = [], 0
        waiting.append(t.flatten())
        size += t.numel()
        if size >= _BLOCK:
            yield torch.cat(waiting).to(torch.float64)
            waiting, size = [], 0
    if waiting:
        yield torch.cat(waiting).to(torch.float64)
