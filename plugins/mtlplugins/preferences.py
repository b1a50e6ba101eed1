"""Preference vectors: one non-negative number per task, given once or drawn in every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mtlcore.contracts import StepView
from mtlplugins.arrays import Array, take


def preference(given: Sequence[float] | None, concentration: float | None, view: StepView) -> Array:
    """(K,) of the tasks in this view, on the simplex: the given numbers, or equal ones, or a draw from
    Dirichlet(p, ..., p) with p = ``concentration``."""
    if given is not None:
        r = take(np.array(given), view)
    elif concentration is None:
        r = np.ones(view.n_tasks)
    else:
        # torch has no seeded Gamma draw of a chosen generator: numpy's, seeded by the step's own.
        seed = int(torch.randint(2**62, (1,), generator=view.generator, device="cpu"))
        r = np.random.default_rng(seed).dirichlet(np.full(view.n_tasks, concentration))
    total = float(r.sum())
    return r / total if total > 0.0 else np.full(len(r), 1.0 / len(r))
