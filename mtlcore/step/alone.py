"""One call of a run at a time: a step shares buffers and counters with no other."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from mtlcore.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")


class Calls:
    """The calls of one run that have not returned. A copy begins without."""

    def __init__(self) -> None:
        self.running: set[tuple[int, FrameType]] = set()
        """Thread and frame of each."""

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        return Calls, ()

    def others(self, mine: tuple[int, FrameType]) -> list[int]:
        """The threads of those that are still on their stack: an interrupt may have kept one from being taken out."""
        return [thread for thread, frame in list(self.running - {mine}) if _is_on_stack(thread, frame)]


def _is_on_stack(thread: int, frame: FrameType) -> bool:
    now: FrameType | None = sys._current_frames().get(thread)
    while now is not None and now is not frame:
        now = now.f_back
    return now is frame


def alone(method: Callable[P, T]) -> Callable[P, T]:
    """Of a ``MultiTask``: refuses to begin while another call of it runs.

    Raises:
        ConfigurationError: in another thread, or in this one (inside a closure or a hook).
    """

    @functools.wraps(method)
    def single(*args: P.args, **options: P.kwargs) -> T:
        calls: Any = args[0]._run.calls  # type: ignore[attr-defined]
        mine = (threading.get_ident(), sys._getframe())
        try:
            calls.running.add(mine)
            if len(calls.running) > 1 and (others := calls.others(mine)):
                where = "inside another call of it (in a closure or a hook)"
                if mine[0] not in others:
                    where = "while another thread is inside a call of it"
                raise ConfigurationError(
                    f"{method.__name__} of a MultiTask was called {where}: a step is one call at a time. Take one step "
                    f"after the other, or give each thread a MultiTask and a network of its own."
                )
            return method(*args, **options)
        finally:
            calls.running.discard(mine)

    return single
