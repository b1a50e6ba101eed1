"""Conversion between the tensors of a view and the arrays of the solvers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlcore import StepView
from mtlplugins.solvers.cosines import Array, Cosines, cosines


def read(view: StepView) -> Cosines:
    """The view's Gramian, row-normalised."""
    return cosines(view.gramian.numpy())


def losses(view: StepView) -> Array:
    """(K,) losses."""
    return np.array(view.loss_values)


def tensor(values: Array) -> Tensor:
    """(K,) float64 weights."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
