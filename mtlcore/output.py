"""What a command prints: tables that cut nothing off, and a standard output that is the command's alone.

Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from mtlcore.errors import ConfigurationError
from mtlcore.safety import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


_LONG = 50_000
"""Characters of a cell: a counterexample is shown whole."""


@contextlib.contextmanager
def own_stdout() -> Iterator[TextIO]:
    """Inside, whatever anybody prints goes to standard error; what is written to the stream goes to standard output.

    Plugins print where they like: when they are imported, from C, from a process that they start. A line of theirs
    would make JSON unreadable.
    """
    real = sys.stdout
    try:
        number = real.fileno()
    except (OSError, ValueError, AttributeError, io.UnsupportedOperation):  # a test's buffer, a notebook
        with contextlib.redirect_stdout(sys.stderr):
            yield real
        return
    real.flush()
    kept = os.dup(number)
    with os.fdopen(os.dup(number), "w", encoding="utf-8", errors="backslashreplace") as stream:
        os.dup2(2, number)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield stream
        finally:
            stream.flush()
            with contextlib.suppress(OSError, ValueError):
                real.flush()  # what a plugin has left in its buffer goes to standard error, too
            os.dup2(kept, number)
            os.close(kept)


def give_up_stdout() -> None:
    """At the end of a command: what plugins print while Python shuts down goes to standard error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        os.dup2(2, sys.stdout.fileno())


def check_writable(file: Path | None) -> None:
    """Before the work that is to be written there; what is in it stays. None and "-" (standard output) are.

    Raises:
        ConfigurationError: it cannot be written to.
    """
    if to_stdout(file) or file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        raise ConfigurationError(f"{str(file)!r} cannot be written to: {error.strerror}.") from error


def to_stdout(file: Path | None) -> bool:
    """Whether ``--json -`` was given: then standard output is for JSON alone."""
    return file is not None and str(file) == "-"


def as_json(value: Any) -> str:
    """JSON in ASCII, so that every terminal, pipe and encoding can carry it."""
    return json.dumps(value, indent=2, default=plain) + "\n"


def console() -> Console:
    """As wide as the terminal. A file or a pipe has no width of its own, and who searches it wants one line a row."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(width=1000, highlight=False)


def table(*columns: str, right: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Table:
    """A table whose cells are folded, never cut off; ``whole`` columns stay in one line."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Any = "right" if column in right else "left"
        made.add_column(column, justify=justify, no_wrap=column in whole, overflow="fold")
    return made


_HEADINGS = ("Args:", "Attributes:", "Returns:", "Raises:")
_ROLE = re.compile(r":(?:mod|class|func|meth|data):`~?\.?([^`]*)`")
_ITEM = re.compile(r"(?:[-*]|\d+\.) ")


class _Line(NamedTuple):
    indent: str
    hanging: str  # of the lines that it is folded into
    words: str
    fixed: bool  # a heading, a blank line, or a formula: nothing joins it


def prose(text: str, width: int) -> str:
    """A docstring for a terminal of that width: paragraphs and items are filled, formulas keep their lines.

    A formula is indented text, except for the items below a heading such as "Args:".
    """
    lines: list[_Line] = []
    section = False
    for line in _ROLE.sub(r"\1", text.replace("``", "")).splitlines():
        words, indent = line.strip(), line[: len(line) - len(line.lstrip())]
        if words and not indent:
            section = words in _HEADINGS
        item = bool(_ITEM.match(words)) or (section and len(indent) == 4)
        last = lines[-1] if lines else None
        if not words or words in _HEADINGS:
            lines.append(_Line(indent, indent, words, fixed=True))
        elif last is not None and not last.fixed and not item and indent == last.hanging:
            lines[-1] = last._replace(words=f"{last.words} {words}")
        else:
            more = ("    " if section else "  ") if item else ""
            lines.append(_Line(indent, indent + more, words, fixed=not (item or section) and len(indent) >= 4))
    return "\n".join(
        line.indent + line.words if line.fixed else textwrap.fill(
            line.words, width, initial_indent=line.indent, subsequent_indent=line.hanging, break_on_hyphens=False)
        for line in lines
    )  # fmt: skip


def cell(text: Any, style: str = "") -> Text:
    """A text that came from elsewhere, without markup and without what a terminal would obey."""
    from rich.text import Text

    return Text(plain(text, _LONG), style=style)
