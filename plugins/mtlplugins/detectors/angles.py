"""What every detector reads off the Gramian: which gradients are alive, and the angles between them.

A gradient that is exactly zero conflicts with nobody. An inner product below ``K eps |a||b|`` (eps of float64, in which
Gramians are kept) is rounding, not a conflict.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps


def norms(gram: Tensor) -> Tensor:
    """|g_i|, (K,)."""
    return gram.diagonal().clamp_min(0.0).sqrt()


def pairwise(gram: Tensor) -> Tensor:
    """cos(g_i, g_j), (K, K); NaN on the diagonal and where a gradient is zero. Rounding counts as orthogonal."""
    size = norms(gram)
    cos = (gram / size[:, None] / size[None, :]).clamp(-1.0, 1.0)
    cos = torch.where(cos.abs() <= gram.shape[0] * _EPS, torch.zeros_like(cos), cos)
    return cos.fill_diagonal_(float("nan"))


def with_mean(gram: Tensor) -> Tensor:
    """cos(g_i, g_0) with the mean gradient g_0, (K,); NaN where either is zero. Rounding counts as orthogonal.

    <g_i, g_0> is a sum of K inner products, so its rounding is that of the largest of them: relative to
    |g_i| max_j |g_j|, not to |g_i||g_0|.
    """
    k = gram.shape[0]
    size = norms(gram)
    inner = gram.mean(dim=0)
    largest = size.max()
    inner = torch.where(inner.abs() <= k * _EPS * size * largest, torch.zeros_like(inner), inner)
    mean = gram.mean().clamp_min(0.0).sqrt()
    if bool(mean <= largest * (k * _EPS) ** 0.5):
        return torch.full_like(size, float("nan"))
    return (inner / size / mean).clamp(-1.0, 1.0)


def negative(cos: Tensor, threshold: float = 0.0) -> Tensor:
    """cos < -threshold, False where it is NaN."""
    return torch.nan_to_num(cos, nan=float("inf")) < -threshold


def smallest(cos: Tensor, rank: int = 1) -> float:
    """The ``rank``-th smallest cosine (NaN left out); 0 if there are fewer."""
    finite = cos[~cos.isnan()]
    return float(finite.kthvalue(rank).values) if finite.numel() >= rank else 0.0
