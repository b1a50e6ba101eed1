"""What a run is made of, and where it stands."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from torch import Tensor, nn

from mtlcore import audit, configuration, inputs, roster, scaling, trajectory
from mtlcore.contracts import Aggregator, ConflictDetector, Needs
from mtlcore.distributed.dtensors import is_sharded
from mtlcore.distributed.processes import Processes
from mtlcore.distributed.sums import Sums
from mtlcore.errors import ConfigurationError
from mtlcore.geometry.metric import EUCLIDEAN
from mtlcore.geometry.promise import Promise
from mtlcore.gradients.accumulation import MicroBatches
from mtlcore.gradients.planner import Planner
from mtlcore.gradients.refresh import Keeper
from mtlcore.gradients.storage import Storage
from mtlcore.inputs import Closure, Features, Losses
from mtlcore.progress import Progress
from mtlcore.registry import registry
from mtlcore.step.alone import Turn
from mtlcore.teleporting import Brakes, Teleporter
from mtlcore.trajectory import Optimizers


@dataclasses.dataclass(frozen=True)
class Pending:
    """The micro-batches before the last one of a step.

    Args:
        added: those of a method that reads gradients, differentiated.
        waiting: those of one that reads losses only, with their graphs.
        shards: the first kind, where the trunk is in shards.
    """

    added: MicroBatches | None = None
    waiting: tuple[tuple[Losses, Features], ...] = ()
    shards: Sums | None = None

    def __bool__(self) -> bool:
        return self.added is not None or self.shards is not None or bool(self.waiting)


@dataclasses.dataclass
class Run:
    """The arguments of ``MultiTask``, looked up and checked (it documents them); and what changes with the steps.

    Args:
        heads_then: the parameters that the heads had at the start.
        teleporter: the teleport strategy with its transaction.
        progress: what the run has learnt so far; a step replaces it at its end.
        reach: the watch over parameters that no task, or one task alone, reaches.
        pending: micro-batches that wait for the last one of their step.
        promise: about the optimizer's next step, with ``metric="step"``.
        turn: which call of this run is under way.
        audited: the parameters of the trunk that trained when it was looked whether the optimizer holds them, by
            identity; None: look at the next step.
        moved: memory of ``taken=True``.
    """

    trunk: nn.Module | None
    parameters: list[nn.Parameter]
    aggregator: Aggregator
    detector: ConflictDetector | None
    optimizer: Optimizers
    brakes: Brakes
    heads: nn.Module | None
    probe: Closure | None
    planner: Planner
    metric: str
    taken: bool
    processes: Processes
    name: str
    progress: Progress
    teleporter: Teleporter | None = None
    keeper: Keeper | None = None
    heads_then: list[nn.Parameter] = dataclasses.field(init=False)
    reach: audit.Reach = dataclasses.field(default_factory=audit.Reach)
    pending: Pending = Pending()
    promise: Promise = dataclasses.field(default_factory=Promise)
    turn: Turn = dataclasses.field(default_factory=Turn)
    audited: frozenset[int] | None = None
    moved: Storage = dataclasses.field(default_factory=Storage)

    def __post_init__(self) -> None:
        self.heads_then = [] if self.heads is None else list(self.heads.parameters())

    def __getstate__(self) -> dict[str, Any]:
        """Of a run between two steps: no copy has the graphs of micro-batches, nor their gradients by identity."""
        if self.pending:
            raise ConfigurationError(
                "micro-batches are waiting, and a copy would lose their gradients: finish the step with "
                "backward(losses) before this MultiTask is copied or pickled."
            )
        return dict(vars(self))

    # --- who -------------------------------------------------------------------------------------------------

    @property
    def who(self) -> str:
        """The method and its distribution, for messages."""
        return registry().identify(self.aggregator)

    def plugins(self) -> dict[str, Any]:
        """Role -> plugin."""
        strategy = None if self.teleporter is None else self.teleporter.strategy
        return {"aggregator": self.aggregator, "detector": self.detector, "teleport": strategy}

    def settings(self) -> dict[str, Any]:
        """The other arguments on which it depends what a step does, in plain values: several processes compare them."""
        groups = [group for o in trajectory.each(self.optimizer) for group in o.param_groups]
        return {
            "optimizer": [type(o).__name__ for o in trajectory.each(self.optimizer)],
            "optimizer's options": {f"group {i}": configuration.plain(g) for i, g in enumerate(groups)},
            "metric": self.metric,
            "taken": self.taken,
            "refresh": None if self.keeper is None else dataclasses.asdict(self.keeper.policy),
            "brakes": dataclasses.asdict(self.brakes),
            "teleporter": None if self.teleporter is None else self.teleporter.options,
        }

    def modules(self) -> list[nn.Module]:
        """Trunk and heads, as far as they are modules."""
        return [m for m in (self.trunk, self.heads) if m is not None]

    def shared(self) -> tuple[nn.Parameter, ...]:
        """The parameters of the trunk that train."""
        return tuple([p for p in self.parameters if p.requires_grad])

    def held(self) -> list[nn.Parameter]:
        """The parameters that the optimizers hold."""
        return [p for o in trajectory.each(self.optimizer) for group in o.param_groups for p in group["params"]]

    def names(self) -> dict[int, str]:
        """id of a parameter of the trunk -> its name."""
        return inputs.parameter_names(self.trunk, self.parameters)

    def scale(self, scaler: Any) -> float | None:
        """The present scale of a ``GradScaler``; None without one."""
        return scaling.scale_of(scaler, self.parameters[0].device)

    def named(self, losses: Losses, features: Features) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """The tasks present, by name; and the features in a row."""
        tasks = self.progress.tasks
        return {n: v for n, v in inputs.by_name(losses, tasks).items() if v is not None}, inputs.flat(features)

    @functools.cached_property
    def sharded(self) -> bool:
        """Whether the trunk is in shards (FSDP2). A trunk that is sharded later has other parameters."""
        return is_sharded(self.parameters)

    # --- what a step has to do ----------------------------------------------------------------------------------

    @property
    def whole_rows(self) -> bool:
        """Whether the step reads rows, whatever the method does."""
        return self.metric != EUCLIDEAN

    def needs(self) -> Needs:
        """The most that somebody reads in this step."""
        needs = self.aggregator.needs
        if self.detector is not None and self.looks_for_conflict():
            needs = max(needs, self.detector.needs)
        return max(needs, Needs.GRAMIAN) if self.whole_rows or self.taken else needs

    def looks_for_conflict(self) -> bool:
        """Whether the detector is asked in this step. Where that costs task gradients which the method does not need,
        and a verdict could not lead to a teleport, it is not."""
        if self.detector is None or self.progress.step % self.brakes.detect_every:
            return False
        free = self.aggregator.needs >= self.detector.needs
        return free or self.teleporter is None or self.may_teleport()

    def may_teleport(self) -> bool:
        """Whether the brakes allow a teleport in this step."""
        progress = self.progress
        return self.teleporter is not None and self.brakes.allows(progress.step, progress.teleport_steps)

    # --- a vector of losses -------------------------------------------------------------------------------------

    def anonymous(self, losses: Losses) -> bool:
        """Whether these are a vector of anonymous tasks: no number of the run belongs to one of them.

        Raises:
            ConfigurationError: weights are to be kept for other samples.
        """
        if not isinstance(losses, Tensor) or self.progress.tasks is not None or self._task_state:
            return False
        if self.keeper is not None:
            raise ConfigurationError("refresh keeps weights by task, and a vector of losses has none: leave it out.")
        return True

    def refuse_anonymous(self, losses: Losses) -> None:
        """
        Raises:
            ConfigurationError: these are anonymous tasks.
        """
        if self.anonymous(losses):
            raise ConfigurationError(
                "micro-batches are added up task by task, and the losses of a vector have no names: hand over "
                "{task: loss}, or take the vector's whole batch in one backward."
            )

    @functools.cached_property
    def _task_state(self) -> bool:
        return roster.has_task_state(self.aggregator)

    # --- between two steps --------------------------------------------------------------------------------------

    def exchange_optimizer(self, optimizer: Optimizers) -> None:
        """Another one from the next step on, held to what the first one was.

        Raises:
            ConfigurationError, TeleportError: as ``MultiTask`` raises them for its ``optimizer``.
        """
        inputs.check_helpers(optimizer, None, None)
        if self.teleporter is not None and self.teleporter.history == "carry":
            trajectory.check_supported(optimizer)
        self.optimizer, self.audited = optimizer, None

    def audit_optimizer(self) -> None:
        """Once for each optimizer and each set of parameters that train; ``audit.check_optimizer`` says what is
        raised."""
        shared = self.shared()
        training = frozenset(map(id, shared))
        if training == self.audited:
            return
        names = self.names()
        audit.check_optimizer(trajectory.each(self.optimizer), shared, [names[id(p)] for p in shared])
        self.audited = training

    def take_pending(self) -> Pending:
        """The micro-batches so far; they are forgotten here, whether or not the step succeeds."""
        pending, self.pending = self.pending, Pending()
        return pending

    def watch_anew(self) -> None:
        """Tasks or parameters are others now: look again at who reaches what."""
        self.reach = audit.Reach()

    def refresh_parameters(self) -> None:
        """
        Raises:
            ConfigurationError: the trunk was handed over as a list of parameters.
        """
        if self.trunk is None:
            raise ConfigurationError(
                "refresh_parameters needs the trunk as an nn.Module; this MultiTask was made of a list of parameters: "
                "make a new one of the new list, and load_state_dict(old.state_dict())."
            )
        self.parameters = inputs.trunk_parameters(self.trunk)
        vars(self).pop("sharded", None)
        self.audited = None
        self.watch_anew()
        self.processes.forget()
        self.pending = Pending()

    def describe(self) -> str:
        """The run in a line."""
        shared = sum(p.numel() for p in self.shared())
        parts = [repr(self.name)] if self.name else []
        parts.append(f"{registry().name_of(self.aggregator)} on {shared:,} shared parameters")
        if self.detector is not None:
            parts.append(f"detector {registry().name_of(self.detector)}")
        if self.teleporter is not None:
            parts.append(f"teleport {self.teleporter.name}")
        tasks = self.progress.tasks
        parts.append("tasks as they come" if tasks is None else f"tasks {', '.join(map(str, tasks))}")
        return f"MultiTask({'; '.join(parts)}; after {self.progress.step} steps)"
