"""One model of several experts: ``mtlcore.merge``.

An expert is the base after training on one task. The rules that hold for every method are here, the methods themselves
are plugins (:class:`mtlcore.Merger`):

- Parameters: the method decides. Task vectors are computed in float64, and the sum is rounded once to the entry's
  dtype.
- Statistics (floating-point buffers of a module; in a state dict the entries called ``running_mean`` and
  ``running_var``): the mean over the experts, because any other combination may make a variance negative. [choice]
- Integers and bools: the value on which all experts agree; where they do not agree, that of the base. [choice]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from mtlcore.contracts.merger import Merger, Objective
from mtlcore.errors import ConfigurationError, NonFiniteError, PluginError
from mtlcore.inputs import whole_number
from mtlcore.registry import create

Wish = Callable[[Any, int], Tensor] | None
Model = nn.Module | Mapping[str, Tensor]
Entries = dict[str, Tensor]


@overload
def merge(
    base: nn.Module, experts: Sequence[Model], method: str | Merger = ..., *, seed: int = ..., objective: Wish = ...
) -> nn.Module: ...
@overload
def merge(
    base: Mapping[str, Tensor],
    experts: Sequence[Model],
    method: str | Merger = ...,
    *,
    seed: int = ...,
    objective: Wish = ...,
) -> Entries: ...
def merge(base: Any, experts: Any, method: str | Merger = "doge", *, seed: int = 0, objective: Wish = None) -> Any:
    """One model out of several experts that were trained from one base.

    Neither the base nor an expert is written to. An expert may be a PEFT model with LoRA adapters on the same base: its
    adapters are then added to the weights, in a copy.

    Args:
        base: theta_0, a module or a state dict. Of one that ``torch.compile`` or ``DistributedDataParallel`` wraps, the
            network inside is meant.
        experts: at least one; modules, PEFT models or state dicts with the entries of the base, in any mixture;
            they may be wrapped like the base.
        method: name of a merger (``mtl list --kind merger``), or an instance with options of your own.
        seed: of the random numbers that a method may draw.
        objective: for a method that adapts itself to data (``adamerging``): ``objective(model, step)`` is a scalar that
            should be small, such as the entropy of the model's predictions on a batch without labels. The model is a
            copy of the base in evaluation mode with the merged parameters; from a state dict it is a dict of tensors.

    Returns:
        A module where the base is a module (a copy of it), a state dict where it is one. Nothing in it shares memory
        with the base or an expert.

    Raises:
        ConfigurationError: an objective is missing, is given to a method that does not look at data, or is not a finite
            number; no expert; an entry is missing, is one too many, or has another shape or dtype; adapters sit on
            another base. Expert and entry are named.
        NonFiniteError: NaN or infinity in the base or in an expert, or the merged value is too large for its dtype.
        PluginError: the merger returned something that is not a task vector.
        UnknownPluginError: there is no such merger.
    """
    merger = create("merger", method) if isinstance(method, str) else method
    if not isinstance(merger, Merger):
        raise ConfigurationError(f"method is a {type(method).__name__}; it must be a name or an mtlcore.Merger.")
    seed = whole_number("seed", seed)
    if objective is not None and not callable(objective):
        raise ConfigurationError(f"objective must be a function of (model, step), found {objective!r}.")
    if merger.reads_data != (objective is not None):
        raise ConfigurationError(
            f"merger {type(merger).__name__} "
            + (
                "adapts itself to data: give objective=, a function of (model, step)."
                if merger.reads_data
                else "does not look at data; leave objective= out."
            )
        )
    base = _bare(base)
    start = _entries(base, "the base", refuse_adapters=True)
    states = _experts(experts, start)
    wanted = None if objective is None else _objective(base, start, objective)
    merged = _merged(start, states, _statistics(base), merger, seed, wanted)
    if not isinstance(base, nn.Module):
        return merged
    made = copy.deepcopy(base)
    made.load_state_dict(merged)
    return made


def _merged(
    start: Entries,
    states: list[Entries],
    is_statistic: Callable[[str], bool],
    merger: Merger,
    seed: int,
    objective: Objective | None,
) -> Entries:
    floats = [n for n, value in start.items() if value.is_floating_point()]
    weights = [n for n in floats if not is_statistic(n)]
    base = {n: start[n].to(torch.float64, copy=True) for n in weights}
    vectors = [{n: state[n].to(base[n]) - base[n] for n in weights} for state in states]
    generator = torch.Generator().manual_seed(seed)
    if objective is None:
        found = merger.merge(base, vectors, generator)
    else:
        found = merger.adapt(base, vectors, generator, objective)
    _check_answer(merger, found, {n: start[n] for n in weights})
    out = {}
    for name, old in start.items():
        if name in found:
            # ``base`` went through the hands of a plugin: the sum is made with the user's own value.
            value = (old.double() + found[name]).to(old.dtype)
        elif name in weights:
            value = old.clone()
        elif old.is_floating_point():
            value = torch.stack([s[name].to(old.device, torch.float64) for s in states]).mean(0).to(old.dtype)
        else:
            first = states[0][name].to(old.device)
            value = (first if all(torch.equal(first, s[name].to(old.device)) for s in states) else old).clone()
        if old.is_floating_point() and not bool(value.isfinite().all()):
            raise NonFiniteError(
                f"entry {name!r} of the merged model is too large for {old.dtype}. Nothing was written."
            )
        out[name] = value
    return out


class _Wished(nn.Module):
    """Makes the user's objective a forward pass, so that parameters can be replaced by a public call."""

    def __init__(self, model: nn.Module, wish: Callable[[Any, int], Tensor]) -> None:
        super().__init__()
        self.model, self._wish = model, wish

    def forward(self, step: int) -> Tensor:
        return self._wish(self.model, step)


