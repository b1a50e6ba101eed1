"""What every aggregator must obey, whatever it computes."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlcore.linalg import row_dtype
from mtlverify.answer import Answer, ask, view_of
from mtlverify.example import Example
from mtlverify.law import law
from mtlverify.strategies import jacobians

HOUSE = "contract of mtlcore.Aggregator"
VERDICT = "1 if obeyed, -1 if not"


def verdict(obeyed: bool) -> float:
    """The margin of a law that holds or does not."""
    return 1.0 if obeyed else -1.0


def tensors(answer: Answer) -> list[Tensor]:
    """Everything that an answer consists of."""
    weights = [] if answer.weights is None else [answer.weights]
    return [answer.direction, *weights, *answer.state.values()]


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
    answer = ask(plugin, example)
    return verdict(all(bool(t.isfinite().all()) for t in tensors(answer) if t.is_floating_point()))


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
    before = (copy.deepcopy(vars(plugin)), {k: v.clone() for k, v in state.items()}, _global_generators())
    view = view_of(plugin, rows, example.losses, seed=example.seed)
    returned = plugin.aggregate(view, state)
    after = (vars(plugin), state, _global_generators())
    fresh = all(t is not rows for t in (returned.direction, returned.weights))
    return verdict(fresh and _same(rows, example.jacobian) and all(map(_same, before, after)))


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
    return verdict(_same(tensors(first), tensors(again)))


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
    sound = [isinstance(v, Tensor) and isinstance(n, str) for s in (state, returned.state) for n, v in s.items()]
    if not all(sound):
        return verdict(False)
    sound.append({n: (v.shape, v.dtype) for n, v in state.items()} == {
        n: (v.shape, v.dtype) for n, v in returned.state.items()
    })  # fmt: skip
    for weights in (returned.weights, returned.head_weights):
        if weights is not None:
            sound.append(weights.shape == (k,) and weights.is_floating_point() and not weights.requires_grad)
            sound.append(weights.device == example.jacobian.device)
    if returned.direction is not None:
        direction = returned.direction
        sound.append(direction.shape == (p,) and direction.dtype == row_dtype([example.jacobian]))
        sound.append(direction.device == example.jacobian.device)
    return verdict(all(sound))


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
