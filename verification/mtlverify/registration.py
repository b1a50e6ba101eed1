"""What this wing registers: what its source declares. Nothing is imported until somebody asks for it."""

from __future__ import annotations

from typing import Any

from mtlcore.hookspecs import Register, hookimpl
from mtlverify import declared


@hookimpl
def mtlcore_register_laws(register: Register) -> None:
    """The laws of this wing; any plugin may add its own."""
    for name, target in declared.declared_laws("mtlverify.laws"):
        register(name, target)


@hookimpl
def mtlcore_register_problems(register: Register) -> None:
    """Synthetic problems with a declared Pareto set."""
    for name, target in declared.declared_problems("mtlverify.problems"):
        register(name, target)


@hookimpl
def mtlcore_register_commands(register: Register) -> None:
    """``mtl verify``, and what else verification can be asked."""
    register("verify", "mtlverify.command:app")
    register("converge", "mtlverify.convergence.command:app")
    register("peers", "mtlverify.peers.command:app")
    register("ghostwrite", "mtlverify.ghostwriter:app")


@hookimpl
def mtlcore_certify(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The certificate of one plugin, made now or taken from the cache."""
    from mtlverify.certificates import certify

    return certify(kind, name, options)


@hookimpl
def mtlcore_certified(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The certificate of one plugin if there is a valid one in the cache."""
    from mtlverify.certificates import lookup

    return lookup(kind, name, options)


@hookimpl
def mtlcore_recorded(kind: str, name: str) -> dict[str, list[str]] | None:
    """The verdicts of the committed ledger."""
    from mtlverify.ledger.verdicts import recorded

    return recorded(kind, name)
