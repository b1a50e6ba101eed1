"""The page about the architecture names files and functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
ROOMS = (ROOT / "mtlcore", ROOT / "verification" / "mtlverify")
WALKS = re.findall(r"^\*\*The walk of a \w+\*\*.*?(?=^\*\*|^Nothing)", TEXT, re.MULTILINE | re.DOTALL)
NAMES = sorted({name for walk in WALKS for name in re.findall(r"`([\w.]+\.\w+)`", walk) if not name.startswith("mtl")})


def _definitions() -> set[tuple[str, ...]]:
    """(package, ..., module, [class,] name) of every function, class and method of the two rooms."""
    found = set()
    for room in ROOMS:
        for path in room.rglob("*.py"):
            place = path.relative_to(room.parent).with_suffix("").parts
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                name = getattr(node, "name", None)
                found.add((*place, name))
                if isinstance(node, ast.ClassDef):
                    found |= {(*place, name, part.name) for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


DEFINED = _definitions()


def test_both_walks_are_found():
    assert len(WALKS) == 2
    assert len(NAMES) > 15


@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_a_walk_exists(name):
    """Named by the end of its path: `rule.preferences` is mtlcore.gradients.rule.preferences."""
    wanted = tuple(name.split("."))
    assert any(full[-len(wanted) :] == wanted for full in DEFINED if None not in full), f"{name} is not defined"


def test_every_file_of_the_table_exists_and_every_module_is_in_it():
    rows = re.findall(r"^\| (`[^|]+`) \|", TEXT, re.MULTILINE)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+(?:\.py)?)`", row)}
    there = {p.name for p in ROOMS[0].iterdir() if not p.name.startswith("_") and p.name != "py.typed"}
    assert named - there == set(), "in the table, and not there"
    assert there - named == set(), "there, and not in the table"
