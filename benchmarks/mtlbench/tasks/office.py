"""Office-31 and Office-Home: one classification per domain, each with pictures of its own."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.data.official import folder_of, image, inside, lines
from mtlbench.data.sources import DataError
from mtlbench.networks import resnet
from mtlbench.tasks.base import Budget, LazySplit, MultiSplit, Splits
from mtlbench.tasks.classification import ClassificationTask
from mtlcore import choice, integer

DOMAINS = {"office-31": ("amazon", "dslr", "webcam"), "office-home": ("Art", "Clipart", "Product", "Real_World")}
CLASSES = {"office-31": 31, "office-home": 65}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclasses.dataclass(frozen=True)
class Office(ClassificationTask):
    """The Office sets as LibMTL splits them. ``root`` is the folder of pictures and lists, default
    $MTLCORE_DATA/NAME with the name of the set.

    Lists are ``DOMAIN_{train,val,test}.txt`` in ``root`` or ``root/data_txt/NAME``; a line is a picture's path relative
    to ``root`` and its class. [choice] The ResNet-18 starts without ImageNet weights, which are not shipped: numbers
    are not comparable with published ones. ``size`` is the side of the resized pictures.
    """

    root: str = ""
    name: str = choice("office-31", tuple(DOMAINS))
    size: int = integer(224, low=32)

    title = "Office: objects in several domains"
    about = "The official pictures, from a folder of yours; every domain has inputs of its own."
    sources = ()
    evaluation_batch = 64

    @property
    def tasks(self) -> tuple[str, ...]:
        """The domains."""
        return DOMAINS[self.name]

    @property
    def budget(self) -> Budget:
        """[paper] 100 epochs of batches of 64."""
        return Budget(steps=1, batch_size=64, learning_rate=1e-4, evaluations=20, epochs=100, schedule="constant")

    def load(self) -> Splits:
        """The three parts, of each domain."""
        layout = f"{DOMAINS[self.name][0]}_train.txt, ... in it or in data_txt/{self.name}, and the pictures they name"
        return _load(folder_of(self.name, self.root, layout), self.name, self.size)

    def trunk(self) -> nn.Module:
        """(N, 3, size, size) -> (N, 512)."""
        return resnet.resnet18()

    def head(self, task: str) -> nn.Module:
        """A linear classifier."""
        return nn.Linear(resnet.FEATURES, CLASSES[self.name])


@functools.cache
def _load(root: Path, name: str, size: int) -> Splits:
    parts = {}
    first = 0
    for part, word in (("train", "train"), ("validation", "val"), ("test", "test")):
        domains = {}
        for domain in DOMAINS[name]:
            places = [root / f"{domain}_{word}.txt", root / "data_txt" / name / f"{domain}_{word}.txt"]
            path = next((p for p in places if p.is_file()), places[0])
            examples = _listed(path, root, CLASSES[name])
            read = functools.partial(_read, examples, size, domain)
            domains[domain] = LazySplit(torch.empty(0), {}, np.arange(first, first + len(examples)), read=read)
            first += len(examples)
        parts[part] = MultiSplit.of(domains)
    return Splits(**parts)


def _listed(path: Path, root: Path, classes: int) -> list[tuple[Path, int]]:
    found = []
    for number, line in enumerate(lines(path), start=1):
        words = line.rsplit(maxsplit=1)
        if len(words) != 2 or not words[1].isdecimal() or int(words[1]) >= classes:
            raise DataError(f"{path}, line {number}: expected a picture and a class below {classes}.")
        found.append((inside(root, words[0], str(path)), int(words[1])))
    if not found:
        raise DataError(f"{path} names no picture.")
    return found


def _read(examples: list[tuple[Path, int]], size: int, domain: str, i: int) -> tuple[Tensor, dict[str, Tensor]]:
    path, label = examples[i]
    mean, std = (torch.tensor(v)[:, None, None] for v in (_MEAN, _STD))
    return (torch.from_numpy(image(path, (size, size))) - mean) / std, {domain: torch.tensor(label)}
