"""Digits and clothes from three sources: three classifications, each with inputs of its own."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from mtlbench.data.images import fashion_mnist, mnist_5k
from mtlbench.tasks.base import Budget, MultiSplit, Split, Splits
from mtlbench.tasks.classification import ClassificationTask

_SEED = 20_206
_COUNTS = {
    "mnist": {"train": 3600, "validation": 400, "test": 1000},
    "fashion": {"train": 3600, "validation": 400, "test": 1000},
    "optdigits": {"train": 1197, "validation": 200, "test": 400},
}


@dataclasses.dataclass(frozen=True)
class DigitsDomains(ClassificationTask):
    """In the manner of Office: sub-tasks that share no picture, only the network [choice].

    MNIST (5,000 digits), as many pictures of Fashion-MNIST's training part, and the 1,797 digits of optdigits that
    scikit-learn ships, 8 x 8, enlarged to 28 x 28. Shorter parts come round again within an epoch.
    """

    title = "Digits-Domains: MNIST, Fashion-MNIST and optdigits, one 10-class task each"
    about = "Real pictures of three sources that share a small network; every task has inputs of its own."
    sources = ("mnist-5k", "fashion-mnist")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The sources."""
        return tuple(_COUNTS)

    @property
    def budget(self) -> Budget:
        """About ten seconds of one core."""
        return Budget(steps=400, batch_size=64, learning_rate=2e-3, evaluations=8)

    def load(self) -> Splits:
        """The three parts."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, 1, 28, 28) -> (N, 64)."""
        return nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(24 * 5 * 5, 64), nn.ReLU(),
        )  # fmt: skip

    def head(self, task: str) -> nn.Module:
        """A linear classifier."""
        return nn.Linear(64, 10)


def _pictures() -> dict[str, tuple[Tensor, np.ndarray]]:
    """(N, 28, 28) in [0, 1] and classes of each source."""
    mnist, digits = mnist_5k()
    fashion, clothes = fashion_mnist("train")
    small = load_digits()
    enlarged = F.interpolate(torch.from_numpy(small.images).float()[:, None] / 16.0, (28, 28), mode="bilinear")[:, 0]
    return {
        "mnist": (torch.from_numpy(mnist).float() / 255.0, digits),
        "fashion": (torch.from_numpy(fashion.astype(np.float32)) / 255.0, clothes),
        "optdigits": (enlarged, small.target.astype(np.int64)),
    }


@functools.cache
def _load() -> Splits:
    parts: dict[str, dict[str, Split]] = {"train": {}, "validation": {}, "test": {}}
    first = 0
    for name, (pictures, classes) in _pictures().items():
        order = np.random.default_rng(_SEED).permutation(len(pictures))
        edges = np.cumsum([0, *_COUNTS[name].values()])
        train = pictures[order[: edges[1]]]
        mean, std = train.mean(), train.std()
        for part, a, b in zip(_COUNTS[name], edges[:-1], edges[1:]):
            rows = order[a:b]
            inputs = ((pictures[rows] - mean) / std).unsqueeze(1)
            parts[part][name] = Split(inputs, {name: torch.from_numpy(classes[rows])}, rows + first)
        first += len(pictures)
    return Splits(**{part: MultiSplit.of(domains) for part, domains in parts.items()})
