"""What the committed ledger says, in a few lines: for ``mtl show``, also where there are no pages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtlverify.ledger.build import Row

FILE = Path(__file__).with_name("verdicts.json")
STATUSES = ("proved", "verified", "refuted")

Verdicts = dict[str, list[str]]
"""Each of STATUSES -> ids of laws."""


def of(rows: Iterable[Row]) -> dict[str, dict[str, Verdicts]]:
    """Kind -> name -> verdicts, of plugins with their default options."""
    out: dict[str, dict[str, Verdicts]] = {}
    for row in rows:
        if not row.options and row.status in STATUSES:
            mine = out.setdefault(row.kind, {}).setdefault(row.name, {status: [] for status in STATUSES})
            mine[row.status].append(row.law)
    return out


def write(rows: Iterable[Row], file: Path = FILE) -> None:
    """Keep them beside this module, where an installed package has them, too."""
    file.write_text(json.dumps(of(rows), indent=1) + "\n", encoding="utf-8")


def recorded(kind: str, name: str) -> Verdicts | None:
    """Of one plugin; None if the ledger does not know it."""
    known: dict[str, dict[str, Verdicts]] = json.loads(FILE.read_text(encoding="utf-8"))
    return known.get(kind, {}).get(name)
