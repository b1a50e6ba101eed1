"""Raw records: one JSON line per finished run, written so that a crash can lose only the run in progress."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from mtlbench.formats import Certificate, Key, Manifest, Record, mistakes
from mtlcore.errors import ConfigurationError

RECORDS = "records.jsonl"
TRIALS = "trials.jsonl"
MANIFEST = "suite.json"
CERTIFICATES = "certificates.json"
T = TypeVar("T")
_RECORD, _MANIFEST, _CERTIFICATES = TypeAdapter(Record), TypeAdapter(Manifest), TypeAdapter(dict[str, Certificate])


def append(path: Path, record: Record | Mapping[str, Any]) -> None:
    """Add one line and force it to disk. A torn last line, left by a crash, is closed first so that it harms only
    itself.

    Raises:
        ConfigurationError: it cannot be written, for instance because the disk is full.
    """
    line = (json.dumps(plain(record), allow_nan=False) + "\n").encode()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line
            while line:
                line = line[os.write(handle, line) :]
            os.fsync(handle)
        finally:
            os.close(handle)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """What :func:`append` has written where no form of a record is asked for; a line that a crash has torn is left
    out."""
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(text)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says when a file cannot be written becomes an error of ours."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}. See to that and run the same command again; what is already "
            f"in {path.parent} is not lost."
        ) from error


def replace(path: Path, content: Any) -> None:
    """Replace the file in one step, so that it is never half written."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with scratch.open("w", encoding="utf-8") as file:
                json.dump(plain(content), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


class Line(NamedTuple):
    """One line of a file of records: where it is, and what it is or why it is none."""

    offset: int
    record: Record | None
    problem: str = ""


def scan(path: Path) -> Iterator[Line]:
    """The lines that are not empty, one after the other: a file may be larger than memory."""
    if not path.is_file():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield Line(offset, _record(line))
                except ValueError as error:
                    yield Line(offset, None, f"line {number}: {_why(error)}")
            offset += len(line)


def read(path: Path) -> tuple[list[Record], list[str]]:
    """All records, in the order written, and of each line that is none where it is and why."""
    lines = list(scan(path))
    return [x.record for x in lines if x.record is not None], [x.problem for x in lines if x.record is None]


def read_at(path: Path, offsets: Iterable[int]) -> Iterator[Record]:
    """The records that begin at these places, which :func:`scan` has found."""
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield _record(file.readline())


def finished(path: Path) -> dict[Key, Record]:
    """The last successful record of each run, without its curves; failed ones are to be tried again."""
    found = (line.record for line in scan(path))
    return {r.key: r.model_copy(update={"curves": None}) for r in found if r is not None and r.ok}


def _record(line: bytes) -> Record:
    return _parsed(line, _RECORD)


def _parsed(content: bytes, shape: TypeAdapter[T]) -> T:
    """Raises ValueError, of which ValidationError is one."""
    try:
        return shape.validate_json(content)
    except ValidationError:
        mended = _HALVES.sub(lambda m: b"\\" + m[0] if m["half"] else m[0], content)
        if mended == content:
            raise
        return shape.validate_json(mended)


_HALVES = re.compile(rb"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>\\u[dD][89a-fA-F]..)")
"""Half of a surrogate pair, which other writers let through (in an error, say), becomes its escape."""


def _why(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return "torn, or no JSON"
    (first, *_) = error.errors()
    if first["type"] != "json_invalid":
        return mistakes(error)
    return "nested too deeply" if "recursion" in first["msg"] else "torn, or no JSON"


def manifest(path: Path) -> Manifest:
    """What is in a folder's suite.json; an empty one if it is not there.

    Raises:
        ConfigurationError: it is damaged, or not what such a file has.
    """
    return _content(path, _MANIFEST)


def certificates(path: Path) -> dict[str, Certificate]:
    """What is in a folder's certificates.json, as :func:`manifest`."""
    return _content(path, _CERTIFICATES)


def _content(path: Path, shape: TypeAdapter[T]) -> T:
    try:
        return _parsed(path.read_bytes() if path.is_file() else b"{}", shape)
    except ValueError as error:
        why = mistakes(error) if isinstance(error, ValidationError) else error
        raise ConfigurationError(
            f"{path} is damaged ({why}). Delete it and run `mtl bench run` again with this folder: it is written "
            "again, and no record is lost."
        ) from error


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null, so that every reader can read the file."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, BaseModel):
        return plain(value.model_dump(exclude_unset=True))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return plain(value.item()) if hasattr(value, "item") and getattr(value, "size", 1) == 1 else str(value)