def _objective(base: Any, start: Entries, wish: Callable[[Any, int], Tensor]) -> Objective:
    """The user's objective as a function of entries in float64."""
    wrapped = _Wished(copy.deepcopy(base).eval(), wish) if isinstance(base, nn.Module) else None

    def objective(entries: Mapping[str, Tensor], step: int) -> Tensor:
        cast = {n: v.to(start[n].dtype) for n, v in entries.items()}
        with torch.enable_grad():
            if wrapped is None:
                value = wish({**start, **cast}, step)
            else:
                value = torch.func.functional_call(wrapped, {f"model.{n}": v for n, v in cast.items()}, (step,))
        if not isinstance(value, Tensor) or value.shape != () or not bool(value.isfinite()):
            raise ConfigurationError(f"objective(model, {step}) must return a finite scalar tensor.")
        if any(v.requires_grad for v in entries.values()) and not value.requires_grad:
            raise ConfigurationError(
                f"objective(model, {step}) does not depend on the model, or was detached from it: evaluate the model "
                f"that it is given, without torch.no_grad()."
            )
        return value

    return objective


# --- what goes in ---------------------------------------------------------------------------------------------------


def _experts(experts: Any, start: Entries) -> list[Entries]:
    if isinstance(experts, (nn.Module, Mapping, str)) or not isinstance(experts, Sequence):
        raise ConfigurationError(f"experts is a {type(experts).__name__}; it must be a list of models: [expert, ...].")
    if not experts:
        raise ConfigurationError("experts is empty: there is nothing to merge. Give at least one.")
    states = []
    for number, expert in enumerate(experts):
        who = f"experts[{number}]"
        expert = _bare(expert)
        state = _unloaded(expert, start, who) if _has_adapters(expert) else _entries(expert, who)
        state = _named_alike(state, start)
        _check_same_form(state, start, who)
        states.append(state)
    return states


