"""Micro-batches of a method on losses: their graphs wait until the weights are known.

The gradient of a step is sum_i w_i G_i with G_i = sum_m g_i^m, the sum over micro-batches m, and weights w that depend
on the losses of the whole batch. They are known only after the last micro-batch. If the graphs of the others are gone
by then, whatever was kept must give sum_i w_i G_i for every w that may come, so that it determines G_1 .. G_K: K x P
numbers (where the G_i are linearly independent, and nothing else is known of the method). So exactness costs one of:

* the graphs (this file): no further pass, no K x P numbers, and the memory of the whole batch's graphs;
* K x P numbers, and K passes per micro-batch: ``gradients="sequential"`` on the MultiTask;
* a second forward pass per micro-batch, by who calls: the losses of all of them first, then the weights.

The sum over micro-batches is made of the losses, so that one backward pass goes through all graphs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlcore import inputs
from mtlcore.inputs import Features, Losses


def together(
    parts: Sequence[tuple[Losses, Features]], tasks: tuple[str, ...] | None
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Several micro-batches as one batch: each task's losses added up, and all features.

    Args:
        parts: (losses, features) of each; tasks may be missing.
        tasks: of the run, or None before its first batch.

    Raises:
        LossError, FeaturesError: as a step raises them for what one of them has.
    """
    sums: dict[str, Tensor] = {}
    for losses, _ in parts:
        presence, scalars = inputs.present_losses(losses, tasks)
        for name, loss in zip(presence.present, scalars):
            sums[name] = sums[name] + loss if name in sums else loss
    return sums, tuple([f for _, features in parts for f in inputs.flat(features)])
