"""How far tasks use different channels of the shared features."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError


def feature_disentanglement(gradients: Tensor) -> float:
    """1 - mean over task pairs of sum_k min(q_i[k], q_j[k]); 0: the same use of channels, 1: disjoint.

    q_t is the mean size |dL_t / dZ| of channel k, divided by the sum over channels. The idea is of Mao et al. 2024
    [paper, abstract]; its formula could not be read, this one is ours. [choice]

    Args:
        gradients: (K, N, C, ...), dL_t / dZ of the shared features Z (N, C, ...) for K >= 2 tasks.

    Raises:
        ConfigurationError: fewer than two tasks or axes, NaN, or a task that does not use the features at all.
    """
    if gradients.dim() < 3 or len(gradients) < 2 or not bool(gradients.isfinite().all()):
        raise ConfigurationError(f"gradients must be finite, (K, N, C, ...) with K >= 2; got {tuple(gradients.shape)}.")
    sizes = gradients.detach().double().abs()
    largest = sizes.flatten(1).amax(1)
    if bool((largest == 0).any()):
        raise ConfigurationError(f"task {int((largest == 0).nonzero()[0])} has no gradient at the features.")
    sizes = sizes.flatten(1).div(largest[:, None]).view_as(sizes)
    use = sizes.flatten(3).mean(3).mean(1) if sizes.dim() > 3 else sizes.mean(1)
    q = use / use.sum(1, keepdim=True)
    i, j = torch.triu_indices(len(q), len(q), 1)
    return float(1.0 - torch.minimum(q[i], q[j]).sum(1).mean())
