"""What do many rescalings do to the training after them?

    python -m mtlbench.studies.repeated [--seeds 5]

Two tasks that mostly oppose each other, a small ReLU network, 60 steps: alone, with a rescaling tried in every step
(``teleport="relu-rescaling"``, no detector), and with ``mtlcore.cost``. For each optimizer the mean loss at the end on
all data, the rescalings that were made, and the largest norm of a parameter.
"""

from __future__ import annotations

import argparse
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import mtlcore
from mtlcore.errors import MtlError

ARMS = ("alone", "in every step", "cost")
STEPS, PER_EPOCH = 60, 8


Closure = Callable[[], tuple[dict[str, Tensor], Tensor]]


class Ended(NamedTuple):
    """How a training ended: loss (infinite where a step was refused), rescalings, largest norm of a parameter."""

    loss: float
    rescalings: int
    norm: float


def train(arm: str, optimizer: str, seed: int) -> Ended:
    """One training."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 8, generator=draws)
    y = torch.tanh(x @ torch.randn(8, 2, generator=draws))
    y[:, 1] = 0.3 * y[:, 1] - 0.7 * y[:, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        heads = nn.ModuleDict({"a": nn.Linear(16, 1), "b": nn.Linear(16, 1)})
    parameters = [*trunk.parameters(), *heads.parameters()]

    def losses_of(index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        z = trunk(x[index])
        return {n: (head(z)[:, 0] - 3 * y[index, i]).square().mean() for i, (n, head) in enumerate(heads.items())}, z

    mt = _made(arm, trunk, heads, _optimizer(optimizer, parameters), lambda: losses_of(torch.arange(128)))
    made = 0
    for _ in range(STEPS):
        index = torch.randint(512, (64,), generator=draws)
        try:
            report = mt.step(functools.partial(losses_of, index))
        except MtlError:  # a loss that is not finite
            return Ended(math.inf, made, math.inf)
        made += report.teleport is not None and report.teleport.accepted
    with torch.no_grad():
        loss = sum(float(v) for v in losses_of(torch.arange(512))[0].values()) / 2
    return Ended(loss, made, max(float(p.detach().norm()) for p in parameters))


def _optimizer(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if name == "SGD":
        return torch.optim.SGD(parameters, lr=0.03, momentum=0.9)
    return torch.optim.Adam(parameters, lr=3e-3)


def _made(
    arm: str, trunk: nn.Module, heads: nn.Module, optimizer: torch.optim.Optimizer, probe: Closure
) -> mtlcore.MultiTask:
    if arm == "cost":
        return mtlcore.cost(trunk, "ls", optimizer, heads=heads, steps_per_epoch=PER_EPOCH, probe=probe)
    teleport = "relu-rescaling" if arm == "in every step" else None
    return mtlcore.MultiTask(trunk, "ls", optimizer, heads=heads, teleport=teleport)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args(arguments).seeds
    warnings.simplefilter("ignore")
    print("| optimizer | arm | loss, by seed | rescalings | largest norm |\n|---|---|---|---|---|")
    for optimizer in ("SGD", "Adam"):
        for arm in ARMS:
            ends = [train(arm, optimizer, seed) for seed in range(seeds)]
            loss, number, norm = (", ".join(f"{v:.3g}" for v in column) for column in zip(*ends))
            print(f"| {optimizer} | {arm} | {loss} | {number} | {norm} |", flush=True)


if __name__ == "__main__":
    main()
