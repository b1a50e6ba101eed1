"""A run as plain values, and back. Nothing is taken over unless everything fits; errors name the entry."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtlcore import configuration, roster
from mtlcore.asking import aggregator as asking
from mtlcore.contracts import Aggregator, State
from mtlcore.errors import PluginWarning, StateError
from mtlcore.gradients.plan import PLANS
from mtlcore.gradients.planner import Planner
from mtlcore.gradients.refresh import Keeper
from mtlcore.progress import Progress
from mtlcore.registry import registry
from mtlcore.teleporting import Teleporter

_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds, checked."""

    progress: Progress
    pins: dict[str, str]
    kept: dict[str, Tensor]
    teleporter: dict[str, Any]


def pack(
    progress: Progress,
    plugins: Mapping[str, Any],
    planner: Planner,
    keeper: Keeper | None,
    teleporter: Teleporter | None,
) -> dict[str, Any]:
    """Numbers, strings and tensors only, so that ``torch.load(..., weights_only=True)`` reads it."""
    return {
        "version": _VERSION,
        "aggregator": registry().name_of(plugins["aggregator"]),
        "methods": {role: configuration.describe(plugin) for role, plugin in plugins.items()},
        "tasks": None if progress.tasks is None else list(progress.tasks),
        "step": progress.step,
        "seed": progress.seed,
        "teleport_steps": list(progress.teleport_steps),
        "detections": [progress.looks, progress.fired],
        "awaiting": list(progress.awaited) or progress.awaiting,
        "gradient_sources": dict(planner.pins),
        "refresh": {} if keeper is None else keeper.state(),
        "teleporter": {} if teleporter is None else teleporter.state(),
        "state": None if progress.state is None else {k: v.clone() for k, v in progress.state.items()},
    }


def unpack(state: Any, now: Progress, plugins: Mapping[str, Any], keeper: Keeper | None) -> Loaded:
    """The checkpoint as it would be taken over. Warns where it was saved with other plugins or options.

    Raises:
        StateError: no such checkpoint, a damaged one, or one of another method or of other tasks; names the entry.
    """
    entries = _entries(state)
    mine = registry().name_of(plugins["aggregator"])
    if entries["aggregator"] != mine:
        raise StateError(f"this is the state of aggregator {entries['aggregator']!r}; this run uses {mine!r}.")
    tasks = _tasks(entries["tasks"], now)
    methods = _mapping("methods", entries["methods"])
    try:
        changed = configuration.differences(
            methods, {role: configuration.describe(plugin) for role, plugin in plugins.items()}
        )
    except Exception as error:
        raise _wrong("methods", methods, "the description of the plugins") from error
    step = _count("step", entries["step"])
    inner = _method_state(plugins["aggregator"], mine, entries["state"], tasks, step, changed)
    looks, fired = _list("detections", entries["detections"], 2)
    if fired > looks:
        raise StateError(f"the checkpoint's entry 'detections' is damaged: fired {fired} times in {looks} looks.")
    kept = _kept(entries["refresh"], keeper, tasks)
    awaited = _awaited(entries["awaiting"], tasks)
    if tasks is not None and now.tasks is not None and tasks != now.tasks:
        # Matched by name. Weights that were kept for some steps are not: the method is asked at once.
        if inner is not None:
            inner = roster.moved(plugins["aggregator"], inner, [tasks.index(n) for n in now.tasks], len(tasks))
        tasks, kept = now.tasks, {}
    progress = Progress(
        tasks=tasks if tasks is not None else now.tasks,
        seed=_whole("seed", entries["seed"]),
        step=step,
        state=inner,
        teleport_steps=tuple(_list("teleport_steps", entries["teleport_steps"], None)),
        looks=looks,
        fired=fired,
        awaiting=bool(awaited),
        awaited=() if awaited is True else awaited or (),
    )
    pins = _pins(entries["gradient_sources"])
    if changed:
        warnings.warn(
            f"this state was saved with other methods, versions or hyper-parameters: {'; '.join(changed)}. The run "
            f"goes on with those that it has now, which is not the run that was saved; if that is not intended, make "
            f"the MultiTask with the former ones.",
            PluginWarning,
            stacklevel=3,
        )
    return Loaded(progress, pins, kept, _teleporter(entries["teleporter"]))


_KEYS = {
    "version",
    "aggregator",
    "methods",
    "tasks",
    "step",
    "seed",
    "teleport_steps",
    "detections",
    "awaiting",
    "gradient_sources",
    "refresh",
    "teleporter",
    "state",
}


