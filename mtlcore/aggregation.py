"""Calling a method safely: sub-problems for absent tasks, checked answers, errors that name the plugin."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtlcore import inputs, linalg, threads
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlcore.errors import ConfigurationError, FeaturesError, LossError, MtlError, NonFiniteError, PluginError
from mtlcore.registry import registry

_MATRICES = 16
"""From so many tasks on, numpy may want threads for the matrices of a method."""
_FEW = 256
"""Up to so many numbers, reading all of them takes less time than one tensor operation."""


def step_seed(seed: int, step: int) -> int:
    """Seed of the generator of one step: a hash, so that neighbouring runs and steps share no stream."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest(), "little") >> 1


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
    graphs = torch.is_grad_enabled()
    try:
        torch.set_grad_enabled(False)  # the context manager takes three times as long
        with threads.numpy_on_one() if shown.n_tasks >= _MATRICES else contextlib.nullcontext():
            answer = method.aggregate(shown, dict(state))
    except (LossError, FeaturesError, NonFiniteError, ConfigurationError):
        raise  # the user's input or options are at fault, not the plugin
    except Exception as error:
        note = " (some tasks are absent from this batch; see Aggregator.handles_absent)" if partial else ""
        raise PluginError(f"aggregator {_who(method)} raised {type(error).__name__}: {error}{note}") from error
    finally:
        torch.set_grad_enabled(graphs)
    if rows is not None and rows._version != version:
        raise PluginError(f"aggregator {_who(method)} wrote into view.jacobian, which is read-only: clone it first.")
    if not isinstance(answer, Aggregation):
        raise PluginError(f"aggregator {_who(method)} returned {type(answer).__name__}, not an mtlcore.Aggregation.")
    checked_state(method, answer.state, "aggregate")
    if not isinstance(answer.diagnostics, Mapping):
        found = type(answer.diagnostics).__name__
        raise PluginError(f"aggregator {_who(method)} returned diagnostics that are no dict but a {found}.")
    k = shown.n_tasks
    weights, heads, direction = answer.weights, answer.head_weights, answer.direction
    # Weights that were made of rows may be where the rows are.
    if weights is not None:
        weights = _vector(method, "weights", weights, k).cpu()
    if heads is not None:
        heads = _vector(method, "head_weights", heads, k).cpu()
    if direction is not None:
        expected = n_parameters if rows is None else rows.shape[1]
        direction = _vector(method, "direction", direction, expected)
    if k != view.n_tasks:
        index = view.present.nonzero().flatten()
        weights, heads = _spread(weights, index, view.n_tasks), _spread(heads, index, view.n_tasks)
    elif partial:
        off = view.present.logical_not()
        if weights is not None:
            weights = weights.masked_fill(off, 0.0)
    if weights is answer.weights and direction is answer.direction and heads is answer.head_weights:
        return answer
    return dataclasses.replace(answer, weights=weights, direction=direction, head_weights=heads)


def start(method: Aggregator, n_tasks: int) -> State:
    """``method.init``, checked.

    Raises:
        PluginError: it raised, or returned no state; names the plugin and its distribution.
    """
    try:
        state = method.init(n_tasks)
    except MtlError:
        raise  # an option that does not fit so many tasks, say
    except Exception as error:
        raise PluginError(f"aggregator {_who(method)} raised {type(error).__name__} in init: {error}") from error
    return checked_state(method, state, "init")


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
        raise PluginError(f"aggregator {_who(method)} returned {what} that are no real tensor but {found}.")
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


def _spread(value: Tensor | None, index: Tensor, n: int) -> Tensor | None:
    if value is None:
        return None
    return value.new_zeros(n).index_copy(0, index, value)


def aggregate(aggregator: str | Aggregator, jacobian: Tensor, losses: Tensor | None = None, seed: int = 0) -> Tensor:
    """One fresh step of a method on a Jacobian, for study and tests.

    Args:
        aggregator: an instance, or the name of a registered aggregator with its default hyper-parameters.
        jacobian: (K, P) task gradients; not modified.
        losses: (K,) task losses; ones if left out.
        seed: seed of the step's generator.

    Returns:
        d (P,), dtype and device of ``jacobian``. Parameters would move along -d.

    Raises:
        UnknownPluginError: no aggregator of that name.
        ConfigurationError: no aggregator at all, wrong shapes or dtype, or a seed that is no whole number.
        NonFiniteError: NaN or infinity in ``jacobian`` or ``losses``, or gradients so long that their inner products
            (float64) or the direction (the dtype of ``jacobian``) overflow; names the task's row.
        PluginError: the method broke its contract.
    """
    method: Aggregator = inputs.plugin("aggregator", aggregator, Aggregator)
    if not isinstance(jacobian, Tensor) or jacobian.ndim != 2 or not jacobian.is_floating_point():
        found = f"{tuple(jacobian.shape)} {jacobian.dtype}" if isinstance(jacobian, Tensor) else type(jacobian).__name__
        raise ConfigurationError(f"jacobian must be a floating-point tensor of shape (K, P), found {found}.")
    k, seed = jacobian.shape[0], inputs.whole_number("seed", seed)
    if k == 0:
        raise ConfigurationError("jacobian has no rows: at least one task is needed.")
    if losses is None:
        losses = torch.ones(k, dtype=torch.float64, device="cpu")
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (k,):
        found = str(tuple(losses.shape)) if isinstance(losses, Tensor) else type(losses).__name__
        raise ConfigurationError(f"losses must be a tensor of shape ({k},), one per row of jacobian; found {found}.")
    for what, finite in (("loss", torch.isfinite(losses)), ("gradient", torch.isfinite(jacobian).all(1))):
        if not bool(finite.all()):
            raise NonFiniteError(f"{what} of task{int((~finite).nonzero()[0])} is NaN or infinite.")
    # A plugin gets a copy: what the caller handed over is never at its mercy.
    view = StepView(losses=losses, jacobian=jacobian.detach().clone(), generator=step_seed(seed, 0))
    if method.needs == Needs.GRAMIAN:
        _fits(jacobian, torch.float64, squared=True)
    try:
        answer = call(method, view, start(method, k), jacobian.shape[1])
    except PluginError as error:
        if "not finite" in str(error):
            # Sums and inner products of rows that do not fit into their dtype are no fault of the plugin's.
            _fits(jacobian, jacobian.dtype, squared=method.needs == Needs.JACOBIAN)
        raise
    if answer.direction is not None:
        return answer.direction.to(jacobian)
    assert answer.weights is not None
    direction = linalg.combine(jacobian.detach(), answer.weights)
    if not _finite(direction):
        parts = jacobian.detach().abs().amax(1).double() * answer.weights.to(jacobian.device).abs().double()
        raise _overflow(int(parts.argmax()), f"the direction, to which it adds most, in {jacobian.dtype}")
    return direction


def _fits(rows: Tensor, dtype: torch.dtype, squared: bool) -> None:
    """Raises NonFiniteError, with the longest row's name, if sums of rows, or their squares, overflow ``dtype``."""
    sizes = rows.detach().double().square().sum(1).to(dtype) if squared else rows.detach().double().abs().amax(1)
    if not bool(torch.isfinite(sizes.sum().to(dtype))):
        what = "inner products" if squared else "sums"
        raise _overflow(int(rows.detach().abs().amax(1).argmax()), f"{what} of gradients in {dtype}")


def _overflow(task: int, what: str) -> NonFiniteError:
    return NonFiniteError(
        f"gradient of task{task} is too long: it overflows {what}. Measure its loss in a larger unit."
    )
