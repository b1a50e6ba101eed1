"""NYUv2 and Cityscapes as MTAN prepared them: the sets of most papers on multi-task optimisation."""

from __future__ import annotations

import abc
import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.data.official import array, first_there, folder_of, numbered
from mtlbench.data.sources import DataError
from mtlbench.networks import segnet
from mtlbench.tasks import dense
from mtlbench.tasks.base import Batch, BenchmarkTask, Budget, LazySplit, Metric, Splits
from mtlcore import choice

_SEED = 20_205
_VALIDATION = 10  # every tenth training image
_SCALES = (1.0, 1.2, 1.5)
_BRIGHTEST = 20.0
"""Above what standardised pictures reach, and far below 255."""
_UNITS = {"absolute error": "", "relative error": "%", "mean angle": "°", "median angle": "°"}
_NAMES = {
    "segmentation": ("mIoU", "pixel accuracy"),
    "depth": ("absolute error", "relative error"),
    "normals": ("mean angle", "median angle", *(f"within {b:g}°" for b in dense.WITHIN)),
}


@dataclasses.dataclass(frozen=True)
class Scenes(BenchmarkTask, abc.ABC):
    """What the two sets share. ``root`` is their folder; default $MTLCORE_DATA/NAME.

    [choice] Every tenth training image (in a fixed shuffled order) is the validation part, which the papers do not
    have; a protocol that has none either trains on it. The published ``val`` folder is the test part.
    """

    root: str = ""
    network: str = choice("mtan", ("mtan", "segnet"))

    sources: ClassVar[tuple[str, ...]] = ()
    evaluation_batch: ClassVar[int] = 8
    folder: ClassVar[str]
    classes: ClassVar[int]
    labels: ClassVar[tuple[str, ...]]
    """Accepted names of the folder of segmentations, the preferred one first."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """As in the papers."""
        return tuple(
            Metric(task, name, higher_is_better=name not in _UNITS, unit=_UNITS.get(name, "%"))
            for task in self.tasks
            for name in _NAMES[task]
        )

    def load(self) -> Splits:
        """The three parts; images are read when they are wanted."""
        folders = ["image", self.labels[0], *(task.removesuffix("s") for task in self.tasks[1:])]
        layout = f"{{train,val}}/{{{','.join(folders)}}}/0.npy, 1.npy, ..."
        root = folder_of(self.folder, self.root, layout)
        return _load(type(self), root)

    def trunk(self) -> nn.Module:
        """SegNet, with MTAN's shared part or without."""
        return segnet.MTANTrunk() if self.network == "mtan" else segnet.SegNet()

    def head(self, task: str) -> nn.Module:
        """MTAN's attention modules with an output stack, or the stack alone."""
        channels = {"segmentation": self.classes, "depth": 1, "normals": 3}[task]
        return segnet.MTANHead(channels) if self.network == "mtan" else segnet.output_stack(channels)

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Of the labelled pixels."""
        return dense.loss(task, output, target)

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Of the labelled pixels."""
        return dense.tally(task, output, target)

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """Of the labelled pixels."""
        return dense.score(task, tally)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Each image scaled by 1, 1.2 or 1.5 with a random crop, depth divided by the scale, and flipped with
        probability 1/2, where normals turn round [code: MTAN]."""
        images, targets = batch
        assert isinstance(images, Tensor)
        rows = [
            _augmented({"image": images[i], **{n: t[i] for n, t in targets.items()}}, generator)
            for i in range(len(images))
        ]
        return torch.stack([r["image"] for r in rows]), {n: torch.stack([r[n] for r in rows]) for n in targets}


@dataclasses.dataclass(frozen=True)
class NYUv2(Scenes):
    """NYUv2: 795 and 654 indoor images of 288 x 384; segmentation in 13 classes, depth, surface normals."""

    title = "NYUv2: segmentation, depth and surface normals"
    about = "The official set as prepared by MTAN, from a folder of yours."
    folder = "nyuv2"
    classes = 13
    labels = ("label",)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The three dense predictions."""
        return ("segmentation", "depth", "normals")

    @property
    def budget(self) -> Budget:
        """[paper] 200 epochs of batches of two."""
        return Budget(steps=1, batch_size=2, learning_rate=1e-4, evaluations=20, epochs=200)


