"""All that the study of COST found, in one table.

    python -m mtlbench.studies.cost_table FOLDER

A row for each arm, a column for each task and base method: the mean difference from the base alone on the same seeds in
percent (lower is better) with its 95 % interval; "=" where it is shown to be within half a point (two one-sided
t-tests, p < 0.05), "*" where it differs from zero after Holm's correction over the arms of the column; and in brackets
the number of runs and how many teleports a run kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtlbench.statistics import corrected, paired
from mtlbench.studies.cost import moved, scores
from mtlbench.studies.cost_arms import ARMS
from mtlbench.studies.equivalence import equivalence

FEWEST = 3
"""An arm with fewer runs in a column is left out there: there is no interval to speak of."""


def table(folder: Path) -> Iterator[str]:
    """Markdown, line by line."""
    file = folder / "runs.jsonl"
    columns = scores(file)
    cells: dict[str, dict[tuple[str, str, int], str]] = {}
    for column, arms in columns.items():
        enough = {arm: values for arm, values in arms.items() if len(values) >= FEWEST}
        family = corrected({arm: paired([values]) for arm, values in enough.items()})
        for arm, found in family.items():
            d, same = found.difference, equivalence(enough[arm])
            marks = "=" if same is not None and same < 0.05 else ""
            marks += "\\*" if found.p_holm is not None and found.p_holm < 0.05 else ""
            what = f"{d.estimate:+.2f} [{d.low:.2f}, {d.high:.2f}] {marks}".rstrip()
            what = what if any(enough[arm]) else "same runs"
            kept = moved(file, column[0], column[1], arm, column[2])[1]
            cells.setdefault(arm, {})[column] = f"{what} ({d.n}, {kept:.1f})".replace("-", "−")
    used = [c for c in columns if any(c in row for row in cells.values())]
    yield "| arm | " + " | ".join(f"{task}, `{base}`" for task, base, _ in used) + " |"
    yield "|---" * (len(used) + 1) + "|"
    for arm in (a for a in ARMS if a in cells):
        yield f"| {arm} | " + " | ".join(cells[arm].get(c, "") for c in used) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="records of the study")
    print("\n".join(table(parser.parse_args(arguments).folder)))


if __name__ == "__main__":
    main()
