"""A physics-informed network: equation, boundary and start of the heat equation, three losses of one function."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.tasks.base import BenchmarkTask, Budget, Metric, MultiSplit, Split, Splits

_SEED = 20_211
_DIFFUSIVITY = 0.1
_COUNTS = {"train": 2000, "validation": 500, "test": 2000}
_PLACES = ("equation", "boundary", "start")


@dataclasses.dataclass(frozen=True)
class HeatPinn(BenchmarkTask):
    """u_t = 0.1 u_xx for 0 < x < 1 and 0 < t < 1, zero at both ends, and sin(pi x) + sin(3 pi x) / 2 at t = 0.

    The network is the function u; the sub-tasks are its residual inside, its error at the ends, and its error at the
    start, each at points of its own. [choice] The metric of all three is the error inside against the exact solution,
    which no loss looks at. So a single-task network is one that knows only the equation, only the ends or only the
    start: none of them is enough, and delta-m says what knowing all three is worth.
    """

    title = "Heat-PINN: equation, boundary and start of a differential equation"
    about = (
        "Made up: a physics-informed network with an exact solution. The losses differ by orders of magnitude, and all "
        "three belong to one function, so there are no heads."
    )
    sources = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Where a loss is taken."""
        return _PLACES

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Root mean square error of u inside."""
        return tuple(Metric(name, "RMSE", higher_is_better=False) for name in self.tasks)

    @property
    def budget(self) -> Budget:
        """A few seconds of one core."""
        return Budget(steps=400, batch_size=128, learning_rate=5e-3, evaluations=10)

    def load(self) -> Splits:
        """Points drawn once; the target of each is the exact solution there."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, 2) points (x, t) -> (N, 2): u and the residual u_t - 0.1 u_xx."""
        return _Jet(32)

    def head(self, task: str) -> nn.Module:
        """None: the function is the whole network."""
        return nn.Identity()

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Mean square of the residual, or of the error where the solution is given."""
        return torch.mean(output[:, 1] ** 2 if task == "equation" else (output[:, 0] - target) ** 2)

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(sum of squared errors, count)."""
        errors = (output[:, 0] - target).double() ** 2
        return torch.stack([errors.sum(), torch.full_like(errors[0], len(errors))])

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """Root mean square error."""
        return {"RMSE": math.sqrt(float(tally[0] / tally[1]))}


class _Jet(nn.Module):
    """Three layers of tanh. Derivatives go forward together with the value, so that no second backward pass is needed
    and evaluation works without gradients."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.last = nn.Linear(width, 1)

    def forward(self, points: Tensor) -> Tensor:
        """(N, 2): value and residual."""
        value = points
        unit = torch.eye(2, dtype=points.dtype, device=points.device)
        by_x, by_t = (row.expand(len(points), 2) for row in unit)
        by_xx = torch.zeros_like(points)
        for layer in self.layers:
            weight: Tensor = layer.weight.T  # type: ignore[assignment]
            z, zx, zt, zxx = layer(value), by_x @ weight, by_t @ weight, by_xx @ weight
            value = torch.tanh(z)
            slope = 1 - value**2
            by_x, by_t, by_xx = slope * zx, slope * zt, slope * zxx - 2 * value * slope * zx**2
        weight = self.last.weight.T
        return torch.cat([self.last(value), by_t @ weight - _DIFFUSIVITY * (by_xx @ weight)], dim=1)


def exact(points: Tensor) -> Tensor:
    """(N,) the solution at points (x, t)."""
    x, t = points[:, 0], points[:, 1]
    parts = ((1.0, 1), (0.5, 3))
    return sum(
        (a * torch.sin(k * math.pi * x) * torch.exp(-_DIFFUSIVITY * (k * math.pi) ** 2 * t) for a, k in parts),
        torch.zeros_like(x),
    )


@functools.cache
def _load() -> Splits:
    generator = np.random.default_rng(_SEED)
    parts: dict[str, MultiSplit] = {}
    first = 0
    for part, count in _COUNTS.items():
        found = {}
        for name in _PLACES:
            points = generator.random((count, 2))
            if name == "boundary" and part == "train":
                points[:, 0] = np.round(points[:, 0])
            elif name == "start" and part == "train":
                points[:, 1] = 0.0
            x = torch.from_numpy(points).float()
            found[name] = Split(x, {name: exact(x)}, np.arange(first, first + count))
            first += count
        parts[part] = MultiSplit.of(found)
    return Splits(**parts)
