"""Which checkpoint of a run is kept: the best on validation data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mtlbench.protocol.delta_m import delta_m
from mtlbench.tasks.base import BenchmarkTask, Metric, Network, Split, evaluate


class Best:
    """Keeps the checkpoint with the lowest validation score."""

    def __init__(self, score: Callable[[dict[str, float]], float | None]) -> None:
        self._score = score
        self._lowest = float("inf")
        self._weights: dict[str, Tensor] | None = None
        self.step = -1
        self.metrics: dict[str, float] = {}
        self.seen: list[dict[str, Any]] = []

    def look(self, step: int, metrics: dict[str, float], network: Network) -> None:
        """Keep the weights if no look before was as good."""
        score = self._score(metrics)
        if score is not None and math.isnan(score):  # no number is smaller: it would stay the best for ever
            score = None
        self.seen.append({"step": step + 1, "score": score, "metrics": metrics})
        if self._weights is None or (score is not None and score < self._lowest):
            self._lowest = float("inf") if score is None else score
            self._weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
            self.step, self.metrics = step + 1, metrics

    def test(self, task: BenchmarkTask, network: Network, split: Split) -> dict[str, float]:
        """The one and only look at the test part."""
        assert self._weights is not None
        network.load_state_dict(self._weights)
        return evaluate(task, network, split)


class OwnScore:
    """Score of a single-task network: delta-m of its own metrics against its own first look (the first one for which
    that exists), since they may have different units. With one metric this is the order of the metric itself."""

    def __init__(self, own: tuple[Metric, ...]) -> None:
        self._own = own
        self._first: dict[str, float] = {}

    def __call__(self, metrics: dict[str, float]) -> float | None:
        """None where it does not exist."""
        score = delta_m(metrics, self._first, self._own)
        if score is None and delta_m(metrics, metrics, self._own) is not None:
            self._first, score = metrics, 0.0
        return score
