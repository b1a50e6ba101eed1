"""CelebA: forty attributes of faces, forty binary tasks."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.data.official import first_there, folder_of, image, inside, lines
from mtlbench.data.sources import DataError
from mtlbench.networks import celeba
from mtlbench.tasks.base import BenchmarkTask, Budget, LazySplit, Metric, Splits

_SIZE = (64, 64)
_PARTS = {"train": 0, "validation": 1, "test": 2}
ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
_LAYOUT = (
    "Eval/list_eval_partition.txt, Anno/list_attr_celeba.txt, Img/img_align_celeba/*.jpg; or all three without the "
    "folders Eval, Anno and Img, also in a folder celeba"
)


@dataclasses.dataclass(frozen=True)
class CelebA(BenchmarkTask):
    """40 binary attributes of 202,599 faces, with the published parts; ``root`` is the folder, default
    $MTLCORE_DATA/celeba. Pictures are resized to 64 x 64; the metric is F1, as in FAMO and FairGrad."""

    root: str = ""

    title = "CelebA: forty attributes of faces"
    about = "The official set, from a folder of yours."
    sources = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The attributes, in the order of the file."""
        return ATTRIBUTES

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """F1 of each attribute."""
        return tuple(Metric(name, "F1", higher_is_better=True, unit="%") for name in self.tasks)

    @property
    def budget(self) -> Budget:
        """[paper] 15 epochs of batches of 256."""
        return Budget(
            steps=1, batch_size=256, learning_rate=3e-4, evaluations=15, epochs=15, schedule="constant"
        )  # fmt: skip

    def load(self) -> Splits:
        """The published parts; pictures are read when they are wanted."""
        return _load(folder_of("celeba", self.root, _LAYOUT))

    def trunk(self) -> nn.Module:
        """(N, 3, 64, 64) -> (N, 512)."""
        return celeba.trunk()

    def head(self, task: str) -> nn.Module:
        """One logit."""
        return nn.Linear(celeba.FEATURES, 1)

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(output.squeeze(-1), target)

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(true positives, found, wanted)."""
        found, wanted = output.squeeze(-1) > 0, target > 0.5
        return torch.stack([(found & wanted).sum(), found.sum(), wanted.sum()]).double()

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """F1 in percent; 0 where nothing is found and nothing is there."""
        return {"F1": 100.0 * float(2 * tally[0] / (tally[1] + tally[2]).clamp_min(1.0))}


@functools.cache
def _load(root: Path) -> Splits:
    bases = [root, root / "celeba"]
    partition = first_there([b / sub / "list_eval_partition.txt" for b in bases for sub in ("Eval", ".")], "celeba")
    attributes = first_there([b / sub / "list_attr_celeba.txt" for b in bases for sub in ("Anno", ".")], "celeba")
    pictures = first_there([b / sub / "img_align_celeba" for b in bases for sub in ("Img", ".")], "celeba")
    names, labels = _attributes(attributes)
    part_of = _partition(partition)
    parts = np.array([part_of.get(name, -1) for name in names])
    if (parts < 0).any():
        missing = names[int(np.flatnonzero(parts < 0)[0])]
        raise DataError(f"{partition} does not say which part {missing} belongs to.")
    files = [inside(pictures, name, str(attributes)) for name in names]
    splits = {}
    for part, number in _PARTS.items():
        rows = np.flatnonzero(parts == number)
        if not len(rows):
            raise DataError(f"{partition} puts no picture into part {number} ({part}).")
        splits[part] = LazySplit(
            torch.empty(0, 3, *_SIZE), {}, rows, read=functools.partial(_read, files, labels, rows)
        )
    return Splits(**splits)


def _read(files: list[Path], labels: np.ndarray, rows: np.ndarray, i: int) -> tuple[Tensor, dict[str, Tensor]]:
    row = rows[i]
    target = torch.from_numpy(labels[row])
    return torch.from_numpy(image(files[row], _SIZE)), {name: target[k] for k, name in enumerate(ATTRIBUTES)}


def _attributes(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of pictures, and (N, 40) labels 0 and 1."""
    content = lines(path)
    header = tuple(content[1].split()) if len(content) > 1 else ()
    if header != ATTRIBUTES:
        raise DataError(f"{path}: the second line does not name the forty attributes in their order.")
    rows = [line.split() for line in content[2:]]
    for number, row in enumerate(rows, start=3):
        if len(row) != 1 + len(ATTRIBUTES) or not set(row[1:]) <= {"1", "-1"}:
            raise DataError(f"{path}, line {number}: expected a picture and forty times 1 or -1.")
    if not content[0].strip().isdecimal() or int(content[0]) != len(rows):
        raise DataError(f"{path} announces {content[0].strip()[:20]!r} pictures and has {len(rows)}.")
    return [row[0] for row in rows], np.array([[float(v == "1") for v in row[1:]] for row in rows], np.float32)


def _partition(path: Path) -> dict[str, int]:
    found = {}
    for number, line in enumerate(lines(path), start=1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise DataError(f"{path}, line {number}: expected a picture and its part, 0, 1 or 2.")
        found[words[0]] = int(words[1])
    return found
