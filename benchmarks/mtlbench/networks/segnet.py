"""SegNet, and MTAN's attention on it: the networks of the MTAN line on NYUv2 and Cityscapes.

[memory] Written anew after the layout of lorenmt/mtan (Liu et al. 2019): an encoder with the thirteen convolutions of
VGG-16, batch norm after each, max-unpooling in the decoder, one output stack per task.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)


def _convolution(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


def _more(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_convolution(width, width) for _ in range(count)))


@dataclasses.dataclass(frozen=True)
class Levels:
    """What MTAN's attention reads of a SegNet: at each level the input and output of its later convolutions."""

    encoder: list[tuple[Tensor, Tensor]]
    decoder: list[tuple[Tensor, Tensor]]
    """From the coarsest level: the unpooled features, and the level's output."""
    down: nn.ModuleList
    up: nn.ModuleList


class SegNet(nn.Module):
    """(N, 3, H, W) -> (N, 64, H, W); H and W are multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        ins = (3, *WIDTHS[:-1])
        outs = (WIDTHS[0], *WIDTHS[:-1])
        self.enter = nn.ModuleList(_convolution(i, w) for i, w in zip(ins, WIDTHS))
        self.deepen = nn.ModuleList(_more(w, 1 if level < 2 else 2) for level, w in enumerate(WIDTHS))
        self.leave = nn.ModuleList(_convolution(w, o) for w, o in zip(WIDTHS, outs))
        self.refine = nn.ModuleList(_more(o, 1 if level < 2 else 2) for level, o in enumerate(outs))
        self.pool = nn.MaxPool2d(2, 2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2, 2)

    def levels(self, x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """Features of the encoder and of the decoder, level by level."""
        encoder, places = [], []
        for enter, deepen in zip(self.enter, self.deepen):
            first = enter(x)
            second = deepen(first)
            encoder.append((first, second))
            x, index = self.pool(second)
            places.append(index)
        decoder = []
        for level in reversed(range(len(WIDTHS))):
            wide = self.unpool(x, places[level])
            x = self.refine[level](self.leave[level](wide))
            decoder.append((wide, x))
        return encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """The finest features."""
        return self.levels(x)[1][-1][1]


class MTANTrunk(SegNet):
    """SegNet with what MTAN's attention modules of all tasks share; gives :class:`Levels`."""

    def __init__(self) -> None:
        super().__init__()
        outs = (WIDTHS[0], *WIDTHS[:-1])
        deeper = (*WIDTHS[1:], WIDTHS[-1])
        self.down = nn.ModuleList(_convolution(w, d) for w, d in zip(WIDTHS, deeper))
        self.up = nn.ModuleList(_convolution(w, o) for w, o in zip(WIDTHS, outs))

    def forward(self, x: Tensor) -> Levels:  # type: ignore[override]
        """All levels."""
        return Levels(*self.levels(x), self.down, self.up)


def output_stack(channels: int) -> nn.Sequential:
    """(N, 64, H, W) -> (N, channels, H, W): the prediction of one task."""
    return nn.Sequential(nn.Conv2d(WIDTHS[0], WIDTHS[0], 3, padding=1), nn.Conv2d(WIDTHS[0], channels, 1))


class MTANHead(nn.Module):
    """The attention modules of one task and its output stack: :class:`Levels` -> (N, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        outs = (WIDTHS[0], *WIDTHS[:-1])
        double = (WIDTHS[0], *(2 * w for w in WIDTHS[1:]))
        self.down = nn.ModuleList(_attention(d, w) for d, w in zip(double, WIDTHS))
        self.up = nn.ModuleList(_attention(w + o, o) for w, o in zip(WIDTHS, outs))
        self.output = output_stack(channels)

    def forward(self, levels: Levels) -> Tensor:
        """The prediction."""
        x: Tensor | None = None
        for (first, second), mask, shared in zip(levels.encoder, self.down, levels.down):
            seen = first if x is None else torch.cat([first, x], dim=1)
            x = nn.functional.max_pool2d(shared(mask(seen) * second), 2)
        assert x is not None
        for i, (wide, out) in enumerate(levels.decoder):
            level = len(WIDTHS) - 1 - i
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = self.up[level](torch.cat([wide, levels.up[level](x)], dim=1)) * out
        found: Tensor = self.output(x)
        return found


def _attention(inside: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.Sigmoid(),
    )  # fmt: skip