@dataclasses.dataclass(frozen=True)
class Cityscapes(Scenes):
    """Cityscapes: 2,975 and 500 street images of 128 x 256; segmentation in 7 classes, depth."""

    title = "Cityscapes: segmentation and depth"
    about = "The official set as prepared by MTAN, from a folder of yours."
    folder = "cityscapes"
    classes = 7
    labels = ("label_7", "label")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The two dense predictions."""
        return ("segmentation", "depth")

    @property
    def budget(self) -> Budget:
        """[paper] 200 epochs of batches of eight."""
        return Budget(steps=1, batch_size=8, learning_rate=1e-4, evaluations=20, epochs=200)


@functools.cache
def _load(kind: type[Scenes], root: Path) -> Splits:
    made = kind()
    counts = {part: numbered(root / part / "image") for part in ("train", "val")}
    if counts["train"] < 2:
        raise DataError(f"{root / 'train' / 'image'} has one image; a training and a validation part need two.")
    order = np.random.default_rng(_SEED).permutation(counts["train"])
    held = max(1, counts["train"] // _VALIDATION)
    rows = {"validation": ("train", order[:held]), "train": ("train", order[held:])}
    rows["test"] = ("val", np.arange(counts["val"]))
    splits = {}
    for name, (part, index) in rows.items():
        reader = _Reader(made, root / part, index)
        shift = 0 if part == "train" else counts["train"]
        splits[name] = LazySplit(torch.empty(0), {}, index + shift, read=reader)
        reader(0)  # what is wrong with the first one is probably wrong with all
    return Splits(**splits)


class _Reader:
    """Reads the examples of one part."""

    def __init__(self, task: Scenes, folder: Path, rows: np.ndarray) -> None:
        self._task, self._folder, self._rows = task, folder, rows
        self._labels = first_there([folder / name for name in task.labels], task.folder)

    def __call__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        name = f"{self._rows[i]}.npy"
        picture = _channels_first(array(self._folder / "image" / name, (-1, -1, 3), (3, -1, -1)), 3)
        if picture.max() > _BRIGHTEST:  # silently, it would be another network's input
            raise DataError(
                f"{self._folder / 'image' / name}: the largest value is {picture.max():g}; pictures of this layout lie "
                "between 0 and 1 (divide by 255)."
            )
        size = picture.shape[1:]
        if any(n % 32 for n in size):
            raise DataError(f"{self._folder / 'image' / name}: height and width {size} must be multiples of 32.")
        label = array(self._labels / name, tuple(size))
        for extreme in (label.max(), label.min()):
            if not -1 <= extreme < self._task.classes:
                there = f"there are {self._task.classes}, and -1 for unlabelled"
                raise DataError(f"{self._labels / name} has class {extreme:g}; {there}.")
        broken = label[label != np.round(label)]
        if broken.size:
            raise DataError(f"{self._labels / name} has class {broken[0]:g}, which is not a whole number.")
        targets = {"segmentation": torch.from_numpy(label).long()}
        for task, channels in (("depth", 1), ("normals", 3)):
            if task in self._task.tasks:
                shapes = (*size, channels), (channels, *size)
                found = array(self._folder / task.removesuffix("s") / name, *shapes)
                targets[task] = torch.from_numpy(_channels_first(found, channels))
        return torch.from_numpy(picture), targets


def _channels_first(found: np.ndarray, channels: int) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(found, -1, 0)) if found.shape[-1] == channels else found


def _augmented(example: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    height, width = example["image"].shape[-2:]
    scale = _SCALES[int(torch.randint(len(_SCALES), (), generator=generator))]
    crop = int(height / scale), int(width / scale)
    top = int(torch.randint(height - crop[0] + 1, (), generator=generator))
    left = int(torch.randint(width - crop[1] + 1, (), generator=generator))
    flip = bool(torch.rand((), generator=generator) < 0.5)
    out = {}
    for name, value in example.items():
        cut = value[..., top : top + crop[0], left : left + crop[1]]
        if name == "segmentation":
            cut = F.interpolate(cut[None, None].float(), (height, width), mode="nearest")[0, 0].to(value.dtype)
        else:
            how: dict[str, Any] = {"mode": "nearest"}
            if name == "image":
                how = {"mode": "bilinear", "align_corners": True}
            cut = F.interpolate(cut[None], (height, width), **how)[0]
        if name == "depth":
            cut = cut / scale
        if flip:
            cut = cut.flip(-1)
            if name == "normals":
                cut = cut * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
        out[name] = cut
    return out
