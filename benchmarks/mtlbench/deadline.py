"""A limit on the time of one run."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from mtlcore.hosting import interrupted_by_user

GRACE = 10.0
"""Seconds after which a worker that does not react (it hangs in native code) is ended."""


class Overtime(BaseException):
    """A run took longer than it may. Not an Exception, so that nothing in a plugin takes it for one of its own."""


@contextlib.contextmanager
def within(seconds: float | None, *, in_worker: bool) -> Iterator[None]:
    """Inside, :class:`Overtime` is raised after so many seconds, even where a plugin loops or sleeps.

    A worker process that hangs in native code is ended a little later, and the runner writes that down. Without workers
    native code is waited for; where the system has no timer (Windows), or not in the main thread, nothing is stopped.
    """
    if seconds is None:
        yield
        return
    with _alarm(seconds), _last_resort(seconds + GRACE) if in_worker else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    rung = False

    def ring(number: int, frame: Any) -> None:
        nonlocal rung
        rung = True
        raise Overtime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again every second: a bare `except:` may swallow the first
    try:
        yield
    except BaseException as error:
        if rung and not interrupted_by_user(error):
            raise Overtime from error  # whatever the code that it met has made of it
        raise
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        finally:  # it may ring just before it is off, and would ring on in whatever runs next
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _last_resort(seconds: float) -> Iterator[None]:
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
