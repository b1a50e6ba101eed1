"""Fashion scenes: segmentation, depth and surface normals of composed scenes, with the losses of NYUv2."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from mtlbench.data.images import fashion_mnist
from mtlbench.tasks.base import BenchmarkTask, Budget, Metric, Split, Splits

_COUNTS = {"train": 6_000, "validation": 800, "test": 1_500}
_SEED = 20_202
_SIDE, _OBJECT = 48, 28
_CLASSES = 11  # ten kinds of clothes and the background
_ANGLE_BINS = 1800  # 0.1 degree


@dataclasses.dataclass(frozen=True)
class FashionScenes(BenchmarkTask):
    """Three dense tasks on 48 x 48 scenes: 11-class segmentation, depth, surface normals.

    The objects are real (Fashion-MNIST); the scene and its geometry are *synthetic* [choice]: a slanted background
    plane and two to four objects at random depths, nearer ones in front, each bulging towards the viewer like a
    cushion; normals are those of the depth map. Losses and metrics are those of NYUv2 in the multi-task
    literature: cross-entropy, L1, and one minus the cosine; mIoU, pixel accuracy, absolute and relative error,
    mean and median angle.
    """

    title = "Fashion-Scenes: segmentation, depth and normals of composed scenes"
    about = (
        "Real clothes, synthetic scenes: a small stand-in for NYUv2. Gradient norms of the tasks differ by 20 times, "
        "and plain summing often raises the loss of a task."
    )
    sources = ("fashion-mnist",)
    revision: ClassVar[int] = 2  # 1: single-task checkpoints were chosen by a sum over units (metres and percent)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The three dense predictions."""
        return ("segmentation", "depth", "normals")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """As for NYUv2."""
        return (
            Metric("segmentation", "mIoU", higher_is_better=True, unit="%"),
            Metric("segmentation", "pixel accuracy", higher_is_better=True, unit="%"),
            Metric("depth", "absolute error", higher_is_better=False, unit="m"),
            Metric("depth", "relative error", higher_is_better=False, unit="%"),
            Metric("normals", "mean angle", higher_is_better=False, unit="°"),
            Metric("normals", "median angle", higher_is_better=False, unit="°"),
        )

    @property
    def budget(self) -> Budget:
        """About half a minute of one core."""
        return Budget(steps=500, batch_size=32, learning_rate=2e-3, evaluations=5)

    def load(self) -> Splits:
        """The three parts."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, 1, 48, 48) -> (N, 24, 24, 24), an encoder-decoder with one shortcut."""
        return _EncoderDecoder()

    def head(self, task: str) -> nn.Module:
        """Two convolutions at half resolution, then upsampling."""
        channels = {"segmentation": _CLASSES, "depth": 1, "normals": 3}[task]
        return nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, channels, 1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        )

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, L1, one minus cosine."""
        if task == "segmentation":
            return F.cross_entropy(output, target.long())
        if task == "depth":
            return (output - target).abs().mean()
        return 1.0 - _cosine(output, target).mean()

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Confusion matrix; error sums; histogram of angles with the sum of angles behind it."""
        if task == "segmentation":
            pairs = target.long().flatten() * _CLASSES + output.argmax(dim=1).flatten()
            return torch.bincount(pairs, minlength=_CLASSES**2).to(torch.float64)
        if task == "depth":
            error = (output - target).abs().to(torch.float64)
            count = torch.tensor(float(error.numel()), dtype=torch.float64, device=error.device)
            return torch.stack([error.sum(), (error / target).sum(), count])
        cosine = _cosine(output, target).clamp(-1.0, 1.0).to(torch.float64)
        angle = torch.rad2deg(torch.arccos(cosine)).flatten()
        return torch.cat([torch.histc(angle, bins=_ANGLE_BINS, min=0.0, max=180.0), angle.sum()[None]])

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """The metrics of one sub-task; the median angle is exact to 0.1 degree."""
        if task == "segmentation":
            confusion = tally.reshape(_CLASSES, _CLASSES)
            hit = confusion.diagonal()
            union = confusion.sum(0) + confusion.sum(1) - hit
            iou = (hit / union)[union > 0]
            return {"mIoU": 100 * float(iou.mean()), "pixel accuracy": 100 * float(hit.sum() / confusion.sum())}
        if task == "depth":
            return {"absolute error": float(tally[0] / tally[2]), "relative error": 100 * float(tally[1] / tally[2])}
        counts, total = tally[:-1], tally[:-1].sum()
        middle = int(torch.searchsorted(counts.cumsum(0), total / 2))
        return {"mean angle": float(tally[-1] / total), "median angle": 180.0 * (middle + 0.5) / _ANGLE_BINS}


