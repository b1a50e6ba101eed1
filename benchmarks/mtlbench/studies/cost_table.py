"""All that the study of COST found, in tables.

    python -m mtlbench.studies.cost_table FOLDER
    python -m mtlbench.studies.cost_table FOLDER --arm exact

A table for each task, with a row for each arm and a column for each base method; or, of one arm, a row for each task.
A cell has the mean difference from the base alone on the same seeds in percent (lower is better) with its 95 %
interval; "=" where it is shown to be within half a point (two one-sided t-tests, p < 0.05), "≤" where only one of them
says so: it is shown to be no worse by half a point; "*" where it differs from zero after Holm's correction, over the
arms of a task and base, or over all cells of the table of one arm; and in brackets the number of runs and how many
teleports a run kept. "no teleport": the arm made none in any run, so that nothing was to be tested.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mtlbench.statistics import Comparison, corrected, paired
from mtlbench.studies.cost import BASES, Rows, finished, moves, scores
from mtlbench.studies.cost_arms import ARMS
from mtlbench.studies.cost_problem import NAME
from mtlbench.studies.equivalence import equivalence, not_worse

FEWEST = 3
"""An arm with fewer runs in a column is left out there: there is no interval to speak of."""

Key = tuple[str, int, str, str]
"""Task, steps, base, arm."""


def differences(rows: Rows) -> dict[Key, list[float]]:
    """Of every arm with enough runs, seed by seed, in percent."""
    return {
        (task, steps, base, arm): values
        for (task, base, steps), arms in scores(rows).items()
        for arm, values in arms.items()
        if len(values) >= FEWEST
    }


def by_task(rows: Rows) -> Iterator[str]:
    """Markdown, line by line: a table for each task."""
    found = differences(rows)
    for task, steps in dict.fromkeys(key[:2] for key in found):
        bases = [b for b in BASES if any(key[:3] == (task, steps, b) for key in found)]
        cells: dict[str, dict[str, str]] = {arm: {} for arm in ARMS}
        for base in bases:
            family = {key: values for key, values in found.items() if key[:3] == (task, steps, base)}
            for key, text in _texts(rows, family).items():
                cells[key[3]][base] = text
        yield f"\n**{task}**, {steps} steps\n"
        yield from _grid("arm", bases, cells)


def by_arm(rows: Rows, arm: str) -> Iterator[str]:
    """Markdown, line by line: one arm on all tasks but the constructed problem, which is made to differ."""
    found = differences(rows)
    family = {key: values for key, values in found.items() if key[3] == arm and not key[0].startswith(NAME)}
    cells: dict[str, dict[str, str]] = {}
    for (task, steps, base, _), text in _texts(rows, family).items():
        cells.setdefault(f"{task}, {steps} steps", {})[base] = text
    yield from _grid("task", [b for b in BASES if any(key[2] == b for key in family)], cells)


def _texts(rows: Rows, family: Mapping[Key, Sequence[float]]) -> dict[Key, str]:
    """What was found; the keys of arms that did something are one family of hypotheses."""
    did = {key: moves(rows, key[0], key[2], key[3], key[1]) for key in family}
    tested = corrected({key: paired([values]) for key, values in family.items() if did[key].changed})
    return {
        key: _text(values, tested[key], did[key].kept) if did[key].changed else f"no teleport ({len(values)})"
        for key, values in family.items()
    }


def _text(values: Sequence[float], found: Comparison, kept: float) -> str:
    d, same, harmless = found.difference, equivalence(values), not_worse(values)
    marks = "=" if same is not None and same < 0.05 else "≤" if harmless is not None and harmless < 0.05 else ""
    marks += "\\*" if found.p_holm is not None and found.p_holm < 0.05 else ""
    what = f"{d.estimate:+.2f} [{d.low:.2f}, {d.high:.2f}] {marks}".rstrip()
    return f"{what} ({d.n}, {kept:.1f})".replace("-", "−")


def _grid(corner: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    yield f"| {corner} | " + " | ".join(f"`{c}`" for c in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, row in rows.items():
        if row:
            yield f"| {name} | " + " | ".join(row.get(c, "") for c in columns) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="records of the study")
    parser.add_argument("--arm", choices=tuple(ARMS), help="only this one, on all tasks")
    chosen = parser.parse_args(arguments)
    rows = finished(chosen.folder / "runs.jsonl")
    print("\n".join(by_task(rows) if chosen.arm is None else by_arm(rows, chosen.arm)))


if __name__ == "__main__":
    main()
