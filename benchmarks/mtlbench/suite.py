"""A suite file: which methods on which tasks, how often, with how much training. It holds only what differs from
the defaults; anything misspelt is refused with the place and the allowed names.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mtlcore.errors import ConfigurationError, did_you_mean, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Selection = Literal["best-validation", "last", "mean-of-last-epochs"]
Metric = Literal["euclidean", "optimizer", "step"]
Precision = Literal["float32", "bf16", "fp16"]
PROTOCOL_NAMES = ("validation", "nash-mtl", "ldc-mtl", "libmtl")
NOT_TRAINED_WITH = {"search", "search_weights", "optional", "front"}
"""Fields of a method that say how it is tuned and shown; no result of a run depends on them."""
SINGLE_TASK = "single-task"
"""Name of the baseline: one network per sub-task, same budget, same initial weights."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BudgetChanges(_Strict):
    """What differs from a task's default budget."""

    steps: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    evaluations: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    optimizer: str | None = None
    optimizer_options: dict[str, Any] | None = None
    head_learning_rate: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    schedule: str | None = None
    schedule_options: dict[str, Any] | None = None
    selection: Selection | None = None
    last_epochs: int | None = Field(None, ge=1)
    precision: Precision | None = None
    augment: bool | None = None
    train_on_validation: bool | None = None

    @model_validator(mode="after")
    def _length(self) -> BudgetChanges:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs both say how long a training is; give one of them")
        return self


class TaskEntry(_Strict):
    """A benchmark task: registered name, its options, and changes of its budget."""

    name: str
    options: dict[str, Any] = {}
    budget: BudgetChanges = BudgetChanges()


