"""When several tasks may be differentiated at the same time in threads of their own.

Autograd allows it: a function of the graph is locked while it works, and what one pass computes no other pass sees.
What it cannot allow is Python code in the backward pass that shares something: a hook, a custom Function, a checkpoint
that computes activations again with the global random state set back. Such code cannot be seen in the graph, but it
can be caught at work: the first pass through a graph of a new size runs alone and is watched.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph
from mtlcore.gradients.front import Front


class Permit:
    """Remembers the graphs that were watched and found clean."""

    def __init__(self) -> None:
        self._clean: set[tuple[int, int, bool, int]] = set()

    def watch(self, front: Front, first: Callable[[], object]) -> int:
        """Run the ``first`` task alone if the graph is new.

        Returns:
            how many tasks are done: 0 or 1.

        Raises:
            ConfigurationError: threads are not to be had here; names the reason and the way out.
        """
        outline = front.problem.outline
        device = front.problem.shared[0].device.type
        if device != "cpu":
            raise ConfigurationError(_refusal(f"the trunk is on {device}, whose queue is fed by one thread"))
        if torch.is_autocast_enabled(device):
            raise ConfigurationError(_refusal("autocast is on, which other threads do not know"))
        if outline in self._clean:
            return 0
        with graph.calls_into_python() as names:
            first()
        if names:
            raise ConfigurationError(
                _refusal(f"its backward pass runs Python code ({', '.join(dict.fromkeys(names))})")
            )
        self._clean.add(outline)
        return 1


def _refusal(why: str) -> str:
    return (
        f"this network's tasks cannot be differentiated side by side in threads: {why}. "
        f'Use gradients="auto" or gradients="sequential".'
    )
