"""``python -m mtlverify.mutants [--seeds N] [--max-examples N] [--jobs N]``: mutation score and false-alarm rate."""

from __future__ import annotations

import argparse
import sys
import time

import torch

from mtlverify.mutants.score import CATALOGUE, false_alarms, mutation_score


def main() -> int:
    """Exit 1 when a mutant survives, a law is idle, or a correct twin raises an alarm."""
    parser = argparse.ArgumentParser(prog="python -m mtlverify.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="seeds for the correct twins (nightly: 1000)")
    parser.add_argument("--max-examples", type=int, default=20, help="inputs per twin, law and seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes for the seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)

    started = time.perf_counter()
    score = mutation_score()
    for result in [*score.killed, *score.survived]:
        verdict = "killed  " if result in score.killed else "SURVIVED"
        print(f"{verdict} {result.kind:10} {result.name:24} by {result.law:26} after {result.examples:3} inputs")
    for law in score.idle:
        print(f"IDLE     no mutant is meant for law {law}")
    pairs = len(score.killed) + len(score.survived)
    print(f"mutation score {score.share:.1%}: {len(score.killed)} of {pairs} pairs, {len(CATALOGUE)} mutants")

    checks = inputs = alarms = 0
    # Not a progress bar that vanishes: a line per hundredth of the way, which a log keeps.
    stride = max(1, options.seeds // 100)
    for seed, results in false_alarms(range(options.seeds), options.max_examples, options.jobs):
        checks, inputs = checks + len(results), inputs + sum(r.examples for r in results)
        for result in results:
            if result.status != "verified":
                alarms += 1
                print(f"ALARM    seed {seed}: {result}", flush=True)
        if (seed + 1) % stride == 0:
            passed = time.perf_counter() - started
            print(f"{seed + 1}/{options.seeds} seeds, {alarms} alarms, {passed:.0f} s", file=sys.stderr, flush=True)
    print(
        f"false alarms {alarms} in {checks:,} checks of correct twins ({inputs:,} inputs, {options.seeds} seeds of "
        f"{options.max_examples} inputs per law); {time.perf_counter() - started:.0f} s"
    )
    return 1 if score.survived or score.idle or alarms else 0


if __name__ == "__main__":
    sys.exit(main())
