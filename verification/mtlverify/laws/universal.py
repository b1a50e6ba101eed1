"""What every aggregator must obey, whatever it computes."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlcore import Aggregation
from mtlcore.linalg import row_dtype
from mtlverify.answer import Answer, ask, view_of
from mtlverify.example import Example
from mtlverify.law import Margin, law
from mtlverify.strategies import jacobians

HOUSE = "contract of mtlcore.Aggregator"
VERDICT = "1 if obeyed, -1 if not"


def verdict(obeyed: bool, reason: str = "") -> Margin:
    """The margin of a law that holds or does not."""
    return Margin(1.0) if obeyed else Margin(-1.0, reason)


def unless(faults: Sequence[str]) -> Margin:
    """The margin of a law that holds unless something was found against it."""
    return verdict(not faults, "; ".join(faults))


def tensors(answer: Answer) -> dict[str, Tensor]:
    """Everything that an answer consists of, by name."""
    weights = {} if answer.weights is None else {"weights": answer.weights}
    return {"direction": answer.direction, **weights, **{f"state[{k!r}]": v for k, v in answer.state.items()}}


@law(
    "finite",
    statement="Finite gradients and losses give a finite direction, finite weights and a finite state.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=jacobians,
)
def finite(plugin: Any, example: Example) -> float:
    """Zero rows, equal rows and rows of very different size included."""
    found = tensors(ask(plugin, example))
    return unless([f"{n} is not finite" for n, t in found.items() if t.is_floating_point() and not t.isfinite().all()])


@law(
    "pure",
    statement="A step writes to nothing: not to the view, the state, the method, nor any global generator.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=jacobians,
)
def pure(plugin: Any, example: Example) -> float:
    """Everything within reach is compared with a copy taken before."""
    rows, state = example.jacobian.clone(), plugin.init(example.n_tasks)
    kept, before = {k: v.clone() for k, v in state.items()}, traces(plugin)
    view = view_of(plugin, rows, example.losses, seed=example.seed)
    returned = plugin.aggregate(view, state)
    faults = side_effects(plugin, before)
    if not _same(rows, example.jacobian):
        faults.append("it writes into view.jacobian")
    if not _same(state, kept):
        faults.append("it writes into the state it is given")
    if any(t is rows for t in (returned.direction, returned.weights)):
        faults.append("it returns view.jacobian itself, which is used again")
    return unless(faults)


def traces(plugin: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a step might change besides what it is given: the plugin's attributes, and the global generators."""
    return copy.deepcopy(vars(plugin)), dict(zip(("torch", "random", "numpy"), _global_generators(), strict=True))


def side_effects(plugin: Any, before: tuple[dict[str, Any], dict[str, Any]]) -> list[str]:
    """What differs from ``before``, in words."""
    had, has = before[0], vars(plugin)
    faults = [f"it changes its own attribute {n}" for n in {**had, **has} if not _same(had.get(n), has.get(n))]
    drawn = traces(plugin)[1]
    return faults + [f"it draws from the global generator of {n}" for n in drawn if not _same(before[1][n], drawn[n])]


@law(
    "deterministic",
    statement="The same view, state and seed give the same answer bit for bit, whatever happened in between.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=jacobians,
)
def deterministic(plugin: Any, example: Example) -> float:
    """Asked, asked something else, asked again under other global seeds: hidden memory or randomness shows."""
    saved = _global_generators()
    try:
        first = ask(plugin, example)
        ask(plugin, example, jacobian=-2 * example.jacobian.flip(0), losses=3 * example.losses, seed=example.seed + 1)
        torch.manual_seed(example.seed + 12345)
        random.seed(example.seed + 12345)
        np.random.seed(example.seed + 12345)
        again = ask(plugin, example)
    finally:
        torch.set_rng_state(saved[0])
        random.setstate(saved[1])
        np.random.set_state(saved[2])
    return unless(differences(tensors(first), tensors(again)))


def differences(first: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """What is not the same in two answers to one question, in words."""
    return [f"{n} is another one when asked again" for n in {**first, **again} if not _same(first.get(n), again.get(n))]


@law(
    "shape-dtype-device",
    statement="Weights are (K,) floating numbers, a direction is (P,) in the dtype of the rows, a state is a dict of "
    "tensors of constant shape; all on the device of the rows.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=jacobians,
)
def shape_dtype_device(plugin: Any, example: Example) -> float:
    """Also for one task, more tasks than parameters, and float32."""
    k, p = example.jacobian.shape
    state = plugin.init(k)
    returned = plugin.aggregate(view_of(plugin, example.jacobian, example.losses, seed=example.seed), state)
    if not isinstance(returned, Aggregation):
        return verdict(False, f"aggregate returns {type(returned).__name__}, not an mtlcore.Aggregation")
    for source, found in (("init", state), ("aggregate", returned.state)):
        if not isinstance(found, dict) or not all(
            isinstance(v, Tensor) and isinstance(n, str) for n, v in found.items()
        ):
            return verdict(False, f"the state that {source} returns is not a dict of tensors")
    faults = _state_faults(state, returned.state)
    device = example.jacobian.device
    for name, weights in (("weights", returned.weights), ("head_weights", returned.head_weights)):
        if weights is not None:
            faults += _vector_faults(name, weights, k, device)
            if isinstance(weights, Tensor) and not weights.is_floating_point():
                faults.append(f"{name} are {_dtype(weights)}, not floating numbers")
    if returned.direction is not None:
        faults += _vector_faults("direction", returned.direction, p, device)
        expected = row_dtype([example.jacobian])
        if isinstance(returned.direction, Tensor) and returned.direction.dtype != expected:
            faults.append(
                f"direction is {_dtype(returned.direction)}; the rows are {str(expected).removeprefix('torch.')}"
            )
    return unless(faults)


def _state_faults(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    faults = []
    for name in {**before, **after}:
        if name not in after:
            faults.append(f"state[{name!r}] is in what init returns, but not in what aggregate returns")
        elif name not in before:
            faults.append(f"state[{name!r}] is in what aggregate returns, but not in what init returns")
        elif (before[name].shape, before[name].dtype) != (after[name].shape, after[name].dtype):
            was, now = (f"{tuple(t.shape)} {_dtype(t)}" for t in (before[name], after[name]))
            faults.append(f"state[{name!r}] is {was} in what init returns and {now} in what aggregate returns")
    return faults


def _vector_faults(name: str, value: Any, size: int, device: torch.device) -> list[str]:
    if not isinstance(value, Tensor):
        return [f"{name}: {type(value).__name__} instead of a tensor"]
    faults = []
    if tuple(value.shape) != (size,):
        faults.append(f"{name} of shape {tuple(value.shape)}; expected ({size},)")
    if value.device != device:
        faults.append(f"{name} on device {value.device}; the rows are on {device}")
    if value.requires_grad and name != "direction":
        faults.append(f"{name} still have a graph behind them (requires_grad)")
    return faults


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _global_generators() -> tuple[Any, Any, Any]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _same(a: Any, b: Any) -> bool:
    """Equality bit for bit of nested containers of tensors, arrays and plain values; NaN equals NaN."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.isnan(), b.isnan())
            and torch.equal(a.nan_to_num(), b.nan_to_num())
        )  # fmt: skip
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
