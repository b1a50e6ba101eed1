"""Asking a detector, and checking its verdict."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from mtlcore.contracts import Conflict, ConflictDetector, Needs, StepView
from mtlcore.errors import PluginError
from mtlcore.registry import registry
from mtlcore.safety import blame


def detect(detector: ConflictDetector, view: StepView) -> Conflict:
    """The verdict on the tasks present, spread over all K; False for absent ones.

    Raises:
        PluginError: the detector raised, wrote into the rows or broke its contract; names it and its distribution.
    """
    part = view.limited_to(detector.needs)
    if not view.complete:
        part = part.restricted(view.present)
    rows = part.jacobian if detector.needs == Needs.JACOBIAN else None
    version = None if rows is None else rows._version
    try:
        with torch.no_grad():
            found = detector.detect(part)
    except BaseException as error:
        who = registry().identify(detector)
        raise PluginError(f"detector {who} raised {blame(error)}") from error
    if rows is not None and rows._version != version:
        who = registry().identify(detector)
        raise PluginError(f"detector {who} wrote into view.jacobian, which is read-only: clone it first.")
    conflict = checked(detector, found, part.n_tasks)
    if view.complete:
        return conflict
    presence = view.presence
    pairs, dominated = presence.spread_pairs(conflict.pairs), presence.spread(conflict.dominated)
    return dataclasses.replace(conflict, pairs=pairs, dominated=dominated)


def checked(detector: ConflictDetector, conflict: Any, k: int) -> Conflict:
    """Conflicting is a bool, severity a number; pairs (k, k) and dominated (k,) are masks, the first symmetric
    without its diagonal. Masks that were made of rows, and are where the rows are, come to the processor.

    Raises:
        PluginError: the detector broke its contract; names it, its distribution, and what is wrong.
    """
    if not isinstance(conflict, Conflict):
        wrong = f"returned {type(conflict).__name__}, not an mtlcore.Conflict"
    elif not isinstance(conflict.conflicting, bool):
        wrong = f"must return conflicting as True or False; found {conflict.conflicting!r}"
    elif not _is_mask(conflict.pairs, (k, k)):
        wrong = f"must return pairs as a bool tensor of shape ({k}, {k}); found {_described(conflict.pairs)}"
    elif not torch.equal(conflict.pairs, conflict.pairs.T) or bool(conflict.pairs.diagonal().any()):
        wrong = "must return symmetric pairs, False on the diagonal"
    elif not _is_mask(conflict.dominated, (k,)):
        wrong = f"must return dominated as a bool tensor of shape ({k},); found {_described(conflict.dominated)}"
    elif not isinstance(conflict.severity, (int, float)) or math.isnan(conflict.severity):
        wrong = f"must return severity as a number; found {conflict.severity!r}"
    else:
        return dataclasses.replace(conflict, pairs=conflict.pairs.cpu(), dominated=conflict.dominated.cpu())
    raise PluginError(f"detector {registry().identify(detector)} {wrong}.")


def _is_mask(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bool and tuple(value.shape) == shape


def _described(value: Any) -> str:
    return f"{value.dtype}, {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
