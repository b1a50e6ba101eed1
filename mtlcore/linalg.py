"""The two products every gradient source needs: G = J J^T and d = J^T w.

Rounding matters here. A law such as "conflicts with no task" is decided by inner products that may be
1e-7 of the norms involved, so G is accumulated in float64 from the float32 rows: each product of two
float32 numbers is exact in float64, and G is then accurate to about 1e-16 |g_i| |g_j| instead of 1e-7.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers per block of float64: 2 MB, so that the conversion costs no extra trip to memory (nor memory to speak of), and
# enough for several threads to share.
_BLOCK = 1 << 18
_QUEUED_BLOCK = 1 << 22
"""The same on an accelerator, where a call takes its time however small the block, and 32 MB are little ..."""
_PARTS = 24
"""... and for more rows so many blocks: a twelfth of the memory of float32 rows."""
_RUN = 1024
"""Columns per product. One product of a few very long rows runs far below the speed of a batch of shorter ones."""
_SHORT = 512
"""The same where the sum over a run is rounded to the dtype of the rows."""
_SQUARE = 1e-24
"""A sum of squares in float32 that loses no digit if each of 1e8 terms is off by the smallest normal number, 1e-38."""


def _queued(tensor: Tensor) -> bool:
    """Whether its operations wait in an accelerator's queue, and reading a number means to wait for them."""
    return tensor.device.type != "cpu"


