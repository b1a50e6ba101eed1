"""The network of CelebA in the line of FAMO, FairGrad and LDC-MTL."""

from __future__ import annotations

from torch import nn

FEATURES = 512


def trunk() -> nn.Sequential:
    """(N, 3, 64, 64) -> (N, 512).

    [paper] Seven 3 x 3 convolutions with three max-poolings and a global average, then two linear layers; batch norm
    and ReLU throughout. [choice] The poolings stand after the second, fourth and sixth convolution; biases stand only
    in the linear layers, since batch norm takes those of convolutions away.
    """
    layers: list[nn.Module] = []
    inside = 3
    for i, width in enumerate((64, 128, 128, 256, 256, 512, 512)):
        layers += [nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        if i in (1, 3, 5):
            layers.append(nn.MaxPool2d(2))
        inside = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for _ in range(2):
        layers += [nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
