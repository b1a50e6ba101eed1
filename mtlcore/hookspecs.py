"""The hooks, in the order in which a process meets them. Nothing here imports torch.

A plugin is any module (or object) with functions marked ``@hookimpl``, named by an entry point of the group
``mtlcore``. Registration hooks receive one callback, ``register(name, target)``: the target is a class, or the
string ``"module:Class"``, which is imported on first use. Hook arguments only ever grow; an implementation may
ask for fewer of them.
"""

from __future__ import annotations

import dataclasses
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
"""What a hook receives: name, and a class or the "module:Class" to import it from on first use."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of plugin: everything that the core knows about it.

    Args:
        hook: name of the hook that registers it.
        base: name of the class in ``mtlcore`` that a plugin of this kind is a subclass of; "" where the core has none.
        parts: what a plugin must have where the core has no base class: "name" is a text, "name()" can be called.
        made: it is a class, of which ``mtlcore.create`` makes instances; else an object that is used as it is.
        extra: the built-in plugins of this kind need ``pip install 'mtlcore[extra]'``; "" if they need none.
        needs: the packages of that extra without which nothing of this kind can be used.
    """

    hook: str
    base: str = ""
    parts: tuple[str, ...] = ()
    made: bool = True
    extra: str = ""
    needs: tuple[str, ...] = ()


SHAPES: dict[str, Kind] = {}
"""Kind of plugin -> what the core knows about it. A new kind is one decorated function in this file."""


def _registers(kind: str, **shape: Any) -> Callable[[Callable[[Register], None]], Callable[[Register], None]]:
    """Declare a kind of plugin by the hook that registers it."""

    def declare(function: Callable[[Register], None]) -> Callable[[Register], None]:
        SHAPES[kind] = Kind(function.__name__, **shape)
        return hookspec(function)

    return declare


# --- when the command line starts ---------------------------------------------------------------------------


@_registers("command", parts=("__call__()",), made=False)
def mtlcore_register_commands(register: Register) -> None:
    """Add a subcommand to ``mtl``: ``register("name", "module:app")`` with a typer application."""


# --- when a method is looked up -----------------------------------------------------------------------------


@_registers("aggregator", base="Aggregator")
def mtlcore_register_aggregators(register: Register) -> None:
    """Add gradient aggregators or loss balancers: subclasses of :class:`mtlcore.Aggregator`."""


@_registers("detector", base="ConflictDetector")
def mtlcore_register_detectors(register: Register) -> None:
    """Add conflict detectors: subclasses of :class:`mtlcore.ConflictDetector`."""


@_registers("teleport", base="TeleportStrategy")
def mtlcore_register_teleports(register: Register) -> None:
    """Add teleport strategies: subclasses of :class:`mtlcore.TeleportStrategy`."""


@_registers("explorer", base="Explorer")
def mtlcore_register_explorers(register: Register) -> None:
    """Add explorers, which find a model for a preference between the tasks: subclasses of :class:`mtlcore.Explorer`."""


@_registers("merger", base="Merger")
def mtlcore_register_mergers(register: Register) -> None:
    """Add mergers, which make one model of several experts: subclasses of ``mtlcore.Merger``."""


# --- during a training step: each plugin gets copies of its own, which it may keep and write to ----------------


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


@_registers(
    "law",
    parts=("id", "kind", "statement", "check()", "examples()", "applies()", "measure()"),
    made=False,
    extra="verify",
    needs=("hypothesis",),
)
def mtlcore_register_laws(register: Register) -> None:
    """Add laws that methods can be checked against."""


@_registers("family", parts=("__call__()",), made=False)
def mtlcore_register_families(register: Register) -> None:
    """Add families of task gradients on which every law is tried: functions of ``draw`` that return rows."""


@_registers("network", parts=("__call__()", "shape"), made=False)
def mtlcore_register_networks(register: Register) -> None:
    """Add networks on which the laws about teleports are tried: functions of a width, with the shape of one input."""


@_registers("problem", parts=("losses()", "start()"))
def mtlcore_register_problems(register: Register) -> None:
    """Add synthetic problems with a declared Pareto set."""


@_registers(
    "task", parts=("load()", "trunk()", "head()", "loss()"), extra="bench", needs=("joblib", "pandas", "pydantic")
)
def mtlcore_register_tasks(register: Register) -> None:
    """Add benchmark tasks: real data, a trunk, heads, losses and metrics."""


@hookspec(firstresult=True)
def mtlcore_certify(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """Is this plugin fit for use? Answered by verification, asked by benchmarks; the first result wins.

    The answer has ``passed: bool`` (None: it could not be told), ``summary: str``, ``rows: list`` (the rows of
    ``mtl verify --json``) and ``date: str`` (of the check). It may take as long as it takes;
    :func:`mtlcore_certified` may not.
    """


@hookspec(firstresult=True)
def mtlcore_certified(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """What is known already about that question: the same answer, or None. Asked by ``mtl list`` for every plugin, so
    nothing may be checked, and neither the plugin nor torch imported, to answer it.
    """


@hookspec(firstresult=True)
def mtlcore_recorded(kind: str, name: str) -> dict[str, list[str]] | None:
    """What a published record says of a built-in plugin with its default options: "proved", "verified" and "refuted",
    each with the ids of its laws; None if there is no record. Asked by ``mtl show``."""


KINDS: dict[str, str] = {kind: shape.hook for kind, shape in SHAPES.items() if kind != "command"}
"""Kind of plugin -> the hook that registers it. Commands come last: a list of plugins is read for its methods."""
KINDS["command"] = SHAPES["command"].hook
