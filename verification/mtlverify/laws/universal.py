"""Laws that every aggregator must obey."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlcore import Aggregation, Needs, StepView
from mtlcore.linalg import row_dtype
from mtlverify.answer import Answer, ask
from mtlverify.example import Example
from mtlverify.law import Margin, anything, law
from mtlverify.laws.compare import same
from mtlverify.laws.runs import answers, histories, length, observed, shown_to, step, views

HOUSE = "contract of mtlcore.Aggregator"
VERDICT = "1 if obeyed, -1 if not"


def verdict(obeyed: bool, reason: str = "") -> Margin:
    """The margin of a law that is either obeyed or not."""
    return Margin(1.0) if obeyed else Margin(-1.0, reason)


def unless(faults: Sequence[str]) -> Margin:
    """The margin of a law that holds if there are no faults."""
    return verdict(not faults, "; ".join(faults))


def tensors(answer: Answer) -> dict[str, Tensor]:
    """All tensors of an answer, by name."""
    given = {"weights": answer.weights, "head_weights": answer.head_weights}
    found = {name: vector for name, vector in given.items() if vector is not None}
    return {"direction": answer.direction, **found, **{f"state[{k!r}]": v for k, v in answer.state.items()}}


@law(
    "finite",
    statement="Finite gradients and losses give a finite direction, finite weights and a finite state.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=histories,
    within=anything,
)
def finite(plugin: Any, example: Example) -> float:
    """Inputs include zero rows, equal rows and rows of very different size. If the method has a state, the law is
    checked along a run, because a method may divide by something from an earlier step."""
    state = plugin.init(example.n_tasks)
    for number in range(length(state, example)):
        answer, state = step(plugin, example, number, state)
        found = {**tensors(answer), **{f"state[{k!r}] after observe": v for k, v in state.items()}}
        wrong = [n for n, t in found.items() if t.is_floating_point() and not bool(t.isfinite().all())]
        if wrong:
            return unless([f"{n} is not finite{_when(number)}" for n in wrong])
    return unless([])


def _when(number: int) -> str:
    return f" (step {number})" if number else ""


@law(
    "pure",
    statement="A step writes to nothing: not to the view, the state, the method, nor any global generator.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=histories,
    within=anything,
)
def pure(plugin: Any, example: Example) -> float:
    """All objects that the method can reach are compared with copies from before; along a run, if it has a state."""
    state = plugin.init(example.n_tasks)
    for number in range(length(state, example)):
        rows, view, seen = views(plugin, example, number)
        untouched, before = rows.clone(), traces(plugin)
        kept = {k: v.clone() for k, v in state.items()}
        asked = shown_to(plugin, view)
        returned = plugin.aggregate(asked, state)
        faults = [] if same(state, kept) else ["it writes into the state it is given"]
        faults += _borrowed(plugin, asked, returned)
        kept = {k: v.clone() for k, v in returned.state.items()}
        state = plugin.observe(shown_to(plugin, seen), returned.state)
        if not same(returned.state, kept):
            faults.append("observe writes into the state it is given")
        if not same(rows, untouched):
            faults.append("it writes into view.jacobian")
        faults = side_effects(plugin, before) + faults
        if faults:
            return unless([fault + _when(number) for fault in faults])
    return unless([])


def _borrowed(plugin: Any, view: StepView, returned: Aggregation) -> list[str]:
    """The parts of the answer that share memory with view.jacobian, as text; a step reuses that memory."""
    if plugin.needs < Needs.JACOBIAN:
        return []
    memory = view.jacobian.untyped_storage().data_ptr()
    given = {"direction": returned.direction, "weights": returned.weights}
    given |= {f"state[{name!r}]": value for name, value in returned.state.items()}
    held = [n for n, t in given.items() if isinstance(t, Tensor) and t.numel() and _memory(t) == memory]
    return [f"{name} is a part of view.jacobian, whose memory is used again" for name in held]


def _memory(tensor: Tensor) -> int:
    return 0 if tensor.device.type == "meta" else tensor.untyped_storage().data_ptr()


def traces(plugin: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a step might change besides its arguments: the plugin's attributes, and the global generators."""
    return copy.deepcopy(vars(plugin)), dict(zip(("torch", "random", "numpy"), _global_generators(), strict=True))


def side_effects(plugin: Any, before: tuple[dict[str, Any], dict[str, Any]]) -> list[str]:
    """The differences from ``before``, as text."""
    had, has = before[0], vars(plugin)
    faults = [f"it changes its own attribute {n}" for n in {**had, **has} if not same(had.get(n), has.get(n))]
    drawn = traces(plugin)[1]
    return faults + [f"it draws from the global generator of {n}" for n in drawn if not same(before[1][n], drawn[n])]


