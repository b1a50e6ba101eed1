"""What is in the files of a results folder, typed: the runner writes these, the report reads them.

Anybody may write them. More fields than these are allowed everywhere and ignored; a field may be missing unless it says
otherwise here. NaN and infinity, which other writers may use, are numbers here and missing values wherever something is
computed.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mtlbench.suite import Suite

Number = float | None
"""None stands for what is not finite."""
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""What tables of 64-bit numbers can hold exactly."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, protected_namespaces=())


class LossCurve(_Open):
    """Training losses: one value of each sub-task for each step."""

    step: list[float]
    by_task: dict[str, list[Number]]


class Look(_Open):
    """One look at the validation part."""

    step: float
    score: Number
    metrics: dict[str, Number] | None = None


class Curves(_Open):
    """Of one run, over its steps."""

    loss: LossCurve
    conflict: list[dict[str, Number]]
    validation: list[Look]


class Teleports(_Open):
    """What the teleports of one run came to."""

    detector_fired: Whole
    tried: Whole
    accepted: Whole
    share_of_time: Number
    conflict_before: Number
    conflict_after: Number
    largest_relative_loss_change: Number
    refused_because: dict[str, Whole] | None = None
    detector_looked: Whole | None = None
    steps: list[Whole] | None = None
    seconds: Number = None


class UsedBudget(_Open):
    """What a network was trained with."""

    model_config = ConfigDict(extra="allow")

    steps: Whole
    batch_size: Whole
    learning_rate: float


class UsedMethod(_Open):
    """The plugins of a method and their options, as far as a record says them."""

    model_config = ConfigDict(extra="allow")

    aggregator: str = "?"
    options: dict[str, Any] = {}
    detector: str | None = None
    detector_options: dict[str, Any] = {}
    teleport: str | None = None
    teleport_options: dict[str, Any] = {}
    brakes: dict[str, Any] = {}


class Hyperparameters(_Open):
    """What a run was made with."""

    budget: UsedBudget | None = None
    task_options: dict[str, Any] | None = None
    method: UsedMethod | None = None


class Short(_Open):
    """A certificate as a record keeps it."""

    passed: bool | None = None
    summary: str = ""


class Key(NamedTuple):
    """What a record is the result of; the hash is that of the configuration."""

    task: str
    method: str
    seed: int
    config_hash: str


class Record(_Open):
    """One run: a line of records.jsonl or trials.jsonl. Says at least what it is a record of and how it ended."""

    suite: str | None = None
    task: str
    method: str
    seed: Whole
    status: str
    metrics: dict[str, Number] | None = None
    delta_m: Number = None
    seconds_per_step: Number = None
    peak_memory_mb: Number = None
    environment: dict[str, Any] | None = None
    config_hash: str = ""
    hyperparameters: Hyperparameters | None = None
    certificate: Short | None = None
    trial: Whole | None = None
    error: str | None = None
    traceback: str | None = None
    validation: dict[str, Number] | None = None
    selected_step: Whole | None = None
    ratio_to_sum: Number = None
    seconds: Number = None
    memory_above_start_mb: Number = None
    device_memory_mb: Number = None
    curves: Annotated[Curves | None, BeforeValidator(lambda given: given or None)] = None
    conflict: dict[str, Number] | None = None
    teleports: Teleports | None = None
    gradient_source: str | None = None
    diagnostics: dict[str, Number] | None = None
    splits: dict[str, str] | None = None
    finished_at: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the run finished; what did not is tried again."""
        return self.status == "ok"

    @property
    def key(self) -> Key:
        """What it is the result of."""
        return Key(self.task, self.method, self.seed, self.config_hash)


class Chosen(_Open):
    """What tuning chose for one method."""

    learning_rate: float
    trial: Whole
    score: float
    options: dict[str, Any]
    at_the_edge: bool = False


class Manifest(_Open):
    """suite.json: what the records in the folder are meant to be."""

    suite: Suite | None = None
    source: str | None = None
    seeds: Whole | None = None
    current: dict[str, list[str]] = {}
    tuned: dict[str, dict[str, Chosen]] = {}
    left_out: list[str] = []
    refused: list[str] = []


class Row(_Open):
    """A certificate's word on one law."""

    law: str
    claimed: bool
    status: str
    examples: Whole | None = None
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
    found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()]
    return "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
