"""What a module holds, put back: its tensors bit for bit, everything else as a value."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn


def put_back(tensor: Tensor, bits: Tensor) -> None:
    """Write into ``.data``: a graph that has saved the tensor finds its old bits again, and must stay usable."""
    try:
        tensor.data.copy_(bits)
    except RuntimeError:
        # Memory that overlaps (an expanded buffer) cannot be written to, and need not be if nobody did.
        same = (tensor == bits) | ((tensor != tensor) & (bits != bits))
        if not bool(same.all()):
            raise


@contextlib.contextmanager
def copied_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While open, what the modules learn goes to copies of their buffers. Written to in place, the buffers would
    be lost to a graph that has saved them, even with their old bits back: autograd counts writes."""
    tables = [(module._buffers, dict(module._buffers)) for module in modules]
    copies = {b: b.clone() for _, buffers in tables for b in buffers.values() if b is not None}
    for table, buffers in tables:
        table.update({name: copies[b] for name, b in buffers.items() if b is not None})
    try:
        yield
    finally:
        for table, buffers in tables:
            table.update(buffers)


class ModuleState:
    """One module's class, attributes, tables and hooks: what adapters, hooks, parametrisations and a forward with side
    effects change. Containers keep their identity and get their content back, also those inside others."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._class = module.__class__
        self._attributes = dict(module.__dict__)
        self._contents: dict[int, tuple[Any, Callable[[], None]]] = {}
        for value in self._attributes.values():
            self._keep(value)
        self.training = module.training

    def attribute(self, name: str) -> Any:
        """The value it had."""
        return self._attributes[name]

    def restore(self) -> None:
        """As at construction: same objects, same contents."""
        self._module.__class__ = self._class
        self._module.__dict__.clear()
        self._module.__dict__.update(self._attributes)
        for _, refill in self._contents.values():
            refill()

    def _keep(self, value: Any) -> None:
        if not isinstance(value, (dict, set, list, deque)) or id(value) in self._contents:
            return
        if isinstance(value, dict):
            inside = list(value.values())
            refill = _refill(value, dict(value), value.update)
        elif isinstance(value, set):
            inside = []
            refill = _refill(value, set(value), value.update)
        else:
            inside = list(value)
            refill = _refill(value, inside, value.extend)
        # With the container, for an id is one only as long as its object lives.
        self._contents[id(value)] = (value, refill)
        for each in inside:
            self._keep(each)


def _refill(container: Any, content: Any, fill: Callable[[Any], Any]) -> Callable[[], None]:
    def refill() -> None:
        container.clear()
        fill(content)

    return refill
