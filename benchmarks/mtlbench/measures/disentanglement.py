"""How far tasks use different channels of the shared features."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Disentanglement:
    """Three measures of one thing; each is 0 where all tasks use the channels alike, 1 where no two share one.

    With the use S (K, C) of :func:`channel_use` and its shares q_t = S_t / sum_k S_t[k]:

    - ``overlap``: 1 - mean over task pairs of sum_k min(q_i[k], q_j[k]). What a record calls disentanglement.
    - ``cosine``: 1 - mean over task pairs of cos(S_i, S_j). Channels that are used a lot count for more.
    - ``entropy``: 1 - sum_k w_k H(task | channel k) / log K, with p(t | k) = q_t[k] / sum_s q_s[k] and
      w_k = sum_t q_t[k] / K. It is the Jensen-Shannon divergence of the q_t, divided by its largest value log K.

    The idea is of Mao et al. 2024 [paper, abstract]; the paper's formulas could not be read, these are ours, the
    weights w_k among them. [choice]
    """

    overlap: float
    cosine: float
    entropy: float


def feature_disentanglement(gradients: Tensor, features: Tensor | None = None) -> Disentanglement:
    """The three measures. Arguments and errors: see :func:`channel_use`."""
    use = channel_use(gradients, features)
    q = use / use.sum(1, keepdim=True)
    i, j = torch.triu_indices(len(q), len(q), 1)
    unit = use / use.norm(dim=1, keepdim=True)
    together = q.sum(0)
    share = q / torch.where(together > 0, together, 1.0)
    left = (together / len(q) * torch.special.entr(share).sum(0)).sum() / math.log(len(q))
    return Disentanglement(
        overlap=1.0 - float(torch.minimum(q[i], q[j]).sum(1).mean()),
        cosine=1.0 - float((unit[i] * unit[j]).sum(1).mean()),
        entropy=1.0 - float(left),
    )


def channel_use(gradients: Tensor, features: Tensor | None = None) -> Tensor:
    """(K, C) float64: how much each task uses each channel, up to a positive factor per task.

    It is the mean over examples and places of |a dL_t / dZ|, with a = 1 ("gradient"), or a = Z ("gradient times input")
    if the features are given. [choice]

    Args:
        gradients: (K, N, C, ...), dL_t / dZ of the shared features Z for K >= 2 tasks.
        features: Z (N, C, ...).

    Raises:
        ConfigurationError: fewer than two tasks or axes, shapes that do not fit, NaN, or a task that does not use the
            features at all.
    """
    if gradients.dim() < 3 or len(gradients) < 2 or not bool(gradients.isfinite().all()):
        raise ConfigurationError(f"gradients must be finite, (K, N, C, ...) with K >= 2; got {tuple(gradients.shape)}.")
    sizes = _scaled(gradients.detach().double().abs())
    if features is not None:
        if features.shape != gradients.shape[1:] or not bool(features.isfinite().all()):
            raise ConfigurationError(
                f"features must be finite, {tuple(gradients.shape[1:])} like a task's gradients; got "
                f"{tuple(features.shape)}."
            )
        sizes = _scaled(sizes * _scaled(features.detach().double().abs()[None]))
    unused = (sizes.flatten(1).amax(1) == 0).nonzero()
    if len(unused):
        raise ConfigurationError(f"task {int(unused[0])} has no gradient at the features, or only where they are zero.")
    use: Tensor = sizes.flatten(3).mean(3).mean(1) if sizes.dim() > 3 else sizes.mean(1)
    return use


def _scaled(sizes: Tensor) -> Tensor:
    """Each of the first axis in units of its largest entry: sizes of 1e-200 have squares and products, too."""
    largest = sizes.flatten(1).amax(1)
    return sizes / torch.where(largest > 0, largest, 1.0).view(-1, *[1] * (sizes.dim() - 1))
