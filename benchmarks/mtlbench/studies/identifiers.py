"""Which measures of conflict order the methods as their results do, in a folder of records, as a table in Markdown.

    python -m mtlbench.studies.identifiers benchmarks/results/identifiers

The numbers are those of the report (:mod:`mtlbench.report.identifiers`): ranking similarities over the methods, between
the mean of an identifier during training and mean delta-m on the test part.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mtlbench.report.identifiers import TITLES
from mtlbench.report.summary import report

CLEAR = 0.05
"""A p-value below it, after Holm's correction within the task, gets a star."""


def table(folder: Path) -> str:
    """One row per identifier, one column per task; a dash where a task has none."""
    tasks = [t for t in report(folder).tasks if t.identifiers]
    count = {t.name: max(i.methods for i in t.identifiers) for t in tasks}
    out = ["| identifier | " + " | ".join(f"{t.name} ({count[t.name]} methods)" for t in tasks) + " |"]
    out.append("|---" * (len(tasks) + 1) + "|")
    for name, (title, _) in TITLES.items():
        cells = []
        for task in tasks:
            row = next((i for i in task.identifiers if i.name == name and i.similarity is not None), None)
            if row is None or row.similarity is None:
                cells.append("–")
            else:
                few = "" if row.methods == count[task.name] else f" ({row.methods})"
                cells.append(f"{row.similarity:+.2f}{'*' if (row.p_holm or 0.0) < CLEAR else ''}{few}")
        if any(cell != "–" for cell in cells):
            out.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the records")
    print(table(parser.parse_args(arguments).folder))


if __name__ == "__main__":
    main()