def _cosine(output: Tensor, normal: Tensor) -> Tensor:
    """(N, H, W) cosines between predicted directions and normals, which have length 1; both (N, 3, H, W).

    As ``F.cosine_similarity(output, normal, dim=1)``, which is 50 times slower on this layout: a sixth of a run.
    """
    length = output.square().sum(dim=1).clamp_min(1e-16).sqrt()
    return (output * normal).sum(dim=1) / length


class _EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU())
        self.down = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
        )
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.merge = nn.Sequential(nn.Conv2d(48, 24, 3, padding=1), nn.ReLU())

    def forward(self, scene: Tensor) -> Tensor:
        fine = self.enter(scene)
        merged: Tensor = self.merge(torch.cat([fine, self.up(self.down(fine))], dim=1))
        return merged


@functools.cache
def _load() -> Splits:
    images, labels = fashion_mnist("train")
    order = np.random.default_rng(_SEED).permutation(len(images))
    test_images, test_labels = fashion_mnist("t10k")
    pools = {
        "train": (images, labels, order[:50_000], 0),
        "validation": (images, labels, order[50_000:], 0),
        "test": (test_images, test_labels, np.arange(len(test_images)), len(images)),
    }
    made = {
        name: _scenes(pixels, classes, pool, _COUNTS[name], seed=_SEED + 1 + i)
        for i, (name, (pixels, classes, pool, _)) in enumerate(pools.items())
    }
    mean, std = float(made["train"]["brightness"].mean()), float(made["train"]["brightness"].std())
    parts = {}
    for name, scene in made.items():
        inputs = (torch.from_numpy(scene["brightness"]) - mean) / std
        targets = {
            "segmentation": torch.from_numpy(scene["kind"]),
            "depth": torch.from_numpy(scene["depth"]).unsqueeze(1),
            "normals": torch.from_numpy(scene["normals"]),
        }
        parts[name] = Split(inputs.unsqueeze(1), targets, scene["drawn"] + pools[name][3])
    return Splits(**parts)


def _scenes(images: np.ndarray, classes: np.ndarray, pool: np.ndarray, count: int, seed: int) -> dict[str, np.ndarray]:
    """``count`` scenes: brightness, depth (M, 48, 48) float32, kind uint8, normals (M, 3, 48, 48), indices (M, 4)."""
    generator = np.random.default_rng(seed)
    across = np.arange(_SIDE, dtype=np.float32) / (_SIDE - 1) - 0.5
    brightness = np.empty((count, _SIDE, _SIDE), np.float32)
    kind = np.zeros((count, _SIDE, _SIDE), np.uint8)
    depth = np.empty_like(brightness)
    drawn = generator.choice(pool, size=(count, 4))
    for s in range(count):
        tilt = generator.uniform(-1.0, 1.0, size=2)
        depth[s] = 4.0 + tilt[0] * across[:, None] + tilt[1] * across[None, :]
        brightness[s] = 40.0 + 25.0 * (4.0 - depth[s]) + generator.normal(0.0, 6.0, size=depth[s].shape)
        distances = np.sort(generator.uniform(1.0, 3.0, size=generator.integers(2, 5)))[::-1]
        for index, distance in zip(drawn[s], distances):  # far to near: a nearer object covers what is behind it
            top, left = generator.integers(-6, _SIDE - _OBJECT + 7, size=2)
            rows = slice(max(top, 0), min(top + _OBJECT, _SIDE))
            columns = slice(max(left, 0), min(left + _OBJECT, _SIDE))
            inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
            pixels = images[index]
            mask = ndimage.binary_fill_holes(pixels > 24)
            bulge = 0.12 * np.sqrt(ndimage.distance_transform_edt(mask))
            seen = mask[inside]
            where = (s, rows, columns)
            brightness[where] = np.where(seen, pixels[inside] * (1.25 - 0.2 * distance), brightness[where])
            kind[where] = np.where(seen, classes[index] + 1, kind[where])
            depth[where] = np.where(seen, distance - bulge[inside], depth[where])
    slope_down, slope_right = np.gradient(depth * 6.0, axis=(1, 2))
    normals = np.stack([-slope_right, -slope_down, np.ones_like(depth)], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return {
        "brightness": brightness,
        "kind": kind,
        "depth": depth,
        "normals": normals.astype(np.float32),
        "drawn": drawn,
    }