def _columns(rows: Tensor) -> int:
    """Columns per block of a matrix (K, P)."""
    numbers = max(_QUEUED_BLOCK, rows.numel() // _PARTS) if _queued(rows) else _BLOCK
    return max(256, numbers // max(1, rows.shape[0]))


def row_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype rows are kept in: float64 if any tensor is float64, else float32 (also for bfloat16 and float16)."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def gramian(rows: Tensor) -> Tensor:
    """G = J J^T, (K, P) -> (K, K), float64, exactly symmetric, on the device of ``rows``."""
    return symmetric(products(rows))


def products(rows: Tensor) -> Tensor:
    """The same, symmetric except for rounding: for sums of several, which are made exactly symmetric once."""
    k, p = rows.shape
    if p < 4 * _RUN and k * p <= _BLOCK:  # a few biases, say: one call instead of many
        exact = rows.to(torch.float64)
        return exact @ exact.T
    out = torch.zeros(k, k, dtype=torch.float64, device=rows.device)
    even = p - p % _RUN
    step = max(_RUN, _columns(rows) // _RUN * _RUN)
    memory = rows.new_empty(k * min(step, even), dtype=torch.float64)
    for start in range(0, even, step):
        block = rows[:, start : min(start + step, even)]
        runs = memory[: block.numel()].view(-1, k, _RUN).copy_(block.reshape(k, -1, _RUN).transpose(0, 1))
        out += torch.bmm(runs, runs.transpose(1, 2)).sum(0)
    if even < p:
        rest = rows[:, even:].to(torch.float64)
        out.addmm_(rest, rest.T)
    return out


def symmetric(matrix: Tensor) -> Tensor:
    """The upper triangle, mirrored: BLAS may round (i, j) and (j, i) differently, and solvers rely on symmetry."""
    return torch.triu(matrix) + torch.triu(matrix, 1).T


def vector(numbers: Sequence[float]) -> Tensor:
    """(K,) float64 of the numbers, on the processor. Half of the overhead of ``torch.tensor``."""
    memory = array("d", numbers)
    if not memory:  # an error for frombuffer
        return torch.empty(0, dtype=torch.float64, device="cpu")
    return torch.frombuffer(memory, dtype=torch.float64)


def placed(weights: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``weights`` on the device of ``like`` and in its dtype, or the given one. Sent along with the work that waits in
    an accelerator's queue: nobody waits for it."""
    return weights.to(like.device, dtype or like.dtype, non_blocking=True)


def combine(rows: Tensor, weights: Tensor) -> Tensor:
    """d = J^T w, (K, P) and (K,) -> (P,) in the dtype of ``rows``.

    For float32 rows the sum is formed in float64 block by block, so that cancellation between
    opposing tasks does not leave a direction made of rounding.
    """
    if rows.dtype == torch.float64:
        return rows.T @ placed(weights, rows)
    out = torch.empty(rows.shape[1], dtype=rows.dtype, device=rows.device)
    exact = placed(weights, rows, torch.float64)
    start = 0
    for block in _doubles(rows):
        stop = start + block.shape[1]
        out[start:stop] = exact @ block
        start = stop
    return out


def across(rows: Tensor, vectors: Tensor) -> Tensor:
    """J V^T, (K, P) and (m, P) -> (K, m) float64, summed in float64."""
    out = torch.zeros(len(rows), len(vectors), dtype=torch.float64, device=rows.device)
    start = 0
    for block in _doubles(rows):
        stop = start + block.shape[1]
        out += block.to(torch.float64) @ vectors[:, start:stop].to(torch.float64).T
        start = stop
    return out


def _doubles(rows: Tensor) -> Iterator[Tensor]:
    """Blocks of columns in float64, one after the other in the same memory."""
    step = _columns(rows)
    exact = rows.dtype == torch.float64
    memory = rows.new_empty(0 if exact else rows.shape[0] * min(step, rows.shape[1]), dtype=torch.float64)
    for start in range(0, rows.shape[1], step):
        block = rows[:, start : start + step]
        yield block if exact else memory[: block.numel()].view(block.shape).copy_(block)


class Factored(NamedTuple):
    """K matrices D_i^T A that are never formed.

    Args:
        cotangents: D, (K, N, out).
        inputs: A, (N, in), N <= in.
        bias: whether A has one more column, of ones.
    """

    cotangents: Tensor
    inputs: Tensor
    bias: bool = False


def factored_products(layers: Sequence[Factored]) -> Tensor:
    """The Gramian of the tasks' matrices, added up over one or more layers of one dtype and device.

    With a triangle R such that A A^T = R^T R, inner products of the matrices are those of the R D_i, which are N x out
    instead of in x out. R D_i is formed in the dtype of the factors, with the rounding that forming the matrices
    themselves has, eps |D_i| |A|. Their inner products are taken in that dtype over short runs, which adds rounding of
    the same size, and the runs are added up in float64: about eps |g_i| |g_j| in all. (The shorter <D_i, (A A^T) D_j>
    squares the rounding where the sum over N cancels, as near a stationary point.)

    Gradients whose squares that dtype cannot hold (float32: norms below 1e-12 or above 1e19) are taken in float64.

    On an accelerator all of float32 is taken in float64, the shorter way: a triangle takes many small kernels there,
    and a look at the squares a wait. Its rounding, 1e-16 (|D| |A|)^2, is below the other's wherever the cancellation
    leaves a gradient at all (|g| > 1e-8 |D| |A|).

    Returns:
        (K, K) float64, symmetric except for rounding.
    """
    first = layers[0].cotangents
    if _queued(first) and first.dtype != torch.float64:
        return functools.reduce(Tensor.add_, [_squared(*layer) for layer in layers])
    out = _run_by_run(layers, first.dtype)
    poor = [i for i, square in enumerate(out.diagonal().tolist()) if not _SQUARE <= square < math.inf]
    if poor and first.dtype != torch.float64 and any(bool(layer.cotangents[poor].any()) for layer in layers):
        out = _run_by_run(layers, torch.float64)
    return out


def _run_by_run(layers: Sequence[Factored], dtype: torch.dtype) -> Tensor:
    """Inner products of the R D_i, (K, K), in the given dtype except for the sum over runs."""
    first = layers[0].cotangents
    out = torch.zeros(len(first), len(first), dtype=torch.float64, device=first.device)
    for (cotangents, _, _), triangle in _triangles(layers):
        k, n, width = cotangents.shape
        step = max(1, min(_SHORT, 2 * _BLOCK // max(1, k * n)))
        left = triangle.to(dtype).expand(k, n, n)
        for start in range(0, width, step):
            runs = torch.bmm(left, cotangents[:, :, start : start + step].to(dtype)).transpose(0, 1)
            out += torch.bmm(runs, runs.transpose(1, 2)).sum(0, dtype=torch.float64)
    return out


def _squared(cotangents: Tensor, inputs: Tensor, ones: bool) -> Tensor:
    """<D_i, (A A^T) D_j>, (K, K), in float64 throughout. ``ones``: with one more column, of ones, in A."""
    k, n, width = cotangents.shape
    exact = inputs.to(torch.float64)
    square = exact @ exact.T
    if ones:
        square += 1.0
    step = max(1, _columns(cotangents.view(k, -1)) // max(1, n))
    shares = []
    for start in range(0, max(1, width), step):
        runs = cotangents[:, :, start : start + step].to(torch.float64).transpose(0, 1)
        moved = torch.matmul(square, runs.reshape(n, -1)).view(runs.shape)
        shares.append(torch.bmm(runs, moved.transpose(1, 2)).sum(0))
    return shares[0] if len(shares) == 1 else torch.stack(shares).sum(0)


def _triangles(layers: Sequence[Factored]) -> Iterator[tuple[Factored, Tensor]]:
    """With each layer R, (N, N) upper triangular, such that A A^T = R^T R for its A (with the column of ones, if it has
    one), to about eps |A|^2, however dependent the rows."""
    waiting: dict[int, list[Factored]] = {}
    for layer in layers:
        n = len(layer.inputs)
        group = waiting.setdefault(n, [])
        group.append(layer)
        if len(group) * n * n >= _BLOCK:
            yield from _factorised(waiting.pop(n))
    for group in waiting.values():
        yield from _factorised(group)


def _factorised(layers: Sequence[Factored]) -> Iterator[tuple[Factored, Tensor]]:
    """The same for layers of one N at once."""
    n, failed = len(layers[0].inputs), [1] * len(layers)
    if layers[0].inputs.dtype == torch.float32:
        # Forming A A^T costs half of the digits, and half of float64's are float32's. A Cholesky that runs to its end
        # is as accurate for dependent rows as for others; two thirds of the time of a QR in float32 for 64 rows.
        squares = layers[0].inputs.new_zeros(len(layers), n, n, dtype=torch.float64)
        for square, (_, inputs, ones) in zip(squares.unbind(), layers):
            exact = inputs.to(torch.float64)
            (square.fill_(1.0) if ones else square).addmm_(exact, exact.T)
        lower, info = torch.linalg.cholesky_ex(squares)
        upper, failed = lower.mT.to(torch.float32), info.tolist()
    for i, layer in enumerate(layers):
        yield layer, _by_qr(layer) if failed[i] else upper[i]


def _by_qr(layer: Factored) -> Tensor:
    _, inputs, ones = layer
    if ones:
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
    triangle: Tensor = torch.linalg.qr(inputs.T, mode="r").R
    return triangle


def cosines(gram: Tensor) -> Tensor:
    """Cosine of every pair of tasks, (K, K), from the Gramian; NaN where a gradient is zero."""
    norm = gram.diagonal().sqrt()
    return (gram / norm[:, None] / norm[None, :]).clamp(-1.0, 1.0)
