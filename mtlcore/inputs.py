"""What a user hands over, checked: trunk, task names, losses, features. Errors name the culprit and the way out."""

from __future__ import annotations

import contextlib
import enum
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore.errors import ConfigurationError, FeaturesError, LossError, NonFiniteError, PluginError, listed
from mtlcore.presence import Presence
from mtlcore.registry import create, registry
from mtlcore.safety import shown
from mtlcore.soundness import declared_fault
from mtlcore.teleporting.brakes import Brakes

Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor
Features = Tensor | Iterable[Any] | Mapping[Any, Any] | None
Closure = Callable[[], Any]


def plugin(kind: str, wish: Any, base: type) -> Any:
    """The instance, or one made by its registered name with default hyper-parameters.

    Raises:
        UnknownPluginError, PluginError: as ``create``; PluginError also for an instance that declares nonsense.
        ConfigurationError: neither a name nor an instance of ``base``.
    """
    if isinstance(wish, str):
        return create(kind, wish)
    if not isinstance(wish, base):
        hint = f"; make an instance: {wish.__name__}(...)" if isinstance(wish, type) else ""
        raise ConfigurationError(
            f"{kind} must be a registered name or an mtlcore.{base.__name__}, found {wish!r}{hint}."
        )
    fault = declared_fault(wish)
    if fault is not None:
        raise PluginError(f"{kind} {registry().identify(wish)}: {fault}.")
    return wish


def whole_number(name: str, value: Any) -> int:
    """As an int of Python's own, which every checkpoint can hold. Raises ConfigurationError if it is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except (TypeError, RuntimeError):
        raise ConfigurationError(f"{name} must be a whole number; found {value!r}.") from None


def trunk_parameters(trunk: nn.Module | Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Each once.

    Raises:
        ConfigurationError: none, or something that is not a real leaf tensor.
    """
    if isinstance(trunk, Tensor):
        raise ConfigurationError("trunk is a single tensor: pass the shared nn.Module or a list of its parameters.")
    named: list[tuple[str, Any]]
    if isinstance(trunk, nn.Module):
        named = list(trunk.named_parameters())
    else:
        named = [(str(i), p) for i, p in enumerate(trunk)]
    if not named:
        raise ConfigurationError("trunk has no parameters: pass the shared nn.Module or an iterable of its parameters.")
    for name, p in named:
        if not isinstance(p, Tensor):
            raise ConfigurationError(
                f"trunk parameter {name} is a {type(p).__name__}: pass the shared nn.Module, or trunk.parameters()."
            )
        if p.is_inference():
            raise ConfigurationError(
                f"trunk parameter {name} (shape {tuple(p.shape)}) was made inside torch.inference_mode(), and can "
                f"never be trained: make the network outside of it."
            )
        if not p.is_leaf:
            raise ConfigurationError(
                f"trunk parameter {name} (shape {tuple(p.shape)}) is computed from other tensors: pass the parameters "
                f"that it is computed from."
            )
        if p.is_complex():
            raise ConfigurationError(
                f"trunk parameter {name} (shape {tuple(p.shape)}) is complex, and inner products of task gradients are "
                f"taken over real numbers: keep it as a real parameter of shape (..., 2) and use "
                f"torch.view_as_complex in forward()."
            )
    return list({id(p): p for _, p in named}.values())


def check_helpers(optimizer: Any, heads: Any, probe: Any) -> None:
    """Raises ConfigurationError for what a step would stumble over when it has changed things already."""
    several = [] if optimizer is None else optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
    for each in several:
        if not (hasattr(each, "step") and hasattr(each, "zero_grad")):
            raise ConfigurationError(
                f"optimizer must be a torch.optim.Optimizer, found {each!r} (or a list of optimizers)."
            )
        if isinstance(each, torch.optim.LBFGS):
            raise ConfigurationError(
                "LBFGS evaluates the losses several times a step, and a multi-task step evaluates them itself: leave "
                "the optimizer out and call backward(losses) in a closure of your own, optimizer.step(closure)."
            )
    _check_apart(several)
    if heads is not None and not isinstance(heads, nn.Module):
        raise ConfigurationError(
            f"heads must be an nn.Module, found a {type(heads).__name__}: put several into nn.ModuleDict or "
            f"nn.ModuleList."
        )
    if probe is not None and not callable(probe):
        raise ConfigurationError(
            f"probe must be a function that returns (losses, features), found a {type(probe).__name__}."
        )


def _check_apart(optimizers: Sequence[Any]) -> None:
    """Raises ConfigurationError if a parameter is in two optimizers, which would both move it by one gradient."""
    owner: dict[int, int] = {}
    for position, each in enumerate(optimizers):
        for p in [p for group in getattr(each, "param_groups", ()) for p in group["params"]]:
            first = owner.setdefault(id(p), position)
            if first != position:
                raise ConfigurationError(
                    f"a parameter of shape {tuple(p.shape)} is in optimizers {first} and {position}: both would move "
                    f"it in every step. Give each parameter to one optimizer."
                )


