"""One run at a time in a folder of records."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from mtlbench import records
from mtlcore.errors import ConfigurationError

LOCK = "run.lock"
HOLDER = "run.holder"
"""Says who holds the lock; also what a killed run leaves behind."""


@contextlib.contextmanager
def alone_in(folder: Path, console: Console) -> Iterator[None]:
    """Two runs at once would repeat each other's work and mix their records.

    The system itself lets go of the lock when a process ends, however it ends; what the files say is for people only.

    Raises:
        ConfigurationError: another run is at work in the folder, or the lock cannot be written.
    """
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    with records.writing(folder / LOCK):
        try:
            lock.acquire(blocking=False)
        except (Timeout, NotImplementedError) as error:  # a Timeout is an OSError, but not one of writing
            raise ConfigurationError(_refusal(folder, error)) from None
    try:
        if holder.exists():
            console.print(
                "[yellow]taken over[/] from a run that was killed, or that a method took down; --jobs 2 goes on where "
                "a method does that, and says which"
            )
        with records.writing(holder):
            holder.write_text(f"{os.getpid()} {platform.node()}", encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)
    finally:
        lock.release()


def _refusal(folder: Path, error: Exception) -> str:
    if not isinstance(error, Timeout):
        return f"the file system of {str(folder)!r} cannot lock files. Give an --out on another one."
    with contextlib.suppress(OSError):
        who = (folder / HOLDER).read_bytes()[:200].decode("ascii", "replace").strip()
        shown = "".join(c if c.isprintable() else "?" for c in who) or "?"
        return (
            f"another run is at work in {str(folder)!r} (process and machine: {shown}). Wait for it, or give another "
            "--out."
        )
    return f"another run is at work in {str(folder)!r}. Wait for it, or give another --out."
