"""What modules hold, as values: their buffers, or all of their structure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from mtlcore.snapshot.tensors import Parameters, do_all


class Buffers:
    """What a forward pass may change in modules: the bits of their buffers, and their plain attributes, that is
    whatever was set on them by name (a counter, a cache, ``training``). A container in an attribute keeps what was
    written into it; :class:`Structure` takes that back, too, and costs more."""

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        parts = dict.fromkeys(part for module in modules for part in module.modules())
        self._attributes = [(part.__dict__, dict(part.__dict__)) for part in parts]
        self._tables = [(part._buffers, dict(part._buffers)) for part in parts]
        self._values = Parameters(b for _, table in self._tables for b in table.values() if b is not None)

    def restore(self) -> None:
        """The same objects with the same bits in the same places."""
        for home, saved in (*self._attributes, *self._tables):
            if not _same_objects(home, saved):
                home.clear()
                home.update(saved)
        self._values.restore()


def _same_objects(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key] is other[key] for key in one)


def copied_buffers(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """While open, what the modules learn goes to copies of their buffers. Written to in place, the buffers would
    be lost to a graph that has saved them, even with their old bits back: autograd counts writes."""
    return _CopiedBuffers(modules)


class _CopiedBuffers(AbstractContextManager[None]):
    # Not a generator: one that an interrupt leaves open runs its end when it is collected, after a rollback.
    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._tables = [(module._buffers, dict(module._buffers)) for module in modules]

    def __enter__(self) -> None:
        held = [b for _, buffers in self._tables for b in buffers.values() if b is not None and not is_lazy(b)]
        copies = {b: b.clone() for b in held}
        for table, buffers in self._tables:
            table.update({name: copies[b] for name, b in buffers.items() if b in copies})

    def __exit__(self, *error: object) -> None:
        for table, buffers in self._tables:
            table.update(buffers)


class Structure:
    """Class, attributes, tables and hooks of single modules (not of those inside): what adapters, hooks,
    parametrisations and a forward with side effects change. Containers keep their identity and get their content back,
    also those inside others. Tensors are not copied."""

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self._saved: dict[nn.Module, _Attributes] = {}
        for module in modules:
            self.add(module)

    def add(self, module: nn.Module) -> None:
        """Save one more as it is now."""
        if module not in self._saved:
            self._saved[module] = _Attributes(module)

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._saved

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(list(self._saved))

    def was_training(self, module: nn.Module) -> bool:
        """The mode it was in; a wrapper (of the compiler) may answer for the module inside."""
        return self._saved[module].training

    def saved(self, module: nn.Module, name: str) -> Any:
        """The value that an attribute had."""
        return self._saved[module].attributes[name]

    def restore(self) -> None:
        """As saved: same objects, same contents."""
        do_all(saved.restore for saved in self._saved.values())


class _Attributes:
    """One module's."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._class = module.__class__
        self.training = module.training
        self.attributes = dict(module.__dict__)
        self._contents: dict[int, tuple[Any, Callable[[], None]]] = {}
        for value in self.attributes.values():
            self._keep(value)

    def restore(self) -> None:
        self._module.__class__ = self._class
        self._module.__dict__.clear()
        self._module.__dict__.update(self.attributes)
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
        # With the container, because an id is valid only as long as its object lives.
        self._contents[id(value)] = (value, refill)
        for each in inside:
            self._keep(each)


def _refill(container: Any, content: Any, fill: Callable[[Any], Any]) -> Callable[[], None]:
    def refill() -> None:
        container.clear()
        fill(content)

    return refill
