"""When several tasks may be differentiated at the same time in threads of their own.

Autograd allows it: a function of the graph is locked while it works, and what one pass computes no other pass sees.
What it cannot allow is Python code in the backward pass that shares something: a hook, a custom Function, a checkpoint
that computes activations again with the global random state set back. Such code cannot be seen in the graph, but it
can be caught at work: the first passes through a graph of a new outline run one after the other and are watched, those
of all tasks, for every head may have such code of its own. A task that was absent then is watched when it comes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mtlcore import threads
from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph
from mtlcore.gradients.source import GradientProblem, Outline


class Permit:
    """Remembers the graphs that were watched and found clean, task by task."""

    def __init__(self) -> None:
        self._clean: set[Outline] = set()

    def run(self, problem: GradientProblem, passes: Sequence[threads.Job]) -> None:
        """Run all passes side by side, or one after the other if the graph is new.

        Raises:
            ConfigurationError: threads are not to be had here; names the reason and the way out.
        """
        device = problem.shared[0].device.type
        if device != "cpu":
            raise ConfigurationError(_refusal(f"the trunk is on {device}, whose queue is fed by one thread"))
        if torch.is_autocast_enabled(device):
            raise ConfigurationError(_refusal("autocast is on, which other threads do not know"))
        if problem.outlines <= self._clean:
            threads.side_by_side(passes)
            return
        with graph.calls_into_python() as names:
            for one in passes:
                one()
                if names:
                    break
        if names:
            raise ConfigurationError(
                _refusal(f"its backward pass runs Python code ({', '.join(dict.fromkeys(names))})")
            )
        self._clean |= problem.outlines


def _refusal(why: str) -> str:
    return (
        f"this network's tasks cannot be differentiated side by side in threads: {why}. "
        f'Use gradients="auto" or gradients="sequential".'
    )
