"""Raw records: one JSON line per finished run, written so that a crash can lose only the run in progress."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mtlbench.formats import Certificate, Manifest, Record, mistakes
from mtlcore.errors import ConfigurationError

RECORDS = "records.jsonl"
TRIALS = "trials.jsonl"


def append(path: Path, record: Mapping[str, Any]) -> None:
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


def read(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All records, in the order written, and of each line that is none where it is and why."""
    if not path.is_file():
        return [], []
    found: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=lambda name: None)  # other writers than plain() write NaN
            Record.model_validate(record)
        except ValidationError as error:
            unreadable.append(f"line {number}: {mistakes(error)}")
        except ValueError:
            unreadable.append(f"line {number}: torn, or no JSON")
        else:
            found.append(record)
    return found, unreadable


def manifest(path: Path) -> Manifest:
    """What is in a folder's suite.json; an empty one if it is not there.

    Raises:
        ConfigurationError: it is damaged, or not what such a file has.
    """
    found: Manifest = _content(path, Manifest)
    return found


def certificates(path: Path) -> dict[str, Certificate]:
    """What is in a folder's certificates.json, as :func:`manifest`."""
    found: dict[str, Certificate] = _content(path, dict[str, Certificate])
    return found


def _content(path: Path, shape: Any) -> Any:
    try:
        return TypeAdapter(shape).validate_python(json.loads(path.read_bytes()) if path.is_file() else {})
    except ValueError as error:  # a ValidationError is one
        why = mistakes(error) if isinstance(error, ValidationError) else error
        raise ConfigurationError(
            f"{path} is damaged ({why}). Delete it and run `mtl bench run` again with this folder: it is written anew, "
            "and no record is lost."
        ) from error


def key(record: Mapping[str, Any]) -> tuple[str, str, int, str]:
    """What a record is the result of: task, method, seed, and the hash of the configuration."""
    return (record["task"], record["method"], int(record["seed"]), record.get("config_hash", ""))


def finished(records: list[dict[str, Any]]) -> dict[tuple[str, str, int, str], dict[str, Any]]:
    """The last successful record of each run; failed ones are to be tried again."""
    return {key(r): r for r in records if r["status"] == "ok"}


def latest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per run and configuration: the successful one if there is one, else the last failure."""
    chosen: dict[tuple[str, str, int, str], dict[str, Any]] = {}
    for record in records:
        known = chosen.get(key(record))
        if known is None or known["status"] != "ok" or record["status"] == "ok":
            chosen[key(record)] = record
    return list(chosen.values())


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null, so that every reader can read the file."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return plain(value.item()) if hasattr(value, "item") and getattr(value, "size", 1) == 1 else str(value)
