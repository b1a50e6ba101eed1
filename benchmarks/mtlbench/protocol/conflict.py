"""Gradient conflict along a run, measured for every method alike and without touching the run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.measures.disentanglement import feature_disentanglement
from mtlbench.measures.gradients import condition_number, magnitude_similarity
from mtlbench.measures.names import OF_FEATURES, OF_GRADIENTS
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
        apart: list[dict[str, float]] = []
        for batch in self._batches:  # one at a time: a row is as long as the trunk
            rows, found = self._rows(network, *batch)
            apart += [found] if found else []
            there = ~rows[:, :1].isnan()
            rows = rows.nan_to_num()
            noisy.append(_angles(rows))
            total = rows if total is None else total.add_(rows)
            counts = there.float() if counts is None else counts + there
        network.train(training)
        assert total is not None
        assert counts is not None
        averaged = _angles(total.div_(counts.clamp_min(1.0)))
        minibatch = statistics.fmean(n["min_cosine"] for n in noisy) if noisy[0] else None
        shares = {name: _mean([a.get(name) for a in apart]) for name in OF_FEATURES}
        self.seen.append({"step": step, **averaged, "min_cosine_minibatch": minibatch, **shares})

    def _rows(self, network: Network, inputs: Inputs, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """(K, P) gradients, NaN for a sub-task without labels in this batch; and how far the tasks use different
        channels of the shared features, by the names of OF_FEATURES; nothing where there are none to share."""
        outputs, features = network(inputs)
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
        return torch.stack(rows), _disentanglement(losses, features)

    def summary(self) -> dict[str, float | None]:
        """Means over training; the point before training, equal for all methods, is left out."""
        out: dict[str, float | None] = {}
        for name in (*OF_GRADIENTS, *OF_FEATURES):
            out[name] = _mean([point[name] for point in self.seen[1:]])
        return out


def _mean(values: Sequence[float | None]) -> float | None:
    """None where there is none, or one is not known."""
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _disentanglement(losses: Mapping[str, Tensor], features: Any) -> dict[str, float]:
    if not isinstance(features, Tensor) or features.dim() < 2 or len(losses) < 2:
        return {}
    found = [torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)[0] for loss in losses.values()]
    if any(g is None or not bool(g.isfinite().all()) or not bool(g.any()) for g in found):
        return {}  # a task that does not use the features has no share in them
    gradients = torch.stack(found)
    plain = feature_disentanglement(gradients)
    out = dict(zip(OF_FEATURES, (plain.overlap, plain.cosine, plain.entropy), strict=False))
    features = features.detach()
    if bool(features.isfinite().all()) and all(bool((g * features).any()) for g in found):
        out[OF_FEATURES[-1]] = feature_disentanglement(gradients, features).overlap
    return out


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
        "min_cosine": float(off.min()) if off.numel() else 1.0,
        "mean_cosine": float(off.mean()) if off.numel() else 1.0,
        "norm_ratio": float(norms.max()) / least if least > 0 else float("inf"),
        "magnitude_similarity": magnitude_similarity(gramian) if off.numel() else 1.0,
        "condition": condition_number(gramian),
    }