def _entries(state: Any) -> dict[str, Any]:
    if not isinstance(state, Mapping):
        raise StateError(f"not the state of a MultiTask: expected a dict, found a {type(state).__name__}.")
    version = state.get("version")
    if type(version) is not int or version != _VERSION:
        raise StateError(
            f"not the state of a MultiTask that this mtlcore can read: it has state version {version!r}, expected is "
            f"{_VERSION}."
        )
    missing, unknown = sorted(_KEYS - set(state)), sorted(map(str, set(state) - _KEYS))
    if missing or unknown:
        raise StateError(
            f"not the state of a MultiTask, or a damaged one: it lacks {missing or 'nothing'} and has the unknown "
            f"entries {unknown or 'none'}."
        )
    return dict(state)


def _wrong(entry: str, value: Any, expected: str) -> StateError:
    found = f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, str, bool)) else type(value).__name__
    return StateError(
        f"not the state of a MultiTask, or a damaged one: its entry {entry!r} should be {expected}, and is "
        f"{found[:200]}."
    )


def _whole(entry: str, value: Any) -> int:
    if type(value) is not int:
        raise _wrong(entry, value, "a whole number")
    return value


def _count(entry: str, value: Any) -> int:
    if not 0 <= _whole(entry, value) < 2**63:
        raise _wrong(entry, value, "a number of at least 0 that fits into 64 bits")
    return int(value)


def _list(entry: str, value: Any, size: int | None) -> list[int]:
    if not isinstance(value, (list, tuple)) or (size is not None and len(value) != size):
        raise _wrong(entry, value, "a list of whole numbers" if size is None else f"a list of {size} whole numbers")
    return [_count(entry, v) for v in value]


