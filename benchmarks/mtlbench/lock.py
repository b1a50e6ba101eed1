"""One run at a time in a folder of records."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console

from mtlbench import records
from mtlcore.errors import ConfigurationError

LOCK = "run.lock"


@contextlib.contextmanager
def alone_in(folder: Path, console: Console) -> Iterator[None]:
    """Two runs at once would repeat each other's work and mix their records. What a killed run left is taken over."""
    path = folder / LOCK
    try:
        with records.writing(path):
            file: TextIO = path.open("x", encoding="utf-8")
    except ConfigurationError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        file = _taken_over(path)
        console.print(
            "[yellow]taken over[/] from a run that was killed, or that a method took down; --jobs 2 goes on where a "
            "method does that, and says which"
        )
    with file:
        file.write(f"{os.getpid()} {platform.node()}")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _taken_over(path: Path) -> TextIO:
    """The lock of a run that is no more, emptied. Of several runs that find it, one gets it.

    Raises:
        ConfigurationError: the lock is another run's.
    """
    with records.writing(path):
        held = ConfigurationError(
            f"another run is at work in {str(path.parent)!r} (process and machine: {path.read_text().strip() or '?'}). "
            f"Wait for it, or give another --out; if there is none, delete {path}."
        )
        if _is_held(path):
            raise held from None
        import fcntl  # not on every system; where it is not, every lock is held

        file = path.open("r+", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        if _is_held(path):  # by one who was quicker
            file.close()
            raise held from None
        file.truncate()
    return file


def _is_held(path: Path) -> bool:
    """Whether the process that wrote a lock may still be there. This process itself holds none: an equal number is that
    of one before it, in a container that starts counting anew."""
    process, _, machine = path.read_text(encoding="utf-8").partition(" ")
    if machine != platform.node() or os.name == "nt":  # signal 0 is Ctrl-C there
        return True
    with contextlib.suppress(PermissionError):
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return False
    return int(process) != os.getpid()
