"""What studies share that keep one JSON line per measurement: the command, what is there already, a cell of a table."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mtlbench import records
from mtlbench import statistics as stats


@dataclasses.dataclass
class Study:
    """A study as its command was called.

    Args:
        seeds: how many are wanted.
        file: where the lines are.
        lines: those that are there; :meth:`add` appends.
    """

    seeds: int
    file: Path
    lines: list[dict[str, Any]]

    def add(self, made: Iterable[dict[str, Any]]) -> None:
        """Write these lines, and keep them."""
        for line in made:
            records.append(self.file, line)
            self.lines.append(line)


def called(about: str | None, folder: str, arguments: Sequence[str] | None = None) -> Study:
    """The study that the command line asks for.

    Args:
        about: the docstring of the study's module.
        folder: where its lines are by default.
        arguments: of the command line; None: those of this process.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds; what is there is not done again")
    parser.add_argument("--out", type=Path, default=Path(folder), help="folder of the lines")
    wanted = parser.parse_args(arguments)
    file = wanted.out / "records.jsonl"
    return Study(wanted.seeds, file, list(records.lines(file)))


def span(values: Sequence[float]) -> str:
    """The mean with half of its 95 % interval over the seeds; alone where there is one seed."""
    found = stats.interval([values])
    half = math.nan if found.high is None else found.high - found.estimate
    return f"{found.estimate:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")
