"""Lengths of gradients and cosines between them, from the Gramian, for all detectors.

A gradient that is exactly zero conflicts with no other. An inner product below ``K eps |a||b|`` (eps of float64, the
dtype of Gramians) counts as zero, because it is within the rounding error.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps


def norms(gram: Tensor) -> Tensor:
    """|g_i|, (K,)."""
    return gram.diagonal().clamp_min(0.0).sqrt()


def pairwise(gram: Tensor) -> Tensor:
    """cos(g_i, g_j), (K, K); 0 within the rounding error; NaN on the diagonal and where a gradient is zero."""
    size = norms(gram)
    cos = (gram / size[:, None] / size[None, :]).clamp(-1.0, 1.0)
    cos = torch.where(cos.abs() <= gram.shape[0] * _EPS, torch.zeros_like(cos), cos)
    return cos.fill_diagonal_(float("nan"))


def with_mean(gram: Tensor) -> Tensor:
    """cos(g_i, g_0) with the mean gradient g_0, (K,); 0 within the rounding error; NaN where either gradient is zero.

    <g_i, g_0> is a sum of K inner products. Its rounding error is relative to the largest of them, that is, to
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
    """Whether cos < -threshold, entry by entry; False where cos is NaN."""
    return torch.nan_to_num(cos, nan=float("inf")) < -threshold


def smallest(cos: Tensor, rank: int = 1) -> float:
    """The ``rank``-th smallest cosine that is not NaN; 0 if there are fewer."""
    finite = cos[~cos.isnan()]
    return float(finite.kthvalue(rank).values) if finite.numel() >= rank else 0.0
