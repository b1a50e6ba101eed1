"""What a step of two processes costs: the method of the global batch, against what there is without it.

    mtl speed distributed [--out build/speed] [--rounds 15] [--tasks 2 11 40] [--width 512]

Two gloo processes on this machine, one thread each, with half of a batch of 128 each; an MLP of three layers, UPGrad.

* one process, whole batch: the step that the others are to equal.
* DDP, plain sum: DistributedDataParallel and the sum of the losses, no method.
* all rows summed: a backward pass per task, each row all-reduced, the method on every process.
* shares of columns: mtlcore, rows reduce-scattered, each process with a share of the columns.
* at the features: mtlcore with ``gradients="features"``, whose Gramian is that of the features.
* shares, bfloat16: the same as shares, with rows and direction sent as bfloat16.
* losses: mtlcore with a method that reads losses only.
* shares by hand, and overlapped: nothing but passes and exchanges, one per row; overlapped, a row is under way while
  the next one is made. Their ratio is what overlapping could save at most.

Bytes are what the system counts on this process's TCP connections during a step. Times are wall times until the slower
process is done; ratios are taken within each round, and the median over the rounds is shown. On a busy machine only the
ratios mean anything. Then a model: latency and time per byte of this machine's connection, measured, and what they give
for R = 2 .. 1024. Prints tables and writes distributed.json.
"""

from __future__ import annotations

import argparse
import json
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from mtlbench.speed import processes, wire

_ANSWER = "answer"
_CLOSE = 1e-4
"""Relative, float32: gradients of the global batch, added up in another order."""


def serve(rank: int, folder: str, tasks: Sequence[int], width: int, rounds: int) -> None:
    """One of the two processes; the first writes what was found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {k: processes.measured(rank, 2, k, width, rounds) for k in tasks}
    constants = wire.measured(rank)
    if rank == 0:
        Path(folder, _ANSWER).write_bytes(pickle.dumps((found, constants)))
    dist.barrier()
    dist.destroy_process_group()


def run(tasks: Sequence[int], width: int, rounds: int) -> tuple[dict[int, dict[str, processes.Found]], wire.Constants]:
    """Measure with two processes of their own.

    Raises:
        RuntimeError: a process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = "import json, sys; from mtlbench.speed.distributed import serve; serve(*json.loads(sys.argv[1]))"
        both = [
            subprocess.Popen([sys.executable, "-c", program, json.dumps([rank, folder, list(tasks), width, rounds])])
            for rank in range(2)
        ]
        try:
            while any(process.poll() is None for process in both):
                time.sleep(0.1)
                if any(process.poll() for process in both):
                    break
            if any(process.poll() != 0 for process in both):
                raise RuntimeError("a process failed; its error is above.")
        finally:
            for process in both:
                process.kill()
        out, constants = pickle.loads(Path(folder, _ANSWER).read_bytes())
    return out, constants


def disagreement(found: Mapping[str, processes.Found]) -> dict[str, float]:
    """By contender with the same rows, the relative distance of its first gradients from those of one process."""
    right = found[processes.ONE].gradients
    same = (processes.NAIVE, processes.SHARES, processes.ROUNDED)
    return {name: float((found[name].gradients - right).norm() / right.norm()) for name in same}


def row(found: Mapping[str, processes.Found], name: str, gradient: int) -> dict[str, float | None]:
    """Of one contender: time to that of DDP and of one process, and bytes to those of one gradient."""
    mine, sent = found[name].rounds, found[name].bytes

    def ratio(to: str) -> float:
        return statistics.median(a / b for a, b in zip(mine, found[to].rounds))

    return {
        "to DDP": ratio(processes.DDP),
        "to one process": ratio(processes.ONE),
        "MB sent": None if sent is None else sent / 1e6,
        "gradients sent": None if sent is None else sent / gradient,
        "seconds": found[name].seconds,
    }


def table(results: Mapping[int, Mapping[str, Mapping[str, float | None]]]) -> str:
    """Rows: contenders. Columns: for each K time to DDP, time to one process, gradients sent."""
    names = list(next(iter(results.values())))
    lines = [f"{'':26}" + "".join(f"{f'K={k}: to DDP':>16}{'to one':>9}{'sent/P':>9}" for k in results)]
    for name in names:
        cells = []
        for k in results:
            r = results[k][name]
            sent = r["gradients sent"]
            last = f"{sent:9.2f}" if sent is not None else f"{'-':>9}"
            cells.append(f"{r['to DDP']:16.2f}{r['to one process']:9.2f}{last}")
        lines.append(f"{name:26}" + "".join(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if gradients differ from those of one process."""
    parser = argparse.ArgumentParser(
        prog="mtl speed distributed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/speed"), help="folder for distributed.json")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each contender that are measured")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 11, 40], help="numbers of tasks")
    parser.add_argument("--width", type=int, default=512, help="of the MLP")
    chosen = parser.parse_args(arguments)
    found, constants = run(chosen.tasks, chosen.width, chosen.rounds)
    p = processes.whole(2, chosen.width).n_parameters
    results = {k: {name: row(one, name, 4 * p) for name in one} for k, one in found.items()}
    apart = {k: disagreement(one) for k, one in found.items()}
    print(f"two gloo processes, P = {p:,}; sent/P: bytes sent by a process, in gradients (4 P bytes)")
    print(table(results))
    speed = 1e-9 / max(constants.per_byte, 1e-15)
    print(f"\none message {1e6 * constants.latency:.0f} us, {speed:.2f} GB/s; milliseconds of communication by model:")
    for k in chosen.tasks:
        print(wire.table(k, p, constants))
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "distributed.json"
    record = {
        "environment": {"torch": torch.__version__, "machine": platform.platform(), "threads": 1, "parameters": p},
        "constants": constants._asdict(),
        "results": results,
        "disagreement": apart,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")
    pairs = [(k, name, error) for k, one in apart.items() for name, error in one.items()]
    wrong = [(k, name, error) for k, name, error in pairs if name != processes.ROUNDED and not error <= _CLOSE]
    for k, name, error in wrong:
        print(f"K={k}: the gradients of {name!r} differ from those of one process by {error:.1e}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
