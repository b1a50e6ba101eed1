"""The hooks, in the order in which a process meets them. Nothing here imports torch.

A plugin is any module (or object) with functions marked ``@hookimpl``, named by an entry point of the group
``mtlcore``. Registration hooks receive one callback, ``register(name, target)``: the target is a class, or the
string ``"module:Class"``, which is imported on first use. Hook arguments only ever grow; an implementation may
ask for fewer of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from mtlcore.contracts import Conflict
    from mtlcore.report import StepReport, TeleportResult

PROJECT = "mtlcore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[[str, Any], None]


# --- when the command line starts ---------------------------------------------------------------------------


@hookspec
def mtlcore_register_commands(register: Register) -> None:
    """Add a subcommand to ``mtl``: ``register("name", "module:app")`` with a typer application."""


# --- when a method is looked up -----------------------------------------------------------------------------


@hookspec
def mtlcore_register_aggregators(register: Register) -> None:
    """Add gradient aggregators or loss balancers: subclasses of :class:`mtlcore.Aggregator`."""


@hookspec
def mtlcore_register_detectors(register: Register) -> None:
    """Add conflict detectors: subclasses of :class:`mtlcore.ConflictDetector`."""


@hookspec
def mtlcore_register_teleports(register: Register) -> None:
    """Add teleport strategies: subclasses of :class:`mtlcore.TeleportStrategy`."""


# --- during a training step ---------------------------------------------------------------------------------


@hookspec
def mtlcore_conflict_detected(conflict: Conflict, report: StepReport) -> None:
    """A detector called the gradients of this step conflicting. ``report`` is what is known so far."""


@hookspec
def mtlcore_teleported(result: TeleportResult) -> None:
    """A teleport was tried; ``result.accepted`` says whether the network moved."""


@hookspec
def mtlcore_step_finished(report: StepReport) -> None:
    """A step is complete: gradients are in ``.grad`` (after ``step``: the optimizer has moved)."""


# --- when a method is verified or compared ------------------------------------------------------------------


@hookspec
def mtlcore_register_laws(register: Register) -> None:
    """Add laws that methods can be checked against."""


@hookspec
def mtlcore_register_problems(register: Register) -> None:
    """Add synthetic problems with a declared Pareto set."""


@hookspec
def mtlcore_register_tasks(register: Register) -> None:
    """Add benchmark tasks: real data, a trunk, heads, losses and metrics."""


@hookspec(firstresult=True)
def mtlcore_certify(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """Is this plugin fit for use? Answered by verification, asked by benchmarks; the first result wins.

    The answer has ``passed: bool``, ``summary: str``, ``rows: list`` (the rows of ``mtl verify --json``) and
    ``date: str`` (of the check). It may take as long as it takes; :func:`mtlcore_certified` may not.
    """


@hookspec(firstresult=True)
def mtlcore_certified(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """What is known already about that question: the same answer, or None. Asked by ``mtl list`` for every plugin, so
    nothing may be checked, and neither the plugin nor torch imported, to answer it.
    """


KINDS: dict[str, str] = {
    "aggregator": "mtlcore_register_aggregators",
    "detector": "mtlcore_register_detectors",
    "teleport": "mtlcore_register_teleports",
    "task": "mtlcore_register_tasks",
    "problem": "mtlcore_register_problems",
    "law": "mtlcore_register_laws",
    "command": "mtlcore_register_commands",
}
"""Kind of plugin -> the hook that registers it."""
