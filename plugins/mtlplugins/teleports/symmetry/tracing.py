"""The graph of a module's forward, by torch.fx, in training and in evaluation mode."""

from __future__ import annotations

import inspect
from collections import deque
from typing import Any

from torch import fx, nn

from mtlcore.hosting import Noise, Structure, copied_buffers, interrupts_held


def traces(module: nn.Module) -> list[fx.Graph]:
    """The graphs in training and in evaluation mode, as a forward may read ``self.training``; one if they are equal.

    Tracing runs the user's forward; changes of modules and of random generators are undone.

    Raises:
        DrawsError: the forward drew random numbers, so its graph may be another one next time.
        Exception: tracing failed.
    """
    before = Structure(module.modules())
    noise = Noise()
    graphs = []
    try:
        for mode in (True, False):
            for part in module.modules():
                part.training = mode
            with copied_buffers(module.modules()):
                graphs.append(trace(module))
            before.restore()
            if not noise.same_as(Noise()):
                raise DrawsError("the forward draws random numbers")
    finally:
        before.restore()
        noise.restore()
    return graphs[:1] if str(graphs[0]) == str(graphs[1]) else graphs


class DrawsError(Exception):
    """The graph of a forward depends on random numbers; a trace would show only one of the possible graphs."""


def trace(module: nn.Module) -> fx.Graph:
    """The graph; optional arguments of forward have their default values.

    Values that the forward keeps in attributes of modules are outputs, too, because the caller can read them.
    """
    defaults = {
        name: p.default
        for name, p in inspect.signature(module.forward).parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    with interrupts_held():  # it puts functions of its own into torch, and an interrupt could leave them there
        try:
            # To replace the functions of ``math``, which few forwards call on values of the graph, takes half of the
            # time.
            plain = fx.Tracer(autowrap_modules=())  # type: ignore[arg-type]  # torch says: of exactly one
            graph = plain.trace(module, concrete_args=defaults or None)
        except Exception:
            graph = fx.Tracer().trace(module, concrete_args=defaults or None)
    kept = [p.node for part in module.modules() for p in _proxies(part.__dict__) if p.node.graph is graph]
    if kept:
        output = next(iter(reversed(graph.nodes)))
        output.args = ((output.args[0], *kept),)
    return graph


def _proxies(value: Any) -> list[fx.Proxy]:
    """Every value of a graph in nested containers."""
    if isinstance(value, fx.Proxy):
        return [value]
    if isinstance(value, (dict, list, tuple, set, deque)):
        return [p for each in (value.values() if isinstance(value, dict) else value) for p in _proxies(each)]
    return []
