"""Trunks in whose corners a symmetry of the plain layer does not hold: groups and strides, saturating activations,
layers that are used twice or frozen, units that are dead, parameters that are exactly zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def grouped(width: int) -> nn.Module:
    """A convolution in groups, with stride and dilation, between two plain ones: a channel feeds its own group only."""
    body = (
        nn.Conv2d(1, 2 * width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=2, dilation=2, groups=2), nn.ReLU(),
        nn.Conv2d(2 * width, width, 1, bias=False), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    return nn.Sequential(*body, nn.Linear(9 * width, width))


def transposed(width: int) -> nn.Module:
    """A transposed convolution, whose weight has its input channels first, in the middle."""
    body = (
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.ConvTranspose2d(width, 2 * width, 2), nn.ReLU(),
        nn.Conv2d(2 * width, width, 3), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    return nn.Sequential(*body, nn.Linear(9 * width, width))


def saturating(width: int) -> nn.Module:
    """ReLU6 and Hardtanh: linear near zero, flat beyond, so a scale does not pass through. Weights are large enough for
    many units to be at their ends."""
    made = nn.Sequential(
        nn.Linear(4, width), nn.ReLU6(), nn.Linear(width, width), nn.Hardtanh(), nn.Linear(width, width)
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4.0)
    return made


class Tied(nn.Module):
    """One layer that is used twice, around a ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.twice, self.last = (
            nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, width)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4) -> (N, width)."""
        x = torch.relu(self.twice(torch.relu(self.first(x))))
        return self.last(torch.relu(self.twice(x)))


def frozen(width: int) -> nn.Module:
    """The middle layer does not train: what a scale of the first would need there may not move."""
    made = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    made[2].requires_grad_(False)
    return made


def zeros(width: int) -> nn.Module:
    """A unit that is dead, biases that are zero, and one entry in three of the second layer that is zero."""
    first, second = nn.Linear(4, width), nn.Linear(width, width)
    with torch.no_grad():
        first.weight[0].zero_()
        first.bias.zero_()
        second.weight.flatten()[::3].zero_()
        second.bias.zero_()
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(width, width))