def _mapping(entry: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(entry, value, "a dict")
    return value


def _tasks(value: Any, now: Progress) -> tuple[str, ...] | None:
    if value is None:
        return None
    tasks = tuple(value) if isinstance(value, (list, tuple)) else ()
    if not tasks or not all(isinstance(n, Hashable) for n in tasks) or len(set(map(repr, tasks))) != len(tasks):
        raise _wrong("tasks", value, "a list of distinct names")
    if now.tasks is not None and set(tasks) != set(now.tasks):
        raise StateError(
            f"this is the state of {len(tasks)} tasks ({', '.join(map(str, tasks))}); this run has "
            f"{len(now.tasks)} ({', '.join(map(str, now.tasks))}). Load it with the tasks that it was saved with (or "
            f"none declared), and then call add_task(name) or remove_task(name)."
        )
    return tasks


def _awaited(value: Any, tasks: tuple[str, ...] | None) -> bool | tuple[str, ...]:
    """The tasks that a second look is about; True where a file says no more than that there is to be one."""
    if isinstance(value, bool):
        return value
    names = value if isinstance(value, (list, tuple)) else ()
    known = all(isinstance(n, Hashable) and (tasks is None or n in tasks) for n in names)
    if not names or not known or len(set(names)) != len(names):
        raise _wrong("awaiting", value, "True, False, or some of the tasks")
    return tuple(names)


def _method_state(
    method: Aggregator, name: str, value: Any, tasks: tuple[str, ...] | None, step: int, changed: list[str]
) -> State | None:
    if value is None:
        if step:
            raise StateError(f"the checkpoint's entry 'state' is missing, although step is {step}.")
        return None
    found = _mapping("state", value)
    if tasks is None and roster.has_task_state(method):
        raise StateError("the checkpoint has a 'state' but no 'tasks': it is damaged.")
    fresh = asking.start(method, 2 if tasks is None else len(tasks))  # anonymous tasks: no entry counts them
    cause = f"{'; '.join(changed)}." if changed else "were its hyper-parameters the same?"
    for key, expected in fresh.items():
        if key not in found:
            raise StateError(f"the state of aggregator {name!r} lacks {key!r}: {cause}")
        _check_tensor(f"state {key!r} of aggregator {name!r}", found[key], expected, cause)
    for key, tensor in found.items():
        if not isinstance(key, str):
            raise StateError(f"the state of aggregator {name!r} has an entry whose name is {key!r}.")
        if key not in fresh:
            _check_tensor(f"state {key!r} of aggregator {name!r}", tensor, None, cause)
    return {k: v.clone() for k, v in found.items()}


def _check_tensor(what: str, value: Any, expected: Tensor | None, cause: str = "") -> None:
    """A tensor of the expected kind. One of size zero is a placeholder that a later step replaces: by one of the same
    sort of numbers, whose other sizes stay as they are if it has as many dimensions."""
    if not isinstance(value, Tensor):
        raise StateError(
            f"not the state of a MultiTask, or a damaged one: {what} is a {type(value).__name__}, not a tensor."
        )
    if value.layout != torch.strided or value.is_meta:
        kind = "without numbers (device meta)" if value.is_meta else f"of layout {value.layout}"
        raise StateError(f"{what} is a tensor {kind}, not a dense one: the checkpoint is damaged.")
    placeholder = expected is None or expected.numel() == 0
    if expected is not None and placeholder:
        if _sort(value) != _sort(expected):
            raise StateError(f"{what} has dtype {value.dtype}, expected one like {expected.dtype}: {cause}")
        same = value.ndim != expected.ndim or all(n in (0, m) for n, m in zip(expected.shape, value.shape))
        if not same:
            raise StateError(
                f"{what} has shape {tuple(value.shape)}, expected {tuple(expected.shape)} with any size for 0: {cause}"
            )
    if expected is not None and value.dtype != expected.dtype and not placeholder:
        raise StateError(f"{what} has dtype {value.dtype}, expected {expected.dtype}: {cause}")
    if expected is not None and value.shape != expected.shape and not placeholder:
        raise StateError(f"{what} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}: {cause}")
    may_be_infinite = expected is not None and not bool(torch.isfinite(expected).all())
    if value.is_floating_point() and not may_be_infinite and not bool(torch.isfinite(value).all()):
        raise StateError(f"{what} is NaN or infinite: the checkpoint is damaged.")


def _sort(tensor: Tensor) -> tuple[bool, bool]:
    """Whether real, complex, or neither: whole numbers and truth values."""
    return tensor.is_floating_point(), tensor.is_complex()


def _kept(value: Any, keeper: Keeper | None, tasks: tuple[str, ...] | None) -> dict[str, Tensor]:
    kept = _mapping("refresh", value)
    if not kept or keeper is None:
        return {}
    k = len(tasks or ())
    shapes: dict[str, Callable[[Tensor], bool]] = {
        "weights": lambda t: tuple(t.shape) == (k,) and t.is_floating_point(),
        "present": lambda t: tuple(t.shape) == (k,) and t.dtype == torch.bool,
        "age": lambda t: t.ndim == 0 and t.dtype == torch.int64 and int(t) >= 0,
        "heads": lambda t: tuple(t.shape) == (k,) and t.is_floating_point(),
        "reference": lambda t: t.ndim == 2 and t.shape[0] == t.shape[1] and t.is_floating_point(),
    }
    for key in ("weights", "present", "age"):
        if key not in kept:
            raise StateError(f"the checkpoint's entry 'refresh' lacks {key!r}: it is damaged.")
    for key, tensor in kept.items():
        if key not in shapes:
            raise StateError(f"the checkpoint's entry 'refresh' has the unknown part {key!r}: it is damaged.")
        _check_tensor(f"part {key!r} of the checkpoint's entry 'refresh'", tensor, None)
        if not shapes[key](tensor):
            raise StateError(
                f"part {key!r} of the checkpoint's entry 'refresh' has shape {tuple(tensor.shape)} and dtype "
                f"{tensor.dtype}, which do not fit {k} tasks."
            )
    return {key: tensor.clone() for key, tensor in kept.items()}


def _teleporter(value: Any) -> dict[str, Any]:
    state = dict(_mapping("teleporter", value))
    previous = state.get("direction")
    if set(state) - {"direction"} or not (previous is None or isinstance(previous, (list, tuple))):
        raise _wrong("teleporter", value, "empty, or the gradients of the step before")
    for i, gradient in enumerate(previous or ()):
        _check_tensor(f"gradient {i} in the entry 'teleporter'", gradient, None)
    return state


def _pins(value: Any) -> dict[str, str]:
    pins = dict(_mapping("gradient_sources", value))
    for needs, name in pins.items():
        if needs not in ("GRAMIAN", "JACOBIAN") or name not in PLANS:
            raise StateError(
                f"the checkpoint's entry 'gradient_sources' is damaged: {needs!r} -> {name!r} names no gradient source."
            )
    return pins
