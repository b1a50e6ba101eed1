"""Backward passes through FSDP2, which reduces and scatters what they find; it is taken away from ``.grad`` again."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore.gradients.task_gradients import Pair


def forget_whole(modules: Sequence[nn.Module]) -> None:
    """Let FSDP gather the parameters of these modules, and of the network around them, before the next forward pass.

    After a forward pass without a backward pass its root has whole parameters still, and the next one would take them,
    whatever the shards have become. No communication.
    """
    mine = {id(m) for module in modules for m in module.modules()}
    # Nothing leads from a module to the network around it: all objects are looked at.
    for found in gc.get_objects():
        kind = type(found)
        sharded = issubclass(kind, nn.Module) and hasattr(kind, "set_reshard_after_backward")
        if sharded and any(id(m) in mine for m in found.modules()):
            found.reshard()


class Passes:
    """All processes make the same passes, one after the other.

    Args:
        modules: trunk and heads, as far as they are modules.
        leaves: whose gradients are asked for; shards for whole ones that the graph shows.
    """

    def __init__(self, modules: Sequence[nn.Module], leaves: Sequence[Tensor]) -> None:
        self._sharded: list[Any] = [
            m for module in modules for m in module.modules() if hasattr(m, "set_reshard_after_backward")
        ]
        self._leaves = list({id(p): p for p in leaves}.values())

    def pull(self, roots: Sequence[Tensor], seeds: Sequence[Tensor], retain: bool) -> list[Pair]:
        """Leaves and their gradients. Parameters stay whole until a pass that does not retain the graph is over."""
        before = [(p, p.grad) for p in self._leaves]
        for p in self._leaves:
            p.grad = None
        try:
            with self.held(not retain):
                torch.autograd.backward(list(roots), list(seeds), retain_graph=retain)
            return [(p, p.grad) for p in self._leaves if p.grad is not None]
        finally:
            for p, old in before:
                p.grad = old

    @contextlib.contextmanager
    def held(self, last: bool = False) -> Iterator[None]:
        """Inside, a pass leaves whole parameters whole, unless it is the last."""
        for m in self._sharded:
            m.set_reshard_after_backward(last, recurse=False)
        try:
            yield
        finally:
            for m in self._sharded:
                m.set_reshard_after_backward(True, recurse=False)
