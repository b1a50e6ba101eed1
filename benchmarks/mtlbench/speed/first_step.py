"""What the first step on a new graph costs: it compares the chosen gradient source with plain autograd.

    mtl speed first-step [--out build/speed] [--sizes 1000 10000] [--methods mgda uw] [--repeats 3]

Two shapes of a trunk, with two tasks: *deep*, a chain of so many layers, and *wide*, a sum of so many parameters. The
first and the third step of a new MultiTask are divided by a plain step, forward pass and ``sum(losses).backward()``, of
the same network. Processor time of one thread; the smallest of the repeats, for what else runs only adds.

Prints a table and writes first_step.json. Target: the first step at most 10 plain steps at any size.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import mtlcore

TARGET = 10.0
SHAPES = ("deep", "wide")


class Made(NamedTuple):
    """A network: its trunk, and a forward pass that gives losses and features."""

    trunk: nn.Module
    forward: Callable[[], tuple[list[Tensor], Tensor]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        shape: "deep" or "wide".
        size: layers, or parameters.
        method: its name.
        plain: seconds of a plain step.
        first, later: the first and the third step of a run, in plain steps.
    """

    shape: str
    size: int
    method: str
    plain: float
    first: float
    later: float


class _Chain(nn.Module):
    """x -> tanh(w x), so many times: a layer is two functions of the graph and 16 numbers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.eye(4) * 1.02) for _ in range(size)])

    def forward(self, x: Tensor) -> Tensor:
        for w in self.layers:
            x = torch.tanh(x @ w)
        return x


class _Sum(nn.Module):
    """x times the sum of so many parameters."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.full((4,), 1.0 / size)) for _ in range(size)])

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.stack(list(self.parts)).sum(dim=0)


def made(shape: str, size: int) -> Made:
    """A network of this shape."""
    torch.manual_seed(0)
    trunk = _Chain(size) if shape == "deep" else _Sum(size)
    heads = nn.ModuleList([nn.Linear(4, 1) for _ in range(2)])
    x, y = torch.randn(8, 4), torch.randn(8, 2)

    def forward() -> tuple[list[Tensor], Tensor]:
        z = trunk(x)
        return [(h(z)[:, 0] - y[:, i]).square().mean() for i, h in enumerate(heads)], z

    return Made(trunk, forward)


def measured(shape: str, size: int, method: str, repeats: int) -> Row:
    """One line."""
    network = made(shape, size)

    def plain() -> None:
        losses, _ = network.forward()
        torch.stack(losses).sum().backward()

    plain()
    base, first, later = [], [], []
    for _ in range(repeats):
        base.append(_seconds(plain))
        run = mtlcore.MultiTask(network.trunk, method)
        steps = [_seconds(functools.partial(_backward, run, network)) for _ in range(3)]
        first.append(steps[0])
        later.append(steps[2])
    least = min(base)
    return Row(shape, size, method, least, min(first) / least, min(later) / least)


def _backward(run: mtlcore.MultiTask, network: Made) -> None:
    run.backward(*network.forward())


def _seconds(step: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    step()
    return time.process_time() - start


def table(rows: Sequence[Row]) -> str:
    """With a mark where the target is missed."""
    lines = [f"{'trunk':20}{'method':10}{'plain step':>12}{'first step':>14}{'later step':>14}"]
    for r in rows:
        what = f"{r.shape}, {r.size:,}"
        missed = " !" if r.first > TARGET else "  "
        lines.append(f"{what:20}{r.method:10}{r.plain:>10.3f} s{r.first:>12.1f}{missed}{r.later:>12.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="mtl speed first-step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/speed"), help="folder for first_step.json")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], help="layers, or parameters")
    parser.add_argument("--methods", nargs="+", default=["mgda", "uw"], metavar="METHOD")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for shape in SHAPES:
        for size in chosen.sizes:
            for method in chosen.methods:
                rows.append(measured(shape, size, method, chosen.repeats))
                print(table(rows[-1:]).splitlines()[1], flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "first_step.json"
    path.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