def brakes(wish: Any) -> Brakes:
    """The brakes, or the default ones. Raises ConfigurationError for something else."""
    if wish is None:
        return Brakes()
    if not isinstance(wish, Brakes):
        raise ConfigurationError(f"brakes must be mtlcore.Brakes(...), found {wish!r}.")
    return wish


def parameter_names(trunk: nn.Module | None, parameters: Sequence[Tensor]) -> dict[int, str]:
    """Of the trunk's parameters, by identity: their names in the module, or their positions in the list."""
    named = [(str(i), p) for i, p in enumerate(parameters)] if trunk is None else list(trunk.named_parameters())
    return {id(p): name for name, p in named}


def task_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """As a tuple of plain values. Raises ConfigurationError if there is none, one twice, or none that can be kept."""
    names = tuple(map(_plain, tasks)) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else ()
    if not names or len(set(names)) != len(names):
        raise ConfigurationError(f"tasks must be a list of distinct names, at least one; found {tasks!r}.")
    texts: set[str] = set()
    for name in map(str, names):
        if name in texts:
            raise ConfigurationError(
                f"two tasks have names that reports show alike, as {name!r}: call one differently."
            )
        texts.add(name)
    return names


def _plain(name: Any) -> Any:
    """A task's name as a value that every checkpoint can hold: the string of a member of a ``str`` Enum, say."""
    if isinstance(name, str):
        return str.__str__(name)
    if name is None or isinstance(name, (bool, bytes)) or (isinstance(name, float) and name == name):
        return name
    if isinstance(name, tuple):
        return tuple(map(_plain, name))
    if not isinstance(name, Tensor) and hasattr(name, "__index__"):
        return operator.index(name)
    way = ", for an Enum's member its .name or .value" if isinstance(name, enum.Enum) else ""
    raise ConfigurationError(
        f"a task cannot be called {shown(name)}, a {type(name).__name__}: checkpoints and reports hold strings and "
        f"numbers. Use a string{way}."
    )


def present_losses(
    losses: Losses, tasks: tuple[str, ...] | None, graph: bool = True
) -> tuple[Presence, tuple[Tensor, ...]]:
    """The tasks of the run, those of them that are in this batch, and their losses.

    Args:
        losses: as :meth:`MultiTask.backward` takes them.
        tasks: the names of the run, or None before its first batch.
        graph: whether each loss must have one.

    Raises:
        LossError: none is present, or one is not usable; names the task.
    """
    named = by_name(losses, tasks)
    names = tasks or (task_names(list(named)) if isinstance(losses, Mapping) else tuple(named))
    where = tuple([i for i, n in enumerate(names) if named.get(n) is not None])
    if not where:
        raise LossError("no losses: every task is missing from this batch; skip the step instead.")
    presence = Presence(names, None if len(where) == len(names) else where)
    scalars: tuple[Any, ...] = tuple([named[n] for n in presence.present])
    check_losses(presence.present, scalars, graph)
    return presence, scalars


def probed(probe: Closure, tasks: tuple[str, ...] | None) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The probe's losses, held to what is asked of a step's, and its features.

    Raises:
        LossError: as for a step's losses; says that it was the probe.
    """
    try:
        losses, features = evaluated(probe)
        named = {n: v for n, v in by_name(losses, tasks).items() if v is not None}
        if not named:
            raise LossError("no losses: every task is missing.")
        check_losses(tuple(named), tuple(named.values()), graph=torch.is_grad_enabled())
    except LossError as error:
        raise LossError(f"probe: {error}") from error
    return named, flat(features)


def by_name(losses: Losses, tasks: tuple[str, ...] | None) -> dict[str, Tensor | None]:
    """{task: loss} of losses in any form, absent ones None or left out.

    Args:
        losses: as :meth:`MultiTask.backward` takes them.
        tasks: the names of the run, or None before its first batch.

    Raises:
        LossError: no losses at all, not a form of them, or a name that the run does not have.
    """
    if isinstance(losses, dict):
        named = losses
    elif not isinstance(losses, (list, tuple)) and isinstance(losses, Mapping):  # that question takes its time
        named = dict(losses)
    else:
        if isinstance(losses, Tensor) and losses.ndim != 1:
            raise LossError(f"a tensor of losses must have shape (K,), found {tuple(losses.shape)}; or pass a dict.")
        if not isinstance(losses, (Tensor, list, tuple)):
            raise LossError(
                f"losses must be {{task: scalar loss}} or a list of scalar losses; found a {type(losses).__name__}."
            )
        values = losses.unbind() if isinstance(losses, Tensor) else list(losses)
        names = tasks or tuple(f"task{i}" for i in range(len(values)))
        if len(names) != len(values):
            raise LossError(
                f"{len(values)} losses for {len(names)} tasks ({listed(names)}): put None where a "
                f"task is missing from the batch, or pass a dict."
            )
        named = dict(zip(names, values))
    if not named:
        raise LossError("no losses: pass {task: scalar loss} or a list of scalar losses.")
    if tasks is not None and tuple(named) != tasks:
        for name in named:
            if name not in tasks:
                raise LossError(
                    f"unknown task {name!r}: this run has the tasks {', '.join(map(str, tasks))}. If a task "
                    f"may be missing from the first batch, declare MultiTask(..., tasks=[...])."
                )
    return named


def theirs(error: BaseException) -> None:
    """Mark an error as the user's own: it comes from a closure, no matter which code called it."""
    with contextlib.suppress(Exception):  # an exception that cannot hold an attribute
        error._mtlcore_user = True  # type: ignore[attr-defined]


