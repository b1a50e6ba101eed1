"""Asking an aggregator: sub-problems for absent tasks, checked answers, errors that name the plugin."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlcore.errors import (
    ConfigurationError,
    FeaturesError,
    LossError,
    MtlError,
    NonFiniteError,
    PluginError,
    ProcessError,
)
from mtlcore.inputs import is_theirs
from mtlcore.numpy_threads import numpy_on_one_thread
from mtlcore.presence import Presence
from mtlcore.registry import registry
from mtlcore.safety import blame

_NOT_ITS_OWN = (LossError, FeaturesError, NonFiniteError, ConfigurationError, ProcessError)
"""What a method passes on because the user's input or options are at fault, or another process, not the plugin."""
_MATRICES = 16
"""From so many tasks on, numpy may want threads for the matrices of a method."""
_FEW = 256
"""Up to so many numbers, reading all of them takes less time than one tensor operation."""


def call(method: Aggregator, view: StepView, state: State, n_parameters: int | None = None) -> Aggregation:
    """``method.aggregate`` on the tasks present, with its answer checked and spread over all K tasks.

    Args:
        method: the aggregator.
        view: the full view, K tasks.
        state: its state; not written to.
        n_parameters: P, to check a direction's shape; None when unknown.

    Raises:
        PluginError: the method raised, wrote into the Jacobian, or answered with a wrong shape or non-finite
            numbers. The message names the plugin and its distribution.
        LossError, FeaturesError, NonFiniteError, ConfigurationError: raised by the method because of what the user
            handed over; passed on as they are.
    """
    partial = not view.complete
    shown = view.limited_to(method.needs)
    if partial and not method.handles_absent:
        shown = shown.restricted(view.present)
    rows = shown.jacobian if method.needs == Needs.JACOBIAN else None
    version = None if rows is None else rows._version
    answer = _answer(method, shown, state, partial)
    if rows is not None and rows._version != version:
        raise PluginError(f"aggregator {_who(method)} wrote into view.jacobian, which is read-only: clone it first.")
    if not isinstance(answer, Aggregation):
        raise PluginError(f"aggregator {_who(method)} returned {type(answer).__name__}, not an mtlcore.Aggregation.")
    checked_state(method, answer.state, "aggregate")
    if not isinstance(answer.diagnostics, Mapping):
        found = type(answer.diagnostics).__name__
        raise PluginError(f"aggregator {_who(method)} returned diagnostics that are not a dict but a {found}.")
    return _over_all_tasks(_checked(method, answer, shown, rows, n_parameters), shown, view.presence)


def _answer(method: Aggregator, shown: StepView, state: State, partial: bool) -> Any:
    graphs = torch.is_grad_enabled()
    try:
        torch.set_grad_enabled(False)  # the context manager takes three times as long
        with numpy_on_one_thread() if shown.n_tasks >= _MATRICES else contextlib.nullcontext():
            return method.aggregate(shown, dict(state))
    except _NOT_ITS_OWN:
        raise
    except BaseException as error:
        if is_theirs(error):
            raise
        note = " (some tasks are absent from this batch; see Aggregator.handles_absent)" if partial else ""
        raise PluginError(f"aggregator {_who(method)} raised {blame(error)}{note}") from error
    finally:
        torch.set_grad_enabled(graphs)


def _checked(
    method: Aggregator, answer: Aggregation, shown: StepView, rows: Tensor | None, n_parameters: int | None
) -> Aggregation:
    """The vectors of an answer to ``shown``. Those that were made of rows, and are where the rows are, come to the
    processor, except for a direction."""
    weights, heads, direction = answer.weights, answer.head_weights, answer.direction
    if weights is not None:
        weights = _vector(method, "weights", weights, shown.n_tasks).cpu()
    if heads is not None:
        heads = _vector(method, "head_weights", heads, shown.n_tasks).cpu()
    if direction is not None:
        expected = n_parameters if rows is None else rows.shape[1]
        direction = _vector(method, "direction", direction, expected)
    if weights is answer.weights and direction is answer.direction and heads is answer.head_weights:
        return answer
    return dataclasses.replace(answer, weights=weights, direction=direction, head_weights=heads)


def _over_all_tasks(answer: Aggregation, shown: StepView, presence: Presence) -> Aggregation:
    """The same with one weight for each of the K tasks, 0 for those absent."""
    if presence.complete:
        return answer
    weights, heads = answer.weights, answer.head_weights
    if shown.n_tasks != len(presence.names):
        weights = None if weights is None else presence.spread(weights)
        heads = None if heads is None else presence.spread(heads)
    elif weights is not None:
        weights = weights.masked_fill(presence.mask().logical_not(), 0.0)
    return dataclasses.replace(answer, weights=weights, head_weights=heads)


def start(method: Aggregator, n_tasks: int) -> State:
    """``method.init``, checked.

    Raises:
        PluginError: it raised, or returned no state; names the plugin and its distribution.
    """
    try:
        state = method.init(n_tasks)
    except MtlError:
        raise  # an option that does not fit so many tasks, say
    except BaseException as error:
        raise PluginError(f"aggregator {_who(method)} raised in init {blame(error)}") from error
    return checked_state(method, state, "init")


def observe(method: Aggregator, view: StepView, state: State) -> State:
    """``method.observe`` on the tasks present, checked.

    Raises:
        PluginError: it raised, or returned no state; names the plugin and its distribution.
        LossError, FeaturesError, NonFiniteError, ConfigurationError: as :func:`call`.
    """
    if not view.complete and not method.handles_absent:
        view = view.restricted(view.present)
    try:
        found = method.observe(view, dict(state))
    except _NOT_ITS_OWN:
        raise
    except BaseException as error:
        raise PluginError(f"aggregator {_who(method)} raised in observe {blame(error)}") from error
    return checked_state(method, found, "observe")


def checked_state(method: Aggregator, state: Any, where: str) -> State:
    """The state, if it is one.

    Raises:
        PluginError: no dict of tensors; names the plugin, the method that returned it, and the entry.
    """
    if not isinstance(state, dict):
        found = type(state).__name__
        raise PluginError(
            f"aggregator {_who(method)}: {where} returned a state that is not a dict of tensors: it is a {found}."
        )
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise PluginError(
                f"aggregator {_who(method)}: {where} returned a state that is not a dict of tensors: {key!r} is a "
                f"{type(value).__name__}."
            )
    return state


def _who(method: Aggregator) -> str:
    return registry().identify(method)


def _vector(method: Aggregator, what: str, value: Tensor, size: int | None) -> Tensor:
    if not isinstance(value, Tensor) or value.is_complex():
        found = f"a {value.dtype} tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise PluginError(f"aggregator {_who(method)} returned {what} that are not a real tensor but {found}.")
    if size is not None and tuple(value.shape) != (size,):
        raise PluginError(
            f"aggregator {_who(method)} returned {what} of shape {tuple(value.shape)}; expected ({size},)."
        )
    if not value.is_floating_point():
        value = value.to(torch.float64)
    if not _finite(value):
        raise PluginError(f"aggregator {_who(method)} returned {what} that are not finite: {_short(value)}.")
    return value.detach() if value.requires_grad else value


def _finite(value: Tensor) -> bool:
    if value.numel() <= _FEW:
        return all(map(math.isfinite, value.tolist()))
    # A NaN or an infinity survives the sum; finite numbers whose sum overflows are looked at one by one.
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())


def _short(value: Tensor) -> str:
    shown = ", ".join(f"{v:.3g}" for v in value[:6].tolist())
    return f"[{shown}{', ...' if value.numel() > 6 else ''}]"
