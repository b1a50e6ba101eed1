"""One call of a run at a time: a step shares buffers and counters with no other."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from mtlcore.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")


class Turn:
    """Whose turn it is. A copy begins with nobody's."""

    def __init__(self) -> None:
        self.taken = threading.Lock()
        self.thread = 0

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


def alone(method: Callable[P, T]) -> Callable[P, T]:
    """Of a ``MultiTask``: refuses to begin while another call of it runs.

    Raises:
        ConfigurationError: in another thread, or in this one (inside a closure or a hook).
    """

    @functools.wraps(method)
    def single(*args: P.args, **options: P.kwargs) -> T:
        turn: Any = args[0]._run.turn  # type: ignore[attr-defined]
        if turn.taken.locked():
            mine = turn.thread == threading.get_ident()
            where = "inside another call of it (in a closure or a hook)"
            where = where if mine else "while another thread is inside a call of it"
            raise ConfigurationError(
                f"{method.__name__} of a MultiTask was called {where}: a step is one call at a time. Take one step "
                f"after the other, or give each thread a MultiTask and a network of its own."
            )
        # Two threads that come here at once take turns. An interrupt cannot come between taking a lock and the block.
        with turn.taken:
            turn.thread = threading.get_ident()
            return method(*args, **options)

    return single
