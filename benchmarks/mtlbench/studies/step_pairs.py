"""What a metric does to each method of a suite, pair by pair.

    python -m mtlbench.studies.step_pairs FOLDER [--task rf1]

Reads records of `mtl bench run step` or `step-sgd`, compact or not. For each method, as published and in each metric:
the share of steps that harm a task, delta-m, and the difference that the metric makes on the same seeds, with its 95 %
interval (Student's t), p corrected by Holm over the pairs of a task, and the p of an equivalence test (two one-sided
t-tests against half a point).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mtlbench import records
from mtlbench.statistics import corrected, paired
from mtlbench.studies.equivalence import equivalence

METRICS = ("optimizer", "step")
Runs = Mapping[tuple[str, int], Any]


def table(folder: Path, task: str) -> Iterator[str]:
    """Markdown, line by line."""
    runs = {(r.method, r.seed): r for r in records.finished(folder / records.RECORDS).values() if r.task == task}
    runs = {key: r for key, r in runs.items() if r.seed >= 0 and r.delta_m is not None}
    names = sorted({m for m, _ in runs if "," not in m and m != "single-task"})
    pairs = {f"{m}, {metric}": m for m in names for metric in METRICS if any(k[0] == f"{m}, {metric}" for k in runs)}
    differences = {pair: _differences(runs, pair, m) for pair, m in pairs.items()}
    family = corrected({pair: paired([values]) for pair, values in differences.items()})
    yield "| method | harmed, % | delta-m | time of a step | rate | difference | p (Holm) | within half a point? |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in names:
        yield f"| `{name}` | {_facts(runs, name)} | | | |"
        for pair in (p for p, m in pairs.items() if m == name):
            d, values = family[pair], differences[pair]
            between = "" if d.difference.low is None else f" [{d.difference.low:.2f}, {d.difference.high:.2f}]"
            holm = "" if d.p_holm is None else f"{d.p_holm:.2f}"
            same = equivalence(values)
            verdict = "" if same is None else f"{'yes' if same < 0.05 else 'not shown'}, p = {same:.3f}"
            metric = pair.partition(", ")[2]
            shown = f"{d.difference.estimate:+.2f}{between}"
            yield f"| `{name}`, `{metric}` | {_facts(runs, pair)} | {shown} | {holm} | {verdict} |"


def _differences(runs: Runs, pair: str, method: str) -> list[float]:
    both = sorted(s for m, s in runs if m == pair and (method, s) in runs)
    return [runs[pair, s].delta_m - runs[method, s].delta_m for s in both]


def _facts(runs: Runs, name: str) -> str:
    own = [r for (m, _), r in runs.items() if m == name]
    harmed = [c for r in own if (c := r.conflict.get("steps_in_conflict")) is not None]
    ratios = [r.ratio_to_sum for r in own if r.ratio_to_sum is not None]
    rates = sorted({r.hyperparameters.budget.learning_rate for r in own})
    share = f"{100 * fmean(harmed):.1f}" if harmed else ""
    ratio = f"{fmean(ratios):.1f}" if ratios else ""
    return f"{share} | {fmean(r.delta_m for r in own):.2f} | {ratio} | {', '.join(f'{x:.2g}' for x in rates)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="records of a suite")
    parser.add_argument("--task", help="default: every task of the records")
    chosen = parser.parse_args(arguments)
    found = records.finished(chosen.folder / records.RECORDS).values()
    for task in [chosen.task] if chosen.task else sorted({r.task for r in found}):
        print(f"\n### {task}\n")
        print("\n".join(table(chosen.folder, task)))


if __name__ == "__main__":
    main()
