"""Holding back what would stop the program in the middle of a change."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]
"""Those whose handlers usually raise: Ctrl-C, a scheduler's goodbye, a time limit."""


def interrupts_held() -> AbstractContextManager[None]:
    """While open, a Ctrl-C waits; it is delivered when the block ends, whether well or with an error.

    The same holds for SIGTERM and SIGALRM where Python code handles them; where the system does, they act at once. Only
    the main thread receives signals: in others, this does nothing. Blocks may be nested; the outermost delivers.
    """
    return _Held()


class _Held(AbstractContextManager[None]):
    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._received: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._handlers = {s: handler for s in _SIGNALS if callable(handler := signal.getsignal(s))}
        try:
            for number in self._handlers:
                signal.signal(number, self._receive)
        except BaseException:  # the handler of one that is not yet held
            self._put_back()
            raise

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append((number, frame))

    def _put_back(self) -> None:
        try:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        except BaseException:  # one that came when its own handler was back, and that of others was not
            self._put_back()
            raise

    def __exit__(self, *error: object) -> None:
        self._put_back()
        # Only now: what a handler raises would leave the others held.
        for number, frame in self._received:
            self._handlers[number](number, frame)
