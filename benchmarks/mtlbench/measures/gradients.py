"""How task gradients lie to one another, out of their Gramian."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude_similarity(gramian: Tensor) -> float:
    """Mean over task pairs of 2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2), in [0, 1]; 1: equal lengths.

    The formula is that of Yu et al. 2020 [paper*]. Two gradients of zero are equally long. [choice]

    Args:
        gramian: G = J J' (K, K), K >= 2.
    """
    norms = gramian.diagonal().double().clamp_min(0.0).sqrt()
    i, j = torch.triu_indices(len(norms), len(norms), 1)
    a, b = torch.minimum(norms[i], norms[j]), torch.maximum(norms[i], norms[j])
    ratio = torch.where(b > 0.0, a / b, 1.0)
    return float((2.0 * ratio / (1.0 + ratio * ratio)).mean())


def condition_number(gramian: Tensor) -> float:
    """sigma_max / sigma_min of J (K, P), at least 1; up to 10 tends to train well. [paper: Senushkin et al. 2023]

    Infinite where the smallest eigenvalue of G is below what float64 resolves, K eps times the largest: conditions
    above about 1e7 are not told apart from a J of lower rank. [choice]

    Args:
        gramian: G = J J' (K, K).
    """
    values = torch.linalg.eigvalsh(gramian.double())
    least, most = float(values[0]), float(values[-1])
    resolved = len(values) * torch.finfo(torch.float64).eps * most
    return (most / least) ** 0.5 if least > resolved else float("inf")
