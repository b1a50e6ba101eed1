"""Recon's scores: a ranking of the layers that should be task-specific [Shi et al. 2023, 2302.11289; official code].

::

    sizes = mtlplugins.layers.layers_of(trunk)
    detector = mtlcore.create("detector", "layer-conflict", sizes=sizes_of(trunk), threshold=0.02)
    scores = LayerScores(tuple(sizes))
    for batch in loader:                      # a quarter of the iterations is enough [paper*]
        scores.add(mt.step(closure).conflict)
    scores.ranking()[:25]                     # the layers to give to each task, before training anew
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mtlcore import Conflict


class LayerScores:
    """The number of conflicts in every layer, summed over steps and pairs of tasks.

    Args:
        layers: their names, in the order of the detector's ``sizes``.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = tuple(layers)
        self.counts = torch.zeros(len(self.layers), dtype=torch.int64)
        self.steps = 0

    def add(self, conflict: Conflict | None) -> None:
        """Add the counts of one step; None (a step without detection) adds nothing.

        Raises:
            ValueError: it is not from ``layer-conflict``, or has another number of layers.
        """
        if conflict is None:
            return
        found = conflict.diagnostics.get("layer_conflicts")
        if not isinstance(found, torch.Tensor) or found.shape != self.counts.shape:
            has = "no counts of layers" if found is None else f"{len(found)} layers"
            raise ValueError(f"expected the verdict of 'layer-conflict' on {len(self.layers)} layers, found {has}.")
        self.counts = self.counts + found
        self.steps += 1

    def ranking(self) -> list[tuple[str, int]]:
        """(layer, score), the largest score first; equal scores in the order of the network."""
        order = sorted(range(len(self.layers)), key=lambda i: -int(self.counts[i]))
        return [(self.layers[i], int(self.counts[i])) for i in order]
