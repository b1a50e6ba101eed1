"""Gradient conflict along a run, measured for every method alike and without touching the run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtlbench.protocol.randomness import batches, seed_for
from mtlbench.tasks.base import BenchmarkTask, Inputs, Network, Split, losses_of, moved

PROBE_BATCHES = 4
"""Mini-batches per probe: their gradients are looked at one by one (with mini-batch noise) and averaged."""


class ConflictProbe:
    """Cosines and norms of the task gradients of the trunk, on the same probe batches for every method.

    In evaluation mode: the network is only looked at (no batch statistics move, no random number is drawn).
    """

    def __init__(
        self, task_name: str, task: BenchmarkTask, train: Split, seed: int, batch_size: int, device: str = "cpu"
    ) -> None:
        stream = batches(len(train), batch_size, seed_for("probe", task_name, seed))
        self._task = task
        self._batches = [moved(train.batch(next(stream)), device) for _ in range(PROBE_BATCHES)]
        self.seen: list[dict[str, Any]] = []

    def look(self, network: Network, step: int) -> None:
        """Where the network is in ``step``."""
        training = network.training
        network.eval()
        noisy, total, counts = [], None, None
        for batch in self._batches:  # one at a time: a row is as long as the trunk
            rows = self._rows(network, *batch)
            there = ~rows[:, :1].isnan()
            rows = rows.nan_to_num()
            noisy.append(_angles(rows))
            total = rows if total is None else total.add_(rows)
            counts = there.float() if counts is None else counts + there
        network.train(training)
        assert total is not None
        assert counts is not None
        averaged = _angles(total.div_(counts.clamp_min(1.0)))
        self.seen.append(
            {
                "step": step,
                "min_cosine": averaged["min"],
                "mean_cosine": averaged["mean"],
                "norm_ratio": averaged["ratio"],
                "min_cosine_minibatch": statistics.fmean(n["min"] for n in noisy) if noisy[0] else None,
            }
        )

    def _rows(self, network: Network, inputs: Inputs, targets: Mapping[str, Tensor]) -> Tensor:
        """(K, P) gradients; NaN for a sub-task without labels in this batch."""
        outputs, _ = network(inputs)
        losses = losses_of(self._task, outputs, targets)
        parameters = [p for p in network.trunk.parameters() if p.requires_grad]
        size = sum(p.numel() for p in parameters)
        rows = []
        for name in outputs:
            if name not in losses:
                rows.append(parameters[0].new_full((size,), torch.nan))
                continue
            found = torch.autograd.grad(losses[name], parameters, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)])
            )
        return torch.stack(rows)

    def summary(self) -> dict[str, float | None]:
        """Means over training; the point before training, equal for all methods, is left out."""
        after = self.seen[1:]
        return {
            name: statistics.fmean(point[name] for point in after) if after else None
            for name in ("min_cosine", "mean_cosine", "norm_ratio", "min_cosine_minibatch")
        }


_COLUMNS = 1 << 20


def _angles(rows: Tensor) -> dict[str, float]:
    """Of (K, P) gradients; products are summed in float64, some columns at a time."""
    gramian = sum(
        (part @ part.T for part in (c.to("cpu", torch.float64) for c in rows.split(_COLUMNS, dim=1))),
        start=torch.zeros(len(rows), len(rows), dtype=torch.float64),
    )
    norms = gramian.diagonal().sqrt()
    scale = norms.clamp_min(torch.finfo(torch.float64).tiny)
    cosines = gramian / scale[:, None] / scale
    off = cosines[torch.triu(torch.ones_like(cosines), diagonal=1).bool()]
    least = float(norms.min())
    return {
        "min": float(off.min()) if off.numel() else 1.0,
        "mean": float(off.mean()) if off.numel() else 1.0,
        "ratio": float(norms.max()) / least if least > 0 else float("inf"),
    }
