"""Arithmetic of a run: float32, or half precision by autocast."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

import mtlcore
from mtlbench.devices import Device
from mtlbench.tasks.base import Budget
from mtlcore.errors import ConfigurationError

_KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(budget: Budget, device: Device) -> Callable[[], AbstractContextManager[Any]]:
    """What a network's forward pass runs in."""
    if budget.precision == "float32":
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device.kind, dtype=_KINDS[budget.precision])


def scaler_of(budget: Budget, device: Device) -> torch.amp.GradScaler | None:
    """The gradient scaler that fp16 needs; None otherwise."""
    return torch.amp.GradScaler(device.kind) if budget.precision == "fp16" else None


def scaled(scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
    """The arguments of :meth:`mtlcore.MultiTask.step` besides the closure.

    Raises:
        ConfigurationError: this version of mtlcore takes no scaler.
    """
    if scaler is None:
        return {}
    if "scaler" not in inspect.signature(mtlcore.MultiTask.step).parameters:
        raise ConfigurationError(
            'precision "fp16" needs an mtlcore whose step takes a scaler; use "bf16" or "float32".'
        )
    return {"scaler": scaler}
