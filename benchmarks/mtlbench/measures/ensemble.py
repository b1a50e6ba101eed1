"""One prediction out of several classifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError


def self_ensembled(probabilities: Tensor) -> Tensor:
    """(N, C): for every example the probabilities of the member that is surest of its answer.

    Self-ensembling by maximum probability, the best variant of Li et al. 2023 [paper]; there the members are answers of
    one model to several prompts, here any classifiers of the same classes [choice]. Of equally sure members the first.

    Args:
        probabilities: (M, N, C) of M >= 1 members, rows that sum to 1.

    Raises:
        ConfigurationError: another shape, or no members.
    """
    if probabilities.dim() != 3 or not len(probabilities):
        raise ConfigurationError(f"self-ensembling needs probabilities (M, N, C); got {tuple(probabilities.shape)}.")
    surest = probabilities.amax(2).argmax(0)
    return probabilities[surest, torch.arange(probabilities.shape[1], device=probabilities.device)]
