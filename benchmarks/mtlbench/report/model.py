"""What a report says, typed: `mtl bench report --json` writes exactly these fields."""

from __future__ import annotations

import dataclasses
from typing import Any

from mtlbench.formats import Hyperparameters, Short
from mtlbench.statistics import Comparison, Interval

Line = list[float | None]
"""Values of a curve; None is a gap."""


def shallow(thing: Interval | Comparison) -> dict[str, Any]:
    """The fields of a value as they are, to make a larger one of."""
    return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}


@dataclasses.dataclass(frozen=True)
class SuiteFacts:
    """Which suite the records belong to, and how it was called."""

    name: str
    title: str
    about: str
    reference: str
    tuning_trials: int
    learning_rates: int
    source: str
    seeds: int | None
    left_out: list[str]
    refused: list[str]
    protocol: str
    protocol_about: str
    protocol_source: str
    protocol_traps: list[str]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that failed."""

    task: str
    method: str
    seed: int
    error: str | None


@dataclasses.dataclass(frozen=True)
class State:
    """What is there and what is not."""

    finished: int
    failed: list[Failure]
    missing: list[str]
    unscored: list[str]
    torn_lines: int
    unreadable: list[str]
    outdated: int


@dataclasses.dataclass(frozen=True)
class MetricFacts:
    """A metric as its task declares it; the direction is None where the task is not installed."""

    task: str
    name: str
    higher_is_better: bool | None
    unit: str
    key: str
    judged: bool = True


@dataclasses.dataclass(frozen=True)
class Score(Interval):
    """Delta-m of one method on one task."""

    values: dict[int, float]
    interquartile_mean: float | None


@dataclasses.dataclass(frozen=True)
class Versus(Comparison):
    """A comparison with the reference."""

    probability_of_improvement: float | None = None


@dataclasses.dataclass(frozen=True)
class Moves:
    """Teleports of one method, over its runs."""

    runs: int
    detector_fired: int
    tried: int
    accepted: int
    detector_looked: int | None
    conflict_before: float | None
    conflict_after: float | None
    share_of_time: float | None
    largest_relative_loss_change: float | None
    refused_because: dict[str, int]


@dataclasses.dataclass(frozen=True)
class LossLines:
    """Mean training losses."""

    step: list[float]
    by_task: dict[str, Line]


@dataclasses.dataclass(frozen=True)
class ConflictLines:
    """Mean conflict along training."""

    step: list[float]
    min_cosine: Line
    mean_cosine: Line
    norm_ratio: Line
    min_cosine_minibatch: Line


@dataclasses.dataclass(frozen=True)
class ScoreLine:
    """Mean validation score along training."""

    step: list[float]
    score: Line


@dataclasses.dataclass(frozen=True)
class Lines:
    """The curves of one method, as means over its runs (the first 32 seeds where there are more)."""

    loss: LossLines | None = None
    conflict: ConflictLines | None = None
    validation: ScoreLine | None = None


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """One method on one task."""

    name: str
    front: str
    n: int
    metrics: dict[str, Interval | None]
    seconds_per_step: float | None
    ratio_to_sum: float | None
    peak_memory_mb: float | None
    memory_above_start_mb: float | None
    device_memory_mb: float | None
    hyperparameters: Hyperparameters
    certificate: Short | None
    gradient_source: str | None
    diagnostics: dict[str, float | None]
    seeds: list[int]
    curves: Lines
    delta_m: Score | None = None
    versus_single_task: Comparison | None = None
    versus_reference: Versus | None = None
    metrics_versus_reference: dict[str, Comparison] = dataclasses.field(default_factory=dict)
    conflict: dict[str, float | None] = dataclasses.field(default_factory=dict)
    teleports: Moves | None = None
    guarantees: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Teleporting(Comparison):
    """A method that teleports, against the same aggregator without."""

    name: str = ""
    without: str = ""
    extra_time: float | None = None
    min_cosine_with: float | None = None
    min_cosine_without: float | None = None


@dataclasses.dataclass(frozen=True)
class BestPoint:
    """The best single method of a front."""

    name: str
    hypervolume: Interval


@dataclasses.dataclass(frozen=True)
class Front:
    """Indicators of one front."""

    name: str
    methods: list[str]
    hypervolume: Interval
    best: BestPoint
    spread: Interval
    not_dominated: float | None


@dataclasses.dataclass(frozen=True)
class IdentifierRow:
    """Something measured during training that may tell how well tasks go together, and whether it does.

    Args:
        name: as in ``conflict`` of a method; ``title``: in words.
        methods: how many have it and a delta-m.
        similarity: ranking similarity with delta-m, 1 where the methods with less trouble are the better ones.
        p, p_holm: of no connection; corrected for the identifiers of the task.
    """

    name: str
    title: str
    methods: int
    similarity: float | None
    p: float | None
    p_holm: float | None


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """Everything about one task.

    Args:
        rules: by which its runs were trained and judged, in words; empty where no record says it.
        departures: where they are not those of the suite's protocol.
    """

    name: str
    title: str
    about: str
    metrics: list[MetricFacts]
    budget: dict[str, Any] | None
    teleporting: list[Teleporting]
    fronts: list[Front]
    methods: list[MethodRow]
    splits: dict[str, str] | None
    identifiers: list[IdentifierRow]
    rules: str = ""
    departures: list[str] = dataclasses.field(default_factory=list)

    def scored(self) -> list[MethodRow]:
        """The methods that can have a delta-m: all but the baseline."""
        return [m for m in self.methods if m.delta_m is not None]


@dataclasses.dataclass(frozen=True)
class OverallRow:
    """One method over all tasks."""

    name: str
    n: int
    delta_m: Interval
    interquartile_mean: Interval
    versus_reference: Comparison | None
    probability_of_improvement: float | None
    mean_rank: float
    profile: list[float]


@dataclasses.dataclass(frozen=True)
class Overall:
    """All tasks together.

    ``critical_difference``: two mean ranks that are further apart differ by Nemenyi's test at 5 %.
    """

    tasks: int
    thresholds: list[float]
    methods: list[OverallRow]
    critical_difference: float | None = None


@dataclasses.dataclass(frozen=True)
class TunedRow:
    """What tuning chose for one method on one task."""

    task: str
    method: str
    learning_rate: float
    trial: int
    score: float
    at_the_edge: bool
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LawRow:
    """A certificate's word on one law."""

    law: str
    claimed: bool
    status: str
    examples: int | None
    worst_margin: float | None


@dataclasses.dataclass(frozen=True)
class CertificateRow:
    """A certificate of one plugin."""

    kind: str
    name: str
    options: dict[str, Any]
    passed: bool | None
    summary: str
    seconds: float | None
    laws: list[LawRow]


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole report."""

    suite: SuiteFacts
    state: State
    tasks: list[TaskReport]
    tuned: list[TunedRow]
    overall: Overall | None
    certificates: list[CertificateRow]
    uncertified: list[str]
    """Methods that were trained without asking."""
    allowed: list[str]
    """Methods that were trained although they are not certified, because that was asked for."""
    environment: dict[str, list[Any]]
    files: dict[str, str]
    verdict: list[str] = dataclasses.field(default_factory=list)
