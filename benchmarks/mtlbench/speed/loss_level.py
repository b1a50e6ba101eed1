"""What loss-level methods cost: a whole training step against a plain summed-loss step, at K = 2, 11, 40, 100.

    mtl speed loss-level [--out build/speed] [--seconds 20] [--tasks 2 11] [--methods bilb4mtl uw]
        [--device cuda]

A step is zero_grad, forward, backward, SGD. The reference does ``sum(losses).backward()``; a method goes through
``MultiTask.backward`` (``MultiTask.step`` if it looks at the losses twice) with its default options.

* time: median over interleaved rounds of (method / reference) in the same round, on one thread, in processor time of
  this process: a difference of a few percent would drown in what else runs on the machine. (On an accelerator in wall
  time, its queue drained.)
* memory: peak bytes allocated during a step, forward pass included, method / reference.

Prints a table and writes loss_level.json. Targets: time <= 1.05, memory <= 1.02 (methods with one forward pass).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mtlcore
from mtlbench.speed import measure
from mtlbench.speed.workloads import Workload, build, cnn, mlp
from mtlcore.errors import NonFiniteError

METHODS: dict[str, dict[str, Any]] = {
    "sum": {}, "ls": {}, "bilb4mtl": {}, "bilb4mtl (linear router)": {"router": "linear"}, "rlw": {}, "si": {},
    "gls": {}, "dwa": {}, "uw": {}, "imtl-l": {}, "stch": {}, "famo": {},
}  # fmt: skip
"""Label -> options; the method's name is the label's first word."""

NETWORKS: dict[str, Callable[[int], Workload]] = {"MLP": mlp, "CNN": lambda k: cnn(k, batch_norm=False)}
PLAIN = "plain sum"
CHECKED = "plain sum, checked"
TIME_TARGET, MEMORY_TARGET = 1.05, 1.02


def plain(workload: Workload) -> Callable[[], object]:
    """The reference step."""
    optimizer = _sgd(workload)

    def step() -> None:
        optimizer.zero_grad()
        losses, _ = workload.forward()
        total: Any = sum(losses)
        total.backward()
        optimizer.step()

    return step


def checked(workload: Workload) -> Callable[[], object]:
    """The reference step, with what every step of mtlcore promises beside: the losses are read, and neither they nor
    the trunk's gradients are NaN or infinite. What that takes nobody can save."""
    optimizer, shared = _sgd(workload), list(workload.trunk.parameters())

    def step() -> None:
        optimizer.zero_grad()
        losses, _ = workload.forward()
        stacked = torch.stack(losses)
        if not all(map(math.isfinite, stacked.tolist())):
            raise NonFiniteError("a loss is not finite.")
        stacked.backward(torch.ones_like(stacked))
        if not math.isfinite(sum([p.grad.sum().item() for p in shared if p.grad is not None])):
            raise NonFiniteError("a gradient is not finite.")
        optimizer.step()

    return step


def method(workload: Workload, label: str) -> Callable[[], object]:
    """The same step through a method."""
    aggregator = mtlcore.create("aggregator", label.split()[0], **METHODS[label])
    optimizer = _sgd(workload)
    task = mtlcore.MultiTask(workload.trunk, aggregator, optimizer)
    if type(aggregator).looks_twice():
        return lambda: task.step(workload.forward)

    def step() -> None:
        optimizer.zero_grad()
        task.backward(*workload.forward())
        optimizer.step()

    return step


def _sgd(workload: Workload) -> torch.optim.Optimizer:
    # A step of 1e-6: the losses hardly move, so that every method meets the same problem for the whole run.
    return torch.optim.SGD([*workload.trunk.parameters(), *workload.heads.parameters()], lr=1e-6)


def compare(
    make: Callable[[], Workload], labels: Sequence[str], seconds: float, device: torch.device = measure.CPU
) -> dict[str, dict[str, float]]:
    """For each label, and the checked reference, time and memory relative to the plain step on one network."""
    # One network for all: where its tensors happen to lie in memory is the same for everybody.
    network = build(make, device)
    steps = {PLAIN: plain(network), CHECKED: checked(network), **{label: method(network, label) for label in labels}}
    peaks: dict[str, int] = {}
    for label, step in steps.items():
        for _ in range(3):
            step()
            # Without old gradients: releasing what was allocated before would hide the new ones.
            network.zero_grad()
            found = measure.peak_bytes(step, device)
            peaks[label] = min(found, peaks.get(label, found))
    clock = time.process_time if device.type == "cpu" else measure.wall_clock(device)
    times = measure.interleaved(steps, seconds, least=15, clock=clock)
    return {
        label: {
            "time": measure.ratio(times, label, PLAIN),
            "memory": peaks[label] / peaks[PLAIN],
            "seconds": sorted(times[label])[len(times[label]) // 2],
        }
        for label in steps
    }


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Rows: methods. Columns: networks, time / memory, with a mark where a target is missed."""
    columns = list(results)
    labels = list(next(iter(results.values())))
    lines = [f"{'time / memory':26}" + "".join(f"{c:>18}" for c in columns)]
    for label in labels:
        cells = []
        for column in columns:
            r = results[column][label]
            missed = r["time"] > TIME_TARGET or r["memory"] > MEMORY_TARGET
            cells.append(f"{r['time']:.3f} / {r['memory']:.3f}{' !' if missed else '  '}".rjust(18))
        lines.append(f"{label:26}" + "".join(cells))
    seconds = "".join(f"{1e3 * results[c][PLAIN]['seconds']:>15.2f} ms" for c in columns)
    return "\n".join([*lines, f"{'plain step':26}" + seconds])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="mtl speed loss-level", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/speed"), help="folder for loss_level.json")
    parser.add_argument("--seconds", type=float, default=20.0, help="time per network and K")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 11, 40, 100], help="numbers of tasks")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--device", type=torch.device, default=measure.CPU, help="where the networks are; default: cpu")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measure.keep_memory()
    environment = {
        "torch": torch.__version__,
        "threads": measure.threads(),
        "machine": platform.platform(),
        "device": measure.name_of(chosen.device),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "loss_level.json"
    results = {}
    for network in chosen.networks:
        for k in chosen.tasks:
            name = f"{network} K={k}"
            results[name] = compare(
                functools.partial(NETWORKS[network], k), chosen.methods, chosen.seconds, chosen.device
            )
            # After each column, so that a run cut short leaves what it found.
            path.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")
            print(table({name: results[name]}) + "\n", flush=True)
    print(table(results))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
