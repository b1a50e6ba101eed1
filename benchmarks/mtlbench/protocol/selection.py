"""What of a run is judged: the checkpoint that validation chose, the last one, or the mean of the last epochs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mtlbench.protocol.delta_m import delta_m
from mtlbench.tasks.base import Metric, Network

Metrics = dict[str, float]
Evaluate = Callable[[Network], Metrics]
"""A look at the test part."""


class Selection:
    """Looks at validation along a run, and at the test part as its rule allows."""

    def __init__(self, score: Callable[[Metrics], float | None]) -> None:
        self._score = score
        self.step = -1
        self.metrics: Metrics = {}
        """Of the validation part, where the run is judged."""
        self.seen: list[dict[str, Any]] = []

    def look(self, step: int, metrics: Metrics, network: Network) -> float | None:
        """After step ``step``, counted from 0; the score, lower is better, None where it does not exist."""
        score = self._score(metrics) if metrics else None
        if score is not None and math.isnan(score):  # no number is smaller: it would stay the best for ever
            score = None
        self.seen.append({"step": step + 1, "score": score, "metrics": metrics})
        return score

    def test(self, network: Network, evaluate: Evaluate) -> Metrics:
        """The metrics that the run is judged by."""
        return evaluate(network)


class Best(Selection):
    """Keeps the checkpoint with the lowest validation score."""

    def __init__(self, score: Callable[[Metrics], float | None]) -> None:
        super().__init__(score)
        self._lowest = float("inf")
        self._weights: dict[str, Tensor] | None = None

    def look(self, step: int, metrics: Metrics, network: Network) -> float | None:
        """Keep the weights if no look before was as good."""
        score = super().look(step, metrics, network)
        if self._weights is None or (score is not None and score < self._lowest):
            self._lowest = float("inf") if score is None else score
            self._weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
            self.step, self.metrics = step + 1, metrics
        return score

    def test(self, network: Network, evaluate: Evaluate) -> Metrics:
        """The one and only look at the test part."""
        assert self._weights is not None
        network.load_state_dict(self._weights)
        return evaluate(network)


class Last(Selection):
    """The end of training, whatever validation says."""

    def look(self, step: int, metrics: Metrics, network: Network) -> float | None:
        """The last look counts."""
        self.step, self.metrics = step + 1, metrics
        return super().look(step, metrics, network)


class LastEpochs(Last):
    """The mean of the metrics at the ends of the last epochs, as the papers on scenes report."""

    def __init__(self, score: Callable[[Metrics], float | None], evaluate: Evaluate | None) -> None:
        """``evaluate`` looks at the test part; None in a trial of tuning, which never does."""
        super().__init__(score)
        self._evaluate = evaluate
        self._validation: list[Metrics] = []
        self._test: list[Metrics] = []

    def end_of_epoch(self, metrics: Metrics, network: Network) -> None:
        """One of the epochs that count."""
        self._validation.append(metrics)
        self.metrics = _mean(self._validation)
        if self._evaluate is not None:
            self._test.append(self._evaluate(network))

    def test(self, network: Network, evaluate: Evaluate) -> Metrics:
        """The mean of what has been seen."""
        return _mean(self._test) if self._test else evaluate(network)


def _mean(seen: list[Metrics]) -> Metrics:
    return {key: statistics.fmean(m[key] for m in seen) for key in seen[0]}


class OwnScore:
    """Score of a single-task network: delta-m of its own metrics against its own first look (the first one for which
    that exists), since they may have different units. With one metric this is the order of the metric itself."""

    def __init__(self, own: tuple[Metric, ...]) -> None:
        self._own = own
        self._first: Metrics = {}

    def __call__(self, metrics: Metrics) -> float | None:
        """None where it does not exist."""
        score = delta_m(metrics, self._first, self._own)
        if score is None and delta_m(metrics, metrics, self._own) is not None:
            self._first, score = metrics, 0.0
        return score
