"""A training in which a teleport must help, if the theory is right: two tasks whose conflict a rescaling removes."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

import mtlcore
from mtlbench.tasks.base import BenchmarkTask, Budget, Metric, Split, Splits

NAME = "bad-coordinates"
SLANT = 0.2
"""t: the tasks pull the trunk's two outputs along (1, t) and (t, 1), whose inner product is 2 t: no conflict there."""
EXCESS = 2.5
"""How many times the conflict in the first layer outweighs the agreement in the second."""
UNITS, INPUTS, EXAMPLES = 4, 4, 256
ALONG = {"small": (1.0, SLANT), "large": (SLANT, 1.0)}
SCALES = {"small": 1.0, "large": 7.0}
"""Of the losses. In units of |h|^2, |g_1|^2 is 2.04 and <g_1, g_2> is -0.6 times the ratio of the scales: from 3.4 on,
the mean gradient raises the loss of the first task."""


@dataclasses.dataclass(frozen=True)
class BadCoordinates(BenchmarkTask):
    """z = W2 relu(W1 x) with x > 0 and W1 > 0, so that every unit is on.

    Task i has the loss s_i (a_i . z + 1)^2 / 2 with a_1 = (1, t), a_2 = (t, 1); the heads are fixed. The columns of W2
    are b (1, -1). On one input the task gradients have the inner products s_1 s_2 e_1 e_2 times 2 t |h|^2 in W2
    (agreement) and -(1 - t)^2 |x|^2 sum b^2 in W1 (conflict), and b makes the second EXCESS times the first.
    Multiplying W1 by lambda and dividing W2 by it changes no output; it multiplies the first term by lambda^2 and
    divides the second: from lambda^4 = EXCESS on, the tasks agree. [ours; the law helps-where-it-must has the same
    network for one step]

    Args:
        rate: the learning rate, in units of the usual one: does a teleport help where the rate is tuned?
    """

    rate: float = mtlcore.number(1.0, low=0.0, open_low=True)

    title = "Two tasks in coordinates in which they conflict"
    about = "Made up: the conflict is one of coordinates alone, and a rescaling of the two layers removes it."
    sources = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The one that the mean gradient harms, and the other."""
        return tuple(ALONG)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The losses themselves."""
        return tuple(Metric(name, "loss", higher_is_better=False) for name in ALONG)

    @property
    def budget(self) -> Budget:
        """Not too long, nor too fast: both losses can become small, and then all trainings end in the same place."""
        return Budget(steps=240, batch_size=64, learning_rate=1e-3 * self.rate, evaluations=4)

    def load(self) -> Splits:
        """Inputs between 0.5 and 1.5; what is to be learnt is the same for all."""
        draws = torch.Generator().manual_seed(0)
        parts = {}
        for i, part in enumerate(("train", "validation", "test")):
            x = 0.5 + torch.rand(EXAMPLES, INPUTS, generator=draws)
            targets = {name: torch.zeros(EXAMPLES) for name in ALONG}
            parts[part] = Split(x, targets, np.arange(EXAMPLES) + EXAMPLES * i)
        return Splits(**parts)

    def trunk(self) -> nn.Module:
        """The two layers, in the bad coordinates."""
        first, second = nn.Linear(INPUTS, UNITS, bias=False), nn.Linear(UNITS, 2, bias=False)
        x = self.load().train.inputs
        with torch.no_grad():
            first.weight.copy_(0.05 + 0.05 * torch.rand(UNITS, INPUTS))
            x_size, h_size = (float(v.square().sum(dim=1).mean()) for v in (x, x @ first.weight.T))
            b = (EXCESS * 2 * SLANT * h_size / ((1 - SLANT) ** 2 * x_size * UNITS)) ** 0.5
            second.weight.copy_(torch.tensor([[b], [-b]]).expand(2, UNITS))
        return nn.Sequential(first, nn.ReLU(), second)

    def head(self, task: str) -> nn.Module:
        """a_i . z + 1, fixed."""
        head = nn.Linear(2, 1)
        with torch.no_grad():
            head.weight.copy_(torch.tensor([ALONG[task]]))
            head.bias.fill_(1.0)
        return head.requires_grad_(False)

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """s_i e_i^2 / 2."""
        return SCALES[task] * output.square().mean() / 2

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(sum of losses, count)."""
        losses = SCALES[task] * output.double().square() / 2
        return torch.stack([losses.sum(), torch.tensor(float(losses.numel()), dtype=torch.float64)])

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """The mean."""
        return {"loss": float(tally[0] / tally[1])}


PROBLEMS = {NAME: BadCoordinates(), **{f"{NAME}-x{rate}": BadCoordinates(rate=rate) for rate in (3, 10)}}
"""By name, with multiples of the learning rate."""


def task_of(name: str) -> BenchmarkTask:
    """A constructed problem, or a registered task, by its name."""
    found: BenchmarkTask = PROBLEMS.get(name) or mtlcore.create("task", name)
    return found
