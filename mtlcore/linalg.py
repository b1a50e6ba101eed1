"""The two products every gradient source needs: G = J J^T and d = J^T w.

Rounding matters here. A law such as "conflicts with no task" is decided by inner products that may be
1e-7 of the norms involved, so G is accumulated in float64 from the float32 rows: each product of two
float32 numbers is exact in float64, and G is then accurate to about 1e-16 |g_i| |g_j| instead of 1e-7.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Columns per block: K x 32768 doubles of a few tasks stay in the level-2 cache of an ordinary core,
# so the conversion to float64 costs no extra trip to memory.
_BLOCK = 1 << 15


def row_dtype(tensors: list[Tensor] | tuple[Tensor, ...]) -> torch.dtype:
    """The dtype rows are kept in: float64 if any tensor is float64, else float32 (also for bfloat16 and float16)."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def gramian(rows: Tensor) -> Tensor:
    """G = J J^T, (K, P) -> (K, K), float64, exactly symmetric, on the device of ``rows``."""
    return cross_gramian(rows, rows, symmetric=True)


def cross_gramian(left: Tensor, right: Tensor, symmetric: bool = False) -> Tensor:
    """J_1 J_2^T, (K, P) x (K', P) -> (K, K') in float64."""
    out = torch.zeros(left.shape[0], right.shape[0], dtype=torch.float64, device=left.device)
    for start in range(0, left.shape[1], _BLOCK):
        a = left[:, start : start + _BLOCK].to(torch.float64)
        b = a if symmetric else right[:, start : start + _BLOCK].to(torch.float64)
        out.addmm_(a, b.T)
    if symmetric:
        # BLAS may round (i, j) and (j, i) differently; the solvers rely on exact symmetry.
        out = torch.tril(out) + torch.tril(out, -1).T
    return out


def combine(rows: Tensor, weights: Tensor) -> Tensor:
    """d = J^T w, (K, P) and (K,) -> (P,) in the dtype of ``rows``.

    For float32 rows the sum is formed in float64 block by block, so that cancellation between
    opposing tasks does not leave a direction made of rounding.
    """
    if rows.dtype == torch.float64:
        return rows.T @ weights.to(rows.dtype)
    out = torch.empty(rows.shape[1], dtype=rows.dtype, device=rows.device)
    exact = weights.to(torch.float64)
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK].to(torch.float64)
        out[start : start + _BLOCK] = exact @ block
    return out


def cosines(gram: Tensor) -> Tensor:
    """Cosine of every pair of tasks, (K, K), from the Gramian; NaN where a gradient is zero."""
    norm = gram.diagonal().sqrt()
    return (gram / norm[:, None] / norm[None, :]).clamp(-1.0, 1.0)
