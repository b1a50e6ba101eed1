"""How long a plugin may take, and who is waited for.

``with waiting("plugin 'x' of distribution 'y 1.0'"):`` stands around every call of a plugin's code that happens while
plugins are looked up. By itself it costs next to nothing. A command turns it on: :func:`tell` says on standard error
after five seconds who is waited for, and where ``MTLCORE_TIMEOUT`` is set, a plugin that takes longer than so many
seconds is interrupted by :class:`TookTooLong`.

Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

VARIABLE = "MTLCORE_TIMEOUT"
"""Environment variable: seconds that one plugin may take to be imported or to register. Worker processes inherit it."""
PATIENCE = 5.0
"""Seconds until a command says who it is waiting for."""
GRACE = 3.0
"""Seconds after the end of its time until a process is ended whose plugin cannot be interrupted."""


class TookTooLong(BaseException):
    """Raised in the code of a plugin whose time is over. No Exception, so that the plugin lets it pass."""


_waits: list[tuple[str, float]] = []
"""Who is waited for, the innermost last, each with the time since when."""


@contextlib.contextmanager
def waiting(who: str) -> Iterator[None]:
    """Inside, ``who`` is waited for; where a time is set, at most so long.

    Raises:
        TookTooLong: inside the block.
    """
    _waits.append((who, time.monotonic()))
    try:
        with limited(allowed()):
            yield
    finally:
        _waits.pop()


def allowed() -> float | None:
    """The seconds that are set, or None."""
    try:
        seconds = float(os.environ.get(VARIABLE, ""))
    except ValueError:
        return None
    return seconds if seconds > 0 else None


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Interrupt the block after so many seconds by a :class:`TookTooLong`, again every half second until it ends.

    It needs the signals of Unix and the main thread; elsewhere, and with None, nothing is limited. What does not return
    to Python cannot be interrupted: a command then ends the process (see :func:`tell`), a pool its worker.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def over(number: int, frame: Any) -> None:
        raise TookTooLong(f"it took longer than {seconds:g} s and was stopped")

    before = signal.signal(signal.SIGALRM, over)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    began = time.monotonic()
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # the last alarm may have come just before
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        if left > 0:  # the time of whoever is waited for around this one goes on
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), 0.5)


def tell(say: Callable[[str], None] | None = None) -> None:
    """From now on, say who is waited for. Ends the process, with exit code 2, where a plugin cannot be interrupted."""
    threading.Thread(target=_watch, args=(say or _to_stderr,), daemon=True).start()


def _to_stderr(text: str) -> None:
    print(f"mtl: {text}", file=sys.__stderr__, flush=True)


def _watch(say: Callable[[str], None]) -> None:
    told: tuple[str, float] | None = None
    while True:
        time.sleep(0.25)
        wait = _waits[-1] if _waits else None
        if wait is None:
            continue
        seconds, limit = time.monotonic() - wait[1], allowed()
        if seconds >= PATIENCE and wait != told:
            told = wait
            way_out = "" if limit else f"; {VARIABLE}=S would go on without it after S seconds"
            say(f"waiting for {wait[0]} ({seconds:.0f} s so far){way_out}")
        if limit is not None and seconds > limit + GRACE:
            say(
                f"{wait[0]} took longer than {limit:g} s and cannot be stopped; uninstall it, or leave it out with "
                "MTLCORE_PLUGINS"
            )
            os._exit(2)
