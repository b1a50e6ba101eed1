"""What comes out of a plugin, made harmless: what it raises, what it says, how long it takes.

A plugin is somebody else's code. It may raise anything (``SystemExit`` and ``KeyboardInterrupt`` too), its objects may
raise when they are printed, and its texts may hold what a terminal would obey. Whoever calls a plugin writes::

    try:
        answer = method.aggregate(view, state)
    except BaseException as error:
        raise PluginError(f"aggregator {name} raised {blame(error)}") from error

Nothing here imports torch.
"""

from __future__ import annotations

import dis
import signal
import types
import unicodedata
from typing import Any

TEXT = 2000
"""Characters of a plugin's text that are shown; what it says beyond is counted."""
VALUE = 200
"""Characters of the repr of one of its objects."""

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that are not shown as they are: controls, directions of writing, halves of a pair, unassigned."""
_RAISE = dis.opmap["RAISE_VARARGS"]


def plain(text: Any, limit: int = TEXT) -> str:
    """``str(text)`` as a terminal, a page or a JSON file may have it: no escape sequence, no surrogate, not too long.

    Line breaks stay, tabs become a blank, and every other character that is not meant to be seen is written out, such
    as ``\\x1b``. Never raises, whatever the object does.
    """
    return _shortened(_text_of(str, text), limit)


def shown(value: Any, limit: int = VALUE) -> str:
    """``repr(value)`` in one line, in the same way."""
    return " ".join(_shortened(_text_of(repr, value), limit).split("\n"))


def one_line(text: Any, limit: int = TEXT) -> str:
    """:func:`plain` with every run of white space as one blank: for a cell of a table, or a line of a log."""
    return " ".join(plain(text, limit).split())


def type_name(value: Any) -> str:
    """Name of the object's class, whatever its metaclass says."""
    return plain(type.__dict__["__name__"].__get__(type(value)), VALUE)


def described(error: BaseException) -> str:
    """Type and text of an exception, harmless: "ValueError: no such thing"."""
    if isinstance(error, SystemExit):
        return f"SystemExit: it called sys.exit({shown(error.code)})"
    text = plain(error).strip()
    return f"{type_name(error)}: {text}" if text else type_name(error)


def blame(error: BaseException) -> str:
    """:func:`described`, for an ``except BaseException`` around a plugin: the user's own Ctrl-C is raised again.

    Raises:
        KeyboardInterrupt: ``error`` itself, if the user (and not the plugin's code) interrupted the process.
    """
    if interrupted_by_user(error):
        raise error
    return described(error)


def interrupted_by_user(error: BaseException) -> bool:
    """Whether this is a Ctrl-C, and not a ``raise KeyboardInterrupt`` in a plugin's code.

    A signal arrives between two instructions of Python, or in a call. Its exception never comes from a ``raise``
    statement, except that of the installed signal handler. Code that catches a Ctrl-C and raises another passes it on.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, KeyboardInterrupt) and type(found) is KeyboardInterrupt and _by_signal(found):
            return isinstance(error, KeyboardInterrupt)
        found = found.__cause__ or found.__context__
    return False


def _by_signal(error: KeyboardInterrupt) -> bool:
    handler = _code_of(signal.getsignal(signal.SIGINT))
    last = error.__traceback__
    while last is not None:
        if handler is not None and last.tb_frame.f_code is handler:
            return True
        if last.tb_next is None:
            return last.tb_frame.f_code.co_code[last.tb_lasti] != _RAISE
        last = last.tb_next
    return False


def _code_of(handler: Any) -> types.CodeType | None:
    """Of a signal handler that is written in Python: a function, a method, or a partial of one."""
    while hasattr(handler, "func"):
        handler = handler.func
    return getattr(getattr(handler, "__func__", handler), "__code__", None)


def _text_of(way: Any, value: Any) -> str:
    try:
        # An exact str: a subclass may do as it likes in every method.
        return str.__getitem__(way(value), slice(None))
    except BaseException as error:
        if interrupted_by_user(error):
            raise
        return f"<{type_name(value)}: its __{way.__name__}__ raised {type_name(error)}>"


def _shortened(text: str, limit: int) -> str:
    more = len(text) - limit
    # Twice the rest of a text is never needed: it is cut before it is looked at, however long it is.
    text = text[:limit] + (f"... ({more} more characters)" if more > 0 else "")
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text.replace("\r\n", "\n")))


def _visible(character: str) -> str:
    if character in "\n\t":
        return "\n" if character == "\n" else " "
    if unicodedata.category(character) not in _UNSEEN:
        return character
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