def is_theirs(error: BaseException) -> bool:
    """Whether a closure of the user's raised it: no plugin is to blame, though one may have called the closure."""
    return getattr(error, "_mtlcore_user", False) is True


def evaluated(closure: Closure) -> tuple[Losses, Features]:
    """What a closure returns at the parameters' present values, as a pair."""
    # In a caller's autocast block the cast weights are kept by tensor, whatever value it has by now.
    torch.clear_autocast_cache()
    try:
        value = closure()
    except BaseException as error:
        theirs(error)
        raise
    # A pair is (losses, features) unless it is plainly a list of two scalar losses, of which one may be missing.
    if isinstance(value, tuple) and len(value) == 2:
        first = value[0]
        if first is not None and not (isinstance(first, Tensor) and first.ndim == 0):
            return value
    return value, None


def flat(features: Any) -> tuple[Tensor, ...]:
    """Every tensor in a nest of tuples, lists and dicts, once. Raises FeaturesError where there is something else."""
    if features is None:
        return ()
    if isinstance(features, Tensor):
        return (features,)
    if not isinstance(features, (Mapping, list, tuple)):
        raise FeaturesError(
            f"features must be tensors, or lists, tuples and dicts of them; found a {type(features).__name__}."
        )
    parts = features.values() if isinstance(features, Mapping) else features
    return tuple({id(t): t for part in parts for t in flat(part)}.values())


def stack(losses: Sequence[Tensor]) -> Tensor | None:
    """(K,) with a graph; None if dtypes or devices differ."""
    first = losses[0]
    dtype, device = first.dtype, first.device
    for loss in losses:
        if loss.dtype != dtype or loss.device != device:
            return None
    if not torch.is_grad_enabled():  # the context itself costs as much as the rest
        with torch.enable_grad():
            return torch.stack(tuple(losses))
    return torch.stack(tuple(losses))


def numbers(losses: Sequence[Tensor], stacked: Tensor | None = None) -> list[float]:
    """(K,) values of scalars, read at once where they can be: on an accelerator every reading is a wait."""
    stacked = stack(losses) if stacked is None and losses else stacked
    out: list[float] = [loss.item() for loss in losses] if stacked is None else stacked.tolist()
    return out


def values_of(losses: Sequence[Tensor], stacked: Tensor | None, names: Sequence[str]) -> list[float]:
    """(K,), as :func:`finite`."""
    return finite(numbers(losses, stacked), names)


def finite(values: list[float], names: Sequence[str], when: str = "") -> list[float]:
    """The values of the losses, if they are finite; ``when`` they were taken, for the error.

    Raises:
        NonFiniteError: NaN or infinity; names tasks and values.
    """
    if all(map(math.isfinite, values)):
        return values
    bad = [f"{n!r} ({v})" for n, v in zip(names, values) if not math.isfinite(v)]
    raise NonFiniteError(
        f"{when}the loss of task {listed(bad)} is not finite. Parameters and state are untouched."
        + (" Lower the step size." if when else "")
    )


def check_losses(names: Sequence[str], losses: Sequence[Any], graph: bool = True) -> None:
    """Raises LossError for one that is not a real scalar tensor, or has no graph where it needs one; names the task."""
    for name, loss in zip(names, losses):
        if not isinstance(loss, Tensor):
            raise LossError(f"the loss of task {name!r} is a {type(loss).__name__}, not a tensor.")
        if loss.ndim > 0:
            raise LossError(
                f"the loss of task {name!r} has shape {tuple(loss.shape)}; it must be a scalar: reduce it, "
                f"for instance with .mean()."
            )
        if loss.is_complex():
            raise LossError(f"the loss of task {name!r} is complex; a loss is a real number: take .real or .abs().")
        if graph and not loss.requires_grad:
            raise LossError(
                f"the loss of task {name!r} has no gradient graph: it was detached, computed under no_grad, or does "
                f"not depend on any parameter that requires gradients. Leave the task out if it is missing."
            )
