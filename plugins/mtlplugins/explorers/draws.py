"""Random preferences for the training of one model for all preferences."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def dirichlet(concentration: float, n_tasks: int, generator: torch.Generator) -> Tensor:
    """(K,) float64 from Dirichlet(p, ..., p), drawn from the generator only."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([concentration] * n_tasks))
