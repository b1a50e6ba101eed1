"""A discriminator of predictions that knows where they come from, and the two losses of the game with it.

In the manner of SemiMTL (Wang et al. 2022) [paper, abstract]; sources, losses and sizes are ours, because the paper's
formulas could not be read [choice].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRUE, SEEN, UNSEEN = 0, 1, 2
"""The sources: a true label, a prediction on the domain with labels, a prediction on the other one."""
WISHES = {"cross": (SEEN,), "gt": (TRUE,), "both": (TRUE, SEEN), "plain": (SEEN,)}
"""Alignment -> the sources that predictions without labels shall be taken for. "plain": a judge without labels."""


class Judge(nn.Sequential):
    """Probabilities of a prediction (N, C) -> logits of its source (N, sources); with two sources the true labels are
    none of them."""

    def __init__(self, classes: int, alignment: str) -> None:
        sources = 2 if alignment == "plain" else 3
        super().__init__(nn.Linear(classes, 32), nn.LeakyReLU(0.2), nn.Linear(32, sources))
        self.sources, self.classes = sources, classes

    def frozen(self, predictions: Tensor) -> Tensor:
        """The same logits; no gradient reaches the judge."""
        fixed = {n: p.detach() for n, p in self.named_parameters()}
        out: Tensor = torch.func.functional_call(self, fixed, (predictions,))
        return out

    def of_labels(self, label: Tensor) -> Tensor:
        """Logits (N, sources) of true labels (N,), as if they were sure predictions."""
        weight = next(self.parameters())
        out: Tensor = self(F.one_hot(label, self.classes).to(weight))
        return out


def own_loss(label: Tensor | None, seen: Tensor, unseen: Tensor) -> Tensor:
    """Of the judge: the cross-entropy of the sources, each counting alike. Who knows nothing has log K of K sources.

    Args:
        label: logits (N, 3) of true labels; None for a judge of two sources.
        seen: logits of predictions with labels, and ``unseen``: of those without.
    """
    found = [(seen, SEEN), (unseen, UNSEEN)] if label is None else [(label, TRUE), (seen, SEEN), (unseen, UNSEEN)]
    return torch.stack([F.cross_entropy(logits, _all(source, logits)) for logits, source in found]).mean()


def fooling_loss(unseen: Tensor, alignment: str) -> Tensor:
    """Of the network: the cross-entropy of the wished sources, for logits of predictions without labels."""
    return torch.stack([F.cross_entropy(unseen, _all(source, unseen)) for source in WISHES[alignment]]).mean()


def _all(source: int, logits: Tensor) -> Tensor:
    number = source - (3 - logits.shape[1])  # a judge of two sources does not count the first
    return torch.full((len(logits),), number, device=logits.device)
