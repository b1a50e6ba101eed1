"""One process fails: all do, with an error that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mtlcore import errors
from mtlcore.errors import MtlError, NonFiniteError, ProcessError
from mtlcore.safety import described


@dataclasses.dataclass(frozen=True)
class Failure:
    """What one process tells the others of its error.

    Args:
        kind: name of the error's class.
        text: what it says.
    """

    kind: str
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Of any error, whatever its text raises."""
        return cls(type(error).__name__, str(error) if isinstance(error, MtlError) else described(error))


def combined(failures: Sequence[Failure | None], rank: int, mine: BaseException | None) -> BaseException:
    """What this process raises.

    Args:
        failures: of all processes, None for those that are well.
        rank: of this process.
        mine: its own error.

    Returns:
        Its own error, where that is no error of mtlcore's (it has a traceback that the user needs). Else one of the
        class that the first failure has (NonFiniteError only if all have), with every process's text.
    """
    said = [f"process {r}: {f.text}" for r, f in enumerate(failures) if f is not None]
    if mine is not None and not isinstance(mine, MtlError):
        mine.add_note(
            f"mtlcore: this is process {rank} of {len(failures)}; the others were told, and stop too."
        ) if hasattr(mine, "add_note") else None
        return mine
    kinds = [_class(f.kind) for f in failures if f is not None]
    grave = [k for k in kinds if k is not NonFiniteError]
    error = (grave or kinds)[0](_each_once(said))
    error.__cause__ = mine
    return error


def _class(name: str) -> type[MtlError]:
    found = getattr(errors, name, None)
    known = isinstance(found, type) and issubclass(found, MtlError) and found is not errors.MissingExtraError
    return found if known and found is not None else ProcessError


def _each_once(said: Sequence[str]) -> str:
    """Many processes with one complaint are one line."""
    by_text: dict[str, list[str]] = {}
    for line in said:
        who, text = line.split(": ", 1)
        by_text.setdefault(text, []).append(who.removeprefix("process "))
    return "\n".join(f"process{'es' if len(w) > 1 else ''} {', '.join(w)}: {text}" for text, w in by_text.items())