def _bare(model: Any) -> Any:
    """The network inside a wrapper that shows its entries under other names."""
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    while isinstance(model, nn.Module):
        inner = model.module if isinstance(model, wrappers) else getattr(model, _COMPILED[:-1], None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


_COMPILED = "_orig_mod."
"""What torch.compile puts before the names of what it has compiled."""


def _named_alike(state: Entries, start: Entries) -> Entries:
    """The same under the base's names, if parts of one of the two were compiled."""
    own = {name.replace(_COMPILED, ""): name for name in start}
    return {own.get(name.replace(_COMPILED, ""), name): value for name, value in state.items()}


def _entries(model: Any, who: str, refuse_adapters: bool = False) -> Entries:
    """The state dict of a model, all of it finite tensors."""
    if not isinstance(model, (nn.Module, Mapping)):
        raise ConfigurationError(f"{who} is a {type(model).__name__}; it must be a module or a state dict.")
    found = dict(model.state_dict() if isinstance(model, nn.Module) else model)
    if refuse_adapters and any(".lora_" in str(name) for name in found):
        raise ConfigurationError(
            f"{who} has LoRA adapters in it: get_peft_model writes them into the model that it is given. Hand over a "
            f"copy that was taken before (copy.deepcopy(model)), or expert.unload()."
        )
    for name, value in found.items():
        if not isinstance(name, str):
            raise ConfigurationError(f"entry {name!r} of {who} must have a string for a name, as in a state dict.")
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"entry {name!r} of {who} is a {type(value).__name__}, not a tensor; leave it out."
            )
        if value.is_complex() or value.layout != torch.strided or value.is_quantized:
            raise ConfigurationError(
                f"entry {name!r} of {who} is {value.dtype}, {value.layout}: only dense real tensors."
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NonFiniteError(f"entry {name!r} of {who} has NaN or infinite values. Nothing was merged.")
        found[name] = value.detach()
    return found


def _check_same_form(state: Entries, start: Entries, who: str) -> None:
    for name in [*start, *state]:
        if name not in state:
            raise ConfigurationError(f"{who} has no entry {name!r}, but the base has. Experts need the base's network.")
        if name not in start:
            raise ConfigurationError(
                f"{who} has an entry {name!r}, but the base has not. Leave task-specific heads out: merge the trunks."
            )
        if state[name].shape != start[name].shape or state[name].dtype != start[name].dtype:
            has, wanted = (f"{tuple(t.shape)} {t.dtype}" for t in (state[name], start[name]))
            raise ConfigurationError(f"entry {name!r} of {who} is {has}; in the base it is {wanted}.")


def _has_adapters(expert: Any) -> bool:
    return isinstance(expert, nn.Module) and hasattr(expert, "peft_config") and hasattr(expert, "merge_and_unload")


def _unloaded(expert: Any, start: Entries, who: str) -> Entries:
    """The weights of a PEFT model with its adapters added, in a copy; what lies under them must be the base. Statistics
    move in training, and biases where the adapters' configuration trains them."""
    inside = expert.get_base_model()
    statistics = {name for name, _ in inside.named_buffers(remove_duplicate=False)}
    biases = any(getattr(c, "bias", "none") != "none" for c in expert.peft_config.values())
    for name, value in inside.state_dict().items():
        plain = name.replace(".base_layer.", ".").replace(".original_module.", ".").removeprefix("base_layer.")
        if ".lora_" in name or ".modules_to_save." in name or not isinstance(value, Tensor):
            continue
        if name in statistics or (biases and plain.rpartition(".")[2] == "bias"):
            continue
        if (
            plain in start
            and value.is_floating_point()
            and not torch.equal(value.to(start[plain].device), start[plain])
        ):
            raise ConfigurationError(
                f"the adapters of {who} sit on another base: entry {plain!r} under them differs from the base's. (Are "
                f"they merged into it already? Then hand over expert.merge_and_unload().)"
            )
    return _entries(copy.deepcopy(expert).merge_and_unload(), who)


def _statistics(base: Any) -> Callable[[str], bool]:
    if isinstance(base, nn.Module):
        return {name for name, _ in base.named_buffers(remove_duplicate=False)}.__contains__
    return lambda name: name.rpartition(".")[2] in ("running_mean", "running_var")


# --- what comes back ------------------------------------------------------------------------------------------------


def _check_answer(merger: Merger, found: Any, weights: Entries) -> None:
    who = f"merger {type(merger).__name__}"
    if not isinstance(found, dict):
        raise PluginError(f"{who} returned a {type(found).__name__}, not a dict of tensors.")
    for name, value in found.items():
        if name not in weights:
            raise PluginError(f"{who} returned an entry {name!r} that it was not given.")
        if not isinstance(value, Tensor) or value.shape != weights[name].shape or value.dtype != torch.float64:
            raise PluginError(f"{who} returned for {name!r} something else than a float64 tensor of the entry's shape.")
        if not bool(value.isfinite().all()):
            raise PluginError(f"{who} returned NaN or infinity for {name!r}, although its inputs are finite.")
