"""A run, made of the arguments of ``MultiTask``: plugins looked up, and combinations that cannot work refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from mtlcore import hyperparameters, inputs, trajectory
from mtlcore.contracts import Aggregator, ConflictDetector, Needs, TeleportStrategy
from mtlcore.distributed import refusals
from mtlcore.distributed.processes import Processes
from mtlcore.errors import ConfigurationError
from mtlcore.geometry.metric import EUCLIDEAN, METRICS
from mtlcore.gradients.plan import PLANS
from mtlcore.gradients.planner import Planner
from mtlcore.gradients.refresh import Keeper, Refresh
from mtlcore.hyperparameters import Allowed
from mtlcore.inputs import Closure
from mtlcore.progress import Progress
from mtlcore.step.run import Run
from mtlcore.teleporting import Brakes, Teleporter
from mtlcore.teleporting.teleporter import OPTIONS
from mtlcore.trajectory import Optimizers

_PLAIN = {
    "tolerance": OPTIONS["tolerance"],
    "name": Allowed("text"),
    "check_source": Allowed("flag"),
    "taken": Allowed("flag"),
}
"""What arguments of ``MultiTask`` may be, as far as that is a set of plain values."""


def assembled(
    trunk: nn.Module | Iterable[nn.Parameter],
    aggregator: str | Aggregator,
    optimizer: Optimizers,
    detector: str | ConflictDetector | None,
    teleport: str | TeleportStrategy | Teleporter | None,
    gradients: str,
    seed: int,
    *,
    tasks: Sequence[str] | None,
    heads: nn.Module | None,
    brakes: Brakes | None,
    probe: Closure | None,
    tolerance: float,
    gradient_memory: int | None,
    refresh: int | Refresh,
    name: str,
    process_group: Any,
    check_source: bool,
    metric: str,
    taken: bool,
) -> Run:
    """The arguments are those of ``MultiTask``, which documents them and what is raised."""
    hyperparameters.check("MultiTask", _PLAIN, locals())
    refusals.check_visible(trunk)
    parameters = inputs.trunk_parameters(trunk)
    inputs.check_helpers(optimizer, heads, probe)
    run = Run(
        trunk=trunk if isinstance(trunk, nn.Module) else None,
        parameters=parameters,
        aggregator=inputs.plugin("aggregator", aggregator, Aggregator),
        detector=None if detector is None else inputs.plugin("detector", detector, ConflictDetector),
        optimizer=optimizer,
        brakes=inputs.brakes(brakes),
        heads=heads,
        probe=probe,
        planner=Planner(gradients, gradient_memory, check_source, across=taken),
        metric=metric,
        taken=taken,
        processes=Processes(process_group),
        name=name,
        progress=Progress(
            tasks=None if tasks is None else inputs.task_names(tasks), seed=inputs.whole_number("seed", seed)
        ),
    )
    run.teleporter = _teleporter(run, teleport, tolerance)
    run.keeper = _keeper(run, refresh)
    _check_geometry(run, gradients)
    return run


def _teleporter(run: Run, teleport: str | TeleportStrategy | Teleporter | None, tolerance: float) -> Teleporter | None:
    if teleport is None:
        return None
    own = teleport if isinstance(teleport, Teleporter) else None
    strategy = inputs.plugin("teleport", teleport if own is None else own.strategy, TeleportStrategy)
    if run.trunk is None:
        raise ConfigurationError("a teleport moves a network: pass the trunk as an nn.Module, not its parameters.")
    teleporter = own or Teleporter(strategy, tolerance=tolerance)
    if teleporter.detector is None:
        teleporter.detector = run.detector
    if teleporter.history == "carry":
        trajectory.check_supported(run.optimizer)
    return teleporter


def _keeper(run: Run, refresh: int | Refresh) -> Keeper | None:
    policy = refresh if isinstance(refresh, Refresh) else Refresh(refresh)
    if policy.every == 1:
        return None
    if run.detector is not None or run.teleporter is not None:
        raise ConfigurationError(
            "refresh skips the task gradients that a detector or a teleport looks at: leave one of them out."
        )
    return Keeper(policy)


_NO_ROWS = {
    "features": "takes them at the shared representation only",
    "losses": "takes none: it is one backward pass of the weighted losses",
}


def _check_geometry(run: Run, gradients: str) -> None:
    if run.metric not in METRICS:
        raise ConfigurationError(f"metric={run.metric!r}: choose one of {', '.join(METRICS)}.")
    if not (run.whole_rows or run.taken):
        return
    euclidean = run.metric == EUCLIDEAN
    what = "taken=True" if euclidean else f'metric="{run.metric}"'
    if run.optimizer is None:
        raise ConfigurationError(f"{what} looks at the optimizer: pass optimizer=... to MultiTask.")
    if run.keeper is not None:
        raise ConfigurationError(f"{what} needs the task gradients of every step: leave refresh out.")
    if gradients in _NO_ROWS:
        rows = " or ".join(f'"{p.name}"' for p in PLANS.values() if p.provides == Needs.JACOBIAN)
        raise ConfigurationError(
            f'{what} needs whole task gradients, one row each, and gradients="{gradients}" {_NO_ROWS[gradients]}. '
            f"Choose {rows}, or leave gradients= out."
        )
    if not euclidean and run.teleporter is not None:
        raise ConfigurationError(f"{what} shows a teleport gradients that are not the network's: leave one out.")
    if run.metric == "optimizer" and run.aggregator.needs == Needs.LOSSES:
        raise ConfigurationError(f"{what} would change nothing: aggregator {run.who} reads losses only.")
