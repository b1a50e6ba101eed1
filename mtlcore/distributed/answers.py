"""The method's answer has the same bits on every process."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from mtlcore.contracts import Aggregation, State
from mtlcore.distributed import agreement
from mtlcore.errors import PluginError

if TYPE_CHECKING:
    from mtlcore.distributed.processes import Processes

PREFIX = "answer "
"""Of the tag under which answers are compared."""
_ROUNDING = 1e-6
"""Relative. Answers may differ by so much between machines of different kinds; then process 0's counts."""


class DifferError(Exception):
    """Answers with other bits."""


def agreed(processes: Processes, work: Callable[[], Aggregation], who: str) -> Aggregation:
    """What ``work`` answers; where answers differ by rounding, that of process 0.

    Raises:
        PluginError: the processes' answers differ by more than rounding.
    """
    found, error = processes.attempt(work)
    try:
        processes.exchange(error, "" if found is None else _digest(found))
    except DifferError:
        assert found is not None
        return _first(processes, found, who)
    assert found is not None
    return found


def _first(processes: Processes, mine: Aggregation, who: str) -> Aggregation:
    assert processes.wire is not None
    everybody = processes.wire.objects((mine.weights, mine.head_weights, mine.direction, mine.state))
    first = everybody[0]
    for rank, other in enumerate(everybody):
        apart = max(_distance(a, b) for a, b in zip(first[:3], other[:3]))
        if not apart <= _ROUNDING:
            processes.refuse(
                PluginError(
                    f"aggregator {who} answers differently on processes 0 and {rank} (by {apart:.1e}, relative), "
                    f"although both see the same losses and gradients. Does it look at what one process alone has: "
                    f"view.features, the clock, a random state of its own?"
                )
            )
    device = None if mine.direction is None else mine.direction.device
    direction = None if first[2] is None else first[2].to(device)
    return dataclasses.replace(mine, weights=first[0], head_weights=first[1], direction=direction, state=first[3])


def _digest(answer: Aggregation) -> str:
    found = hashlib.blake2b(digest_size=8)
    state: State = answer.state
    for t in (answer.weights, answer.head_weights, answer.direction, *(state[key] for key in sorted(state))):
        found.update(b"-" if t is None else agreement.fingerprint([t])[0].encode())
    return PREFIX + found.hexdigest()


def _distance(one: Tensor | None, other: Tensor | None) -> float:
    if one is None or other is None:
        return 0.0 if one is other else float("inf")
    scale = float(one.abs().max()) if one.numel() else 0.0
    apart = float((one.cpu() - other.cpu()).abs().max()) if one.numel() else 0.0
    return apart / scale if scale else apart
