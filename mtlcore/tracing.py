"""``MTLCORE_TRACE=1``: every call of a hook, through pluggy's tracing into the logger ``mtlcore.hooks``.

They go to standard error, and at level DEBUG to wherever a program sends what it logs. A program that gives that logger
a handler of its own decides alone.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import pluggy

from mtlcore.safety import one_line

LOGGER = logging.getLogger("mtlcore.hooks")


class _Stderr(logging.Handler):
    """Writes to what standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        print(f"mtlcore: {record.getMessage()}", file=sys.stderr)


def hook(manager: pluggy.PluginManager, name: str, arguments: Mapping[str, Any]) -> None:
    """Trace the call of a hook, if that is wanted."""
    if os.environ.get("MTLCORE_TRACE", "") in ("", "0"):
        return
    if not LOGGER.handlers:
        LOGGER.addHandler(_Stderr())
    LOGGER.setLevel(logging.DEBUG)
    manager.trace.root.setwriter(lambda line: LOGGER.debug("%s", line.strip()))
    manager.trace.root.get("hook")(f"{name}({', '.join(f'{k}={one_line(v, 60)}' for k, v in arguments.items())})")
