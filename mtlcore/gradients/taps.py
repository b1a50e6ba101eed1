"""What functions in the graph are given, read where they read it: after every hook on the way to them.

What autograd hands out for an edge between two functions is the gradient before the hooks there (unless nothing behind
the second one is asked for). A source that multiplies weight gradients out itself needs it as the function gets it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlcore.gradients import graph, torch_internals


class Taps:
    """One on each of these functions, until :meth:`remove`.

    Args:
        nodes: functions of one output each.
    """

    def __init__(self, nodes: Iterable[Any]) -> None:
        self._seen: dict[int, Tensor | None] = {}
        """What the pass that is running waits for, and what of it has come."""
        self.hooked: set[Any] = set()
        """Functions with hooks of somebody else, which may change what they are given (and need not run, where nothing
        behind the function is asked for) or what they return."""
        self._handles = []
        for node in nodes:
            # The identity, because a node that is kept alive by its own hook would never be freed.
            after = node.register_hook(functools.partial(self._note, id(node)))
            before = node.register_prehook(_look)  # only to see who else is there
            if any(map(torch_internals.others_listen, (after, before))):
                self.hooked.add(node)
            before.remove()
            self._handles.append(after)

    def remove(self) -> None:
        """The graph is as it was before."""
        for handle in self._handles:
            handle.remove()

    def differentiate(
        self, outputs: Sequence[Tensor], inputs: Sequence[Any], seeds: Sequence[Tensor] | None = None, *, retain: bool
    ) -> tuple[Tensor | None, ...]:
        """:func:`graph.differentiate`, with what the functions behind gradient edges were given."""
        keys = [id(i.node) if isinstance(i, GradientEdge) else None for i in inputs]
        seen: dict[int, Tensor | None] = {k: None for k in keys if k is not None}
        self._seen = seen
        try:
            found = graph.differentiate(outputs, inputs, seeds, retain=retain)
        finally:
            self._seen = {}
        return tuple([g if k is None or seen[k] is None else seen[k] for k, g in zip(keys, found)])

    def _note(self, key: int, returned: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> None:
        if key in self._seen:
            self._seen[key] = given[0]


def _look(given: Sequence[Tensor | None]) -> None:
    pass