class MethodEntry(_Strict):
    """One line of the comparison.

    ``name`` is how the report calls it; ``aggregator`` defaults to it. ``search`` gives the values that tuning may
    choose an option from, besides its default; ``search_weights`` has it search fixed weights of the losses instead,
    task by task (``ls`` only). ``optional`` leaves the method out, with a note, where no plugin of that name exists;
    ``metric`` is that of ``MultiTask``, and with ``taken`` a record says how many of the optimizer's steps conflicted
    with a task; methods with the same ``front`` are drawn as one line, in their order, in a figure of metric against
    metric.
    """

    name: str = Field(pattern=r"^[^\s/][^/]*$")
    aggregator: str = ""
    options: dict[str, Any] = {}
    detector: str | None = None
    detector_options: dict[str, Any] = {}
    teleport: str | None = None
    teleport_options: dict[str, Any] = {}
    brakes: dict[str, Any] = {}
    tolerance: float | None = Field(None, gt=0)
    metric: Metric = "euclidean"
    taken: bool = False
    search: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    search_weights: bool = False
    optional: bool = False
    front: str = ""

    @model_validator(mode="before")
    @classmethod
    def _default_aggregator(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        if isinstance(data, dict):
            data = {"aggregator": data.get("name"), **data}
        return data

    @model_validator(mode="after")
    def _reserved(self) -> MethodEntry:
        if self.name == SINGLE_TASK:
            raise ValueError(f"{SINGLE_TASK!r} is the baseline, which is always run; choose another name")
        if self.search_weights and (self.aggregator != "ls" or self.search or {"weights", "draw"} & set(self.options)):
            raise ValueError(
                f"search_weights of {self.name!r} needs aggregator = 'ls', without search, weights and draw: fixed "
                "weights of the losses are all that it searches"
            )
        return self

    def plugins(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(kind, name, options) of every plugin it uses."""
        found = [("aggregator", self.aggregator, self.options)]
        if self.detector is not None:
            found.append(("detector", self.detector, self.detector_options))
        if self.teleport is not None:
            found.append(("teleport", self.teleport, self.teleport_options))
        return found


class Tuning(_Strict):
    """The tuning budget, the same number of trials for every method and for the baseline.

    First each of ``learning_rate_factors``, times the task's own learning rate, with the method's default options;
    then, at the best of these rates, the trials that are left try other options from the method's ``search``, or
    further learning rates where there are no more options; or they search weights of the losses. Trials are trained
    with a seed of their own and judged on validation data only. No trials: no tuning.
    """

    trials: int = Field(0, ge=0)
    learning_rate_factors: tuple[Annotated[float, Field(gt=0)], ...] = (1 / 3, 1.0, 3.0)

    @model_validator(mode="after")
    def _grid(self) -> Tuning:
        factors = self.learning_rate_factors
        if 1.0 not in factors or len(set(factors)) != len(factors) or len(factors) < 2:
            raise ValueError(
                f"learning_rate_factors {list(factors)} must be different numbers, with 1.0 (the task's own learning "
                "rate) and at least one other"
            )
        if 0 < self.trials < len(factors):
            raise ValueError(
                f"trials = {self.trials} cannot try {len(factors)} learning rates; give at least as many trials as "
                "learning_rate_factors, or 0 for no tuning"
            )
        return self


class Suite(_Strict):
    """A validated suite."""

    name: str
    title: str
    about: str = ""
    tasks: tuple[TaskEntry, ...] = Field(min_length=1)
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    seeds: int = Field(3, ge=1)
    budget: BudgetChanges = BudgetChanges()
    tuning: Tuning = Tuning()
    protocol: str = "validation"
    """Whose rules are followed: a name in :data:`mtlbench.protocols.PROTOCOLS`."""
    reference: str = "ls"
    """The method that the others are compared with in words."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = dict(data)
            data["tasks"] = [{"name": t} if isinstance(t, str) else t for t in data.get("tasks", [])]
        return data

    @model_validator(mode="after")
    def _distinct(self) -> Suite:
        for what, names in (("method", [m.name for m in self.methods]), ("task", [t.name for t in self.tasks])):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what} {', '.join(map(repr, twice))} is listed twice")
        return self

    @model_validator(mode="after")
    def _protocol(self) -> Suite:
        if self.protocol not in PROTOCOL_NAMES:
            raise ValueError(f"there is no protocol {self.protocol!r}. {suggestion(self.protocol, PROTOCOL_NAMES)}")
        return self

    def only(self, methods: Sequence[str] = (), tasks: Sequence[str] = ()) -> Suite:
        """The suite with some of its methods and tasks; nothing given: all.

        Raises:
            ConfigurationError: it has none of that name.
        """
        chosen: dict[str, Any] = {}
        for what, wanted, entries in (("methods", methods, self.methods), ("tasks", tasks, self.tasks)):
            names = [e.name for e in entries]
            for name in wanted:
                if name not in names:
                    raise ConfigurationError(
                        f"suite {self.name!r} has no {what[:-1]} {name!r}. {suggestion(name, names, 'It has')}"
                    )
            if wanted:
                chosen[what] = tuple(e for e in entries if e.name in wanted)
        return self.model_copy(update=chosen)


def shipped() -> list[str]:
    """Names of the suites that come with the package."""
    folder = resources.files("mtlbench") / "suites"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def read(name: str) -> Suite:
    """A shipped suite by name, or a suite file by path.

    Raises:
        ConfigurationError: no such suite, or what is wrong in it and where.
    """
    stem = Path(name).stem if _is_file(name) else name
    content = text(name)
    try:
        suite = Suite.model_validate({"name": stem, **tomllib.loads(content)})
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"suite {name!r} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(f"suite {name!r} is not valid: {'; '.join(_mistakes(error))}") from error
    # Only what a file says: the default need not be among the methods, and nothing is compared then.
    names = [m.name for m in suite.methods]
    if "reference" in suite.model_fields_set and suite.reference not in names:
        raise ConfigurationError(
            f"suite {name!r} is not valid: reference: there is no method {suite.reference!r}. "
            f"{suggestion(suite.reference, names)}"
        )
    return suite


def text(name: str) -> str:
    """The TOML of a shipped suite by name, or of a suite file by path.

    Raises:
        ConfigurationError: there is no such suite, or it cannot be read.
    """
    if _is_file(name):
        try:
            return Path(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigurationError(
                f"there is no suite file {name!r}. {did_you_mean(Path(name).stem, shipped(), 'Shipped suites')}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"suite file {name!r} cannot be read: {error}") from error
    if name not in shipped():
        raise ConfigurationError(
            f"there is no suite {name!r}. {did_you_mean(name, shipped(), 'Shipped')} `mtl bench list` shows all. A "
            "suite of your own is a .toml file: give its path."
        )
    return (resources.files("mtlbench") / "suites" / f"{name}.toml").read_text(encoding="utf-8")


def _is_file(name: str) -> bool:
    return Path(name).suffix == ".toml" or Path(name).is_file()


def suggestion(word: str, known: Sequence[str], otherwise: str = "Allowed") -> str:
    """The nearest of the known words, or all of them."""
    return did_you_mean(word, known, otherwise, n=1)


def _mistakes(error: ValidationError) -> list[str]:
    """One sentence per mistake, with its place. What is only a consequence of another mistake is left out."""
    mistakes = error.errors()
    unknown = [e["loc"] for e in mistakes if e["type"] == "extra_forbidden"]
    meant = {(*loc[:-1], *nearest(loc[-1], _allowed_at(loc[:-1]))) for loc in unknown}
    lines = []
    for e in mistakes:
        loc, text = e["loc"], e["msg"]
        others = (m["loc"] for m in mistakes if m is not e)
        if e["type"] in ("missing", "too_short") and (loc in meant or any(o[: len(loc)] == loc for o in others)):
            continue  # it is there, misspelt, or its entries are at fault
        if e["type"] == "extra_forbidden":
            text = f"there is no such key. {suggestion(str(loc[-1]), _allowed_at(loc[:-1]))}"
        lines.append(f"{'.'.join(map(str, loc)) or 'suite'}: {text.rstrip('.')}")
    return lines


def _allowed_at(place: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at a place in a suite file."""
    table: Any = Suite
    for step in place:
        if isinstance(step, str):
            table = table.model_fields[step].annotation
        else:
            (table, *_) = get_args(table)
    return list(table.model_fields)


def digest(configuration: Any) -> str:
    """A short hash of a configuration, by which a record says what exactly was run."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode()).hexdigest()[:12]
