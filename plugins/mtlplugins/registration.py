"""What the built-in plugins register. Strings only: nothing is imported until somebody asks for it."""

from __future__ import annotations

from mtlcore.hookspecs import Register, hookimpl

AGGREGATORS: dict[str, str] = {}
DETECTORS: dict[str, str] = {}
TELEPORTS: dict[str, str] = {}


@hookimpl
def mtlcore_register_aggregators(register: Register) -> None:
    """Gradient aggregators and loss balancers."""
    for name, target in AGGREGATORS.items():
        register(name, target)


@hookimpl
def mtlcore_register_detectors(register: Register) -> None:
    """Conflict detectors."""
    for name, target in DETECTORS.items():
        register(name, target)


@hookimpl
def mtlcore_register_teleports(register: Register) -> None:
    """Teleport strategies."""
    for name, target in TELEPORTS.items():
        register(name, target)
