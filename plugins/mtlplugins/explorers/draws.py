"""Preferences that are drawn while one model for all of them is trained."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def dirichlet(concentration: float, n_tasks: int, generator: torch.Generator) -> Tensor:
    """(K,) float64 from Dirichlet(p, ..., p); all that is random comes from the generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([concentration] * n_tasks))
