"""Which modules do no more than their class says: without hooks, parametrisations, and parameters that others share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from torch import nn
from torch.nn.modules import module as _calls

from mtlcore.teleporting import transaction

_TABLES = frozenset({"_parameters", "_buffers", "_modules", "training"})


def uncompiled(module: nn.Module) -> tuple[nn.Module, str]:
    """The network inside a ``torch.compile(network)``, which cannot be traced itself, and the prefix of its names."""
    inner = module._modules.get("_orig_mod") if type(module).__name__ == "OptimizedModule" else None
    return (module, "") if inner is None else (inner, "_orig_mod.")


def altered(*modules: nn.Module) -> bool:
    """Whether calling one of these runs code that is not in the forward of its class, which is all that is traced."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or ("forward" in m.__dict__ and uncompiled(m)[0] is m) for m in modules
    )


def _watched() -> bool:
    """Whether hooks on the calls of every module are set, but for the one by which a transaction meets modules."""
    hooks = (*_calls._global_forward_hooks.values(), *_calls._global_forward_pre_hooks.values())
    return any(getattr(hook, "__module__", None) != transaction.__name__ for hook in hooks)


def shared_modules(trunk: nn.Module) -> set[nn.Module]:
    """Modules that are not plain: with hooks, parametrisations, parameters that are frozen or owned twice, or with
    parameters and two names, of which a part that is traced alone knows one. If hooks watch every call, all of them."""
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
    """What the graph and the safety of its parts depend on: classes, attributes, hooks, and who owns which parameter.

    A forward that looks at something else (a global, the inside of a list) can change unseen: ``sound`` would notice.
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
