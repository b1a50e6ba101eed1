"""Plain modules: those without hooks, parametrisations and shared parameters, which behave as their class says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from torch import nn
from torch.nn.modules import module as _calls

_TABLES = frozenset({"_parameters", "_buffers", "_modules", "training"})


def uncompiled(module: nn.Module) -> tuple[nn.Module, str]:
    """The network inside of a ``torch.compile(network)``, which cannot be traced itself; and its prefix of names."""
    inner = module._modules.get("_orig_mod") if type(module).__name__ == "OptimizedModule" else None
    return (module, "") if inner is None else (inner, "_orig_mod.")


def altered(*modules: nn.Module) -> bool:
    """Whether a call of one of these runs code outside of the forward of its class; only that forward is traced."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or ("forward" in m.__dict__ and uncompiled(m)[0] is m) for m in modules
    )


def _watched() -> bool:
    """Whether there are global hooks on module calls, except for the core's own."""
    hooks = (*_calls._global_forward_hooks.values(), *_calls._global_forward_pre_hooks.values())
    return any(not str(getattr(hook, "__module__", "")).startswith("mtlcore.") for hook in hooks)


def shared_modules(trunk: nn.Module) -> set[nn.Module]:
    """Modules that are not plain: with hooks, parametrisations, parameters that are frozen or have two owners; those
    with parameters and two names, because a part that is traced alone knows one of them; with global hooks, all."""
    if _watched():
        return set(trunk.modules())
    owners = Counter(p for m in trunk.modules() for p in m._parameters.values() if p is not None)
    names = Counter(m for _, m in trunk.named_modules(remove_duplicate=False))
    unsafe = set()
    for module in trunk.modules():
        own = [p for p in module._parameters.values() if p is not None]
        hooks = (
            module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        )  # fmt: skip
        if (
            any(owners[p] > 1 or not p.requires_grad for p in own)
            or (own and names[module] > 1)
            or any(hooks)
            or hasattr(module, "parametrizations")
            or not isinstance(getattr(module, "weight", None), (nn.Parameter, type(None)))
            or "forward" in module.__dict__
        ):
            unsafe.add(module)
    return unsafe


def fingerprint(trunk: nn.Module) -> Hashable:
    """Everything on which the graph and its symmetries depend: classes, attributes, hooks, and owners of parameters.

    If a forward depends on something else (a global variable, the contents of a list), a change is not noticed here;
    ``sound`` finds it.
    """
    parts: list[Hashable] = [_watched()]
    for name, module in trunk.named_modules(remove_duplicate=False):
        own = tuple((n, id(p), p is not None and p.requires_grad) for n, p in module._parameters.items())
        attributes = tuple(
            (n, v if isinstance(v, (int, float, str, type(None))) else len(v) if isinstance(v, dict) else id(v))
            for n, v in module.__dict__.items()
            if n not in _TABLES
        )
        parts.append((name, type(module), own, attributes))
    return tuple(parts)
