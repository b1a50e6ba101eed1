"""What is in the files of a results folder, as far as the report and the next run rely on it. Anybody may write them.

More fields than these are allowed everywhere; a field may be missing unless it says otherwise here.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from mtlbench.suite import Suite

Number = float | None
"""None stands for what is not finite."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True, protected_namespaces=())


class LossCurve(_Open):
    """Training losses: one value of each sub-task for each step."""

    step: list[float]
    by_task: dict[str, list[Number]]


class Look(_Open):
    """One look at the validation part."""

    step: float
    score: Number


class Curves(_Open):
    """Of one run, over its steps."""

    loss: LossCurve
    conflict: list[dict[str, Number]]
    validation: list[Look]


class Teleports(_Open):
    """What the teleports of one run came to."""

    detector_fired: int
    tried: int
    accepted: int
    share_of_time: Number
    conflict_before: Number
    conflict_after: Number
    largest_relative_loss_change: Number
    refused_because: dict[str, int] | None = None


class UsedBudget(_Open):
    """What a network was trained with."""

    steps: int
    batch_size: int
    learning_rate: float


class Hyperparameters(_Open):
    """What a run was made with."""

    budget: UsedBudget | None = None
    method: dict[str, Any] | None = None


class Record(_Open):
    """One run: a line of records.jsonl or trials.jsonl. Says at least what it is a record of and how it ended."""

    task: str
    method: str
    seed: int
    status: str
    suite: str | None = None
    config_hash: str = ""
    error: str | None = None
    metrics: dict[str, Number] | None = None
    validation: dict[str, Number] | None = None
    delta_m: Number = None
    seconds_per_step: Number = None
    ratio_to_sum: Number = None
    peak_memory_mb: Number = None
    memory_above_start_mb: Number = None
    environment: dict[str, Any] | None = None
    hyperparameters: Hyperparameters | None = None
    curves: Annotated[Curves | None, BeforeValidator(lambda given: given or None)] = None
    conflict: dict[str, Number] | None = None
    diagnostics: dict[str, Number] | None = None
    teleports: Teleports | None = None
    gradient_source: str | None = None
    certificate: dict[str, Any] | None = None
    splits: dict[str, str] | None = None


class Chosen(_Open):
    """What tuning chose for one method."""

    learning_rate: float
    trial: int
    score: float
    options: dict[str, Any]
    at_the_edge: bool = False


class Manifest(_Open):
    """suite.json: what the records in the folder are meant to be."""

    suite: Suite | None = None
    source: str | None = None
    seeds: int | None = None
    current: dict[str, list[str]] = {}
    tuned: dict[str, dict[str, Chosen]] = {}
    left_out: list[str] = []
    refused: list[str] = []


class Row(_Open):
    """A certificate's word on one law."""

    law: str
    claimed: bool
    status: str
    examples: int | None = None
    worst_margin: Number = None


class Answer(_Open):
    """What a certifier says of a plugin; ``passed`` is None if nobody can say."""

    passed: bool | None
    summary: str
    rows: list[Row]


class Certificate(Answer):
    """An answer, and whom it is about."""

    kind: str
    name: str
    options: dict[str, Any] = {}
    seconds: float | None = None


def mistakes(error: ValidationError) -> str:
    """The places and what is wrong there, for instance "curves.loss: Field required"."""
    found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
