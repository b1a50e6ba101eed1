"""The operations that pass units on, and the elements of a weight that belong to a unit."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

CONVS: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
TRANSPOSED: dict[type[nn.Module], int] = {nn.ConvTranspose1d: 3, nn.ConvTranspose2d: 4, nn.ConvTranspose3d: 5}
CHANNEL_NORMS: dict[type[nn.Module], int | None] = {
    nn.BatchNorm1d: None, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5, nn.GroupNorm: None,
    nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5,
}  # fmt: skip
FEATURE_NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
UNITWISE: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
POOLS: dict[type[nn.Module], int] = {
    getattr(nn, f"{kind}Pool{d}d"): d + 2 for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for d in (1, 2, 3)
}
UNITWISE_CALLS: frozenset[Any] = frozenset(
    {
        F.relu,
        torch.relu,
        torch.relu_,
        F.leaky_relu,
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        torch.abs,
        operator.neg,
    }
)
UNITWISE_METHODS = frozenset({"relu", "relu_", "contiguous", "clone", "abs", "neg"})
POOL_CALLS: dict[Any, int] = {
    getattr(F, f"{kind}_pool{d}d"): d + 2 for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for d in (1, 2, 3)
}
SUMS: frozenset[Any] = frozenset({operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub})
PRODUCTS: frozenset[Any] = frozenset({operator.mul, operator.truediv, torch.mul, torch.div})
LOOKS = frozenset({"shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda"})
"""Attributes that do not depend on the values. Others, such as ``h.T`` or ``h.data``, may pass the values on."""


def indices(parameter: Tensor) -> Tensor:
    """The flat index of every element, in the parameter's shape."""
    return torch.arange(parameter.numel(), device="cpu").view(parameter.shape)


def rows(parameter: Tensor) -> Tensor:
    """The flat indices as a matrix (first dimension, all others)."""
    return indices(parameter).reshape(parameter.shape[0], -1)


def linear_columns(module: nn.Module, units: int) -> Tensor | None:
    """(U, out * repeat): after a flatten each unit owns ``repeat`` neighbouring columns."""
    columns = int(module.in_features)  # type: ignore[arg-type]
    if columns % units:
        return None
    grid = indices(module.weight).view(-1, units, columns // units)  # type: ignore[arg-type]
    return grid.transpose(0, 1).reshape(units, -1)


def conv_columns(module: nn.Module, units: int) -> Tensor | None:
    """(U, out / groups * kernel): input channel i meets the outputs of its own group only."""
    if module.in_channels != units:
        return None
    grid = indices(module.weight)  # type: ignore[arg-type]
    groups = int(module.groups)  # type: ignore[arg-type]
    per_group = grid.view(groups, grid.shape[0] // groups, grid.shape[1], -1)
    return per_group.transpose(1, 2).reshape(units, -1)


def transposed_columns(module: nn.Module, units: int) -> Tensor | None:
    """(U, out * kernel): a transposed convolution has its inputs first."""
    return rows(module.weight) if module.in_channels == units else None  # type: ignore[arg-type]


def flatten_arguments(node: fx.Node) -> tuple[Any, Any]:
    """Its first and last dimension."""
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return start, end


def keeps_batch(node: fx.Node) -> bool:
    """x.view(x.size(0), -1) or x.view(x.shape[0], -1) of the same x: a flatten. Anything else may mix samples."""
    if len(node.args) != 3 or node.args[2] != -1 or not isinstance(node.args[1], fx.Node):
        return False
    x, batch = node.args[0], node.args[1]
    if batch.op == "call_method" and batch.target == "size":
        return batch.args == (x, 0)
    shape = batch.args[0] if batch.target is operator.getitem and batch.args[1] == 0 else None
    return isinstance(shape, fx.Node) and shape.target is getattr and shape.args == (x, "shape")
