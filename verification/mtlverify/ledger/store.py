"""Counterexamples on disk: one JSON file per method, one entry per refuted law."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtlcore.hosting import registry
from mtlverify.example import Example
from mtlverify.ledger.subjects import Subject
from mtlverify.runner import Result, replay

HOME = Path(__file__).parent / "counterexamples"


def path(subject: Subject, home: Path = HOME) -> Path:
    """Where the counterexamples of one method are."""
    return home / f"{subject.slug}.json"


def load(subject: Subject, home: Path = HOME) -> dict[str, dict[str, Any]]:
    """Law id -> {"law", "margin", "example"}, as ``mtlverify.replay`` takes it; empty if nothing is stored."""
    file = path(subject, home)
    if not file.exists():
        return {}
    stored: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["counterexamples"]
    return stored


def save(subject: Subject, counterexamples: dict[str, dict[str, Any]], home: Path = HOME) -> None:
    """Write, or remove the file if there is nothing to say. Stable: the same content gives the same bytes."""
    file = path(subject, home)
    if not counterexamples:
        file.unlink(missing_ok=True)
        return
    home.mkdir(parents=True, exist_ok=True)
    content = {
        "kind": subject.kind,
        "name": subject.name,
        "options": dict(subject.options),
        "counterexamples": dict(sorted(counterexamples.items())),
    }
    draft = file.with_suffix(".tmp")  # moved into place: another process may be reading the file
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def put(subject: Subject, law: str, counterexample: dict[str, Any] | None, home: Path = HOME) -> None:
    """Replace or remove what is stored about one law."""
    known = load(subject, home)
    changed = {id: value for id, value in known.items() if id != law}
    if counterexample is not None:
        changed[law] = counterexample
    if changed != known:
        save(subject, changed, home)


def stored_subjects(home: Path = HOME) -> list[Subject]:
    """Every method that has a file."""
    found = []
    for file in sorted(home.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        found.append(Subject(content["kind"], content["name"], tuple(content["options"].items())))
    return found


def example_of(counterexample: dict[str, Any]) -> Any:
    """The input of a stored counterexample."""
    law = registry().load("law", counterexample["law"])
    return (law.decode or Example.from_json)(counterexample["example"])


def replayed(subject: Subject, home: Path = HOME) -> list[tuple[str, Result]]:
    """Every stored counterexample of a method, measured again: (law id, "refuted" if it still is one)."""
    plugin = subject.make()
    return [(law, replay(plugin, stored)) for law, stored in load(subject, home).items()]