@law(
    "deterministic",
    statement="The same view, state and seed give the same answer bit for bit, whatever happened in between.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=histories,
    within=anything,
)
def deterministic(plugin: Any, example: Example) -> float:
    """First a new instance is asked, then this one: after one to three other questions, so that a hidden counter shows;
    under other global seeds; and with the rows in the memory that held the rows of those questions, because a step
    reuses its buffer. If the method has a state, both continue for further steps."""
    new, rows = dataclasses.replace(plugin), -2 * example.jacobian.flip(0)
    with generators_restored():
        first = ask(new, example)
        for more in range(1, 2 + example.seed % 3):
            ask(plugin, example, jacobian=rows, losses=3 * example.losses, seed=example.seed + more)
        reseed(example.seed + 12345)
        faults = differences(tensors(first), tensors(ask(plugin, example, jacobian=rows.copy_(example.jacobian))))
        if not faults and first.state:
            for number, (one, other) in enumerate(zip(answers(new, example), answers(plugin, example), strict=True)):
                faults = [fault + _when(number) for fault in differences(tensors(one), tensors(other))]
                if faults:
                    break
    return unless(faults)


def differences(first: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """The differences between two answers to the same question, as text."""
    return [f"{n} is another one when asked again" for n in {**first, **again} if not same(first.get(n), again.get(n))]


@law(
    "shape-dtype-device",
    statement="Weights are (K,) floating numbers, a direction is (P,) in the dtype of the rows, a state is a dict of "
    "tensors of constant shape (an empty one may take its shape in a step); a direction is on the device of the rows, "
    "weights there or on the processor.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=histories,
    within=anything,
)
def shape_dtype_device(plugin: Any, example: Example) -> float:
    """Inputs include one task, more tasks than parameters, and float32; along a run, if the method has a state."""
    state = plugin.init(example.n_tasks)
    fault = _no_state("init", state)
    for number in range(0 if fault else length(state, example)):
        rows, view, seen = views(plugin, example, number)
        asked = shown_to(plugin, view)
        returned = plugin.aggregate(asked, state)
        if not isinstance(returned, Aggregation):
            return verdict(False, f"aggregate returns {type(returned).__name__}, not an mtlcore.Aggregation")
        fault = _no_state("aggregate", returned.state)
        if fault:
            break
        faults = _state_faults(state, returned.state, "aggregate") + _answer_faults(returned, rows[: asked.n_tasks])
        later = observed(plugin, seen, returned.state)
        fault = _no_state("observe", later)
        if fault:
            break
        faults += _state_faults(state, later, "observe") if not faults else []
        if faults:
            return unless([found + _when(number) for found in faults])
        state = later
    return unless([fault] if fault else [])


def _no_state(source: str, found: Any) -> str:
    """What is wrong with a state, or ""."""
    if isinstance(found, dict) and all(isinstance(v, Tensor) and isinstance(n, str) for n, v in found.items()):
        return ""
    return f"the state that {source} returns is not a dict of tensors"


def _answer_faults(returned: Aggregation, rows: Tensor) -> list[str]:
    k, p = rows.shape
    faults: list[str] = []
    for name, weights in (("weights", returned.weights), ("head_weights", returned.head_weights)):
        if weights is not None:
            faults += _vector_faults(name, weights, k, rows.device, torch.device("cpu"))
            if isinstance(weights, Tensor) and not weights.is_floating_point():
                faults.append(f"{name} are {_dtype(weights)}, not floating numbers")
    if returned.direction is not None:
        faults += _vector_faults("direction", returned.direction, p, rows.device)
        expected = row_dtype([rows])
        if isinstance(returned.direction, Tensor) and returned.direction.dtype != expected:
            faults.append(
                f"direction is {_dtype(returned.direction)}; the rows are {str(expected).removeprefix('torch.')}"
            )
    return faults


def _state_faults(before: dict[str, Tensor], after: dict[str, Tensor], source: str) -> list[str]:
    faults = []
    for name in {**before, **after}:
        if name not in after:
            faults.append(f"state[{name!r}] is in what init returns, but not in what {source} returns")
        elif name not in before:
            faults.append(f"state[{name!r}] is in what {source} returns, but not in what init returns")
        # An empty tensor gets its shape in the first step, in which the length of the rows is known.
        elif before[name].numel() and (before[name].shape, before[name].dtype) != (
            after[name].shape,
            after[name].dtype,
        ):
            was, now = (f"{tuple(t.shape)} {_dtype(t)}" for t in (before[name], after[name]))
            faults.append(f"state[{name!r}] is {was} in what init returns and {now} in what {source} returns")
        elif after[name].requires_grad:
            faults.append(f"state[{name!r}] still has a graph behind it (requires_grad)")
    return faults


def _vector_faults(name: str, value: Any, size: int, *devices: torch.device) -> list[str]:
    if not isinstance(value, Tensor):
        return [f"{name}: {type(value).__name__} instead of a tensor"]
    faults = []
    if tuple(value.shape) != (size,):
        faults.append(f"{name} of shape {tuple(value.shape)}; expected ({size},)")
    if value.device not in devices:
        faults.append(f"{name} on device {value.device}; expected {' or '.join(sorted(set(map(str, devices))))}")
    if value.requires_grad and name != "direction":
        faults.append(f"{name} still have a graph behind them (requires_grad)")
    return faults


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def reseed(seed: int) -> None:
    """Seed all global generators; no answer may depend on them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextlib.contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the global generators afterwards."""
    saved = _global_generators()
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        random.setstate(saved[1])
        np.random.set_state(saved[2])


def _global_generators() -> tuple[Any, Any, Any]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()
