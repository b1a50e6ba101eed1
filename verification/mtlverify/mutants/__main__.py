"""``python -m mtlverify.mutants [--seeds N] [--max-examples N]``: mutation score and false-alarm rate."""

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

    checks = inputs = 0
    alarms = []
    for seed, result in false_alarms(range(options.seeds), options.max_examples):
        checks, inputs = checks + 1, inputs + result.examples
        if result.status != "verified":
            alarms.append(result)
            print(f"ALARM    seed {seed}: {result}")
    print(
        f"false alarms {len(alarms)} in {checks:,} checks of correct twins ({inputs:,} inputs, {options.seeds} seeds); "
        f"{time.perf_counter() - started:.0f} s"
    )
    return 1 if score.survived or score.idle or alarms else 0


if __name__ == "__main__":
    sys.exit(main())
