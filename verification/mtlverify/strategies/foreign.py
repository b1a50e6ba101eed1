"""What packages of others add to the inputs: families of Jacobians, and networks.

A family is a function of ``draw`` that returns K rows of P numbers, as the families of this package are; what it draws
is made by :mod:`mtlverify.strategies.pick`, or a Hypothesis strategy. Its package registers it in the hook
``mtlcore_register_families``. Every law about Jacobians is then tried on it, whoever made the law and the method: a law
about some Jacobians only (stationary ones, say) on those of its draws that the law speaks about.

A network is a function of a width that returns a trunk with so many outputs, marked by :func:`network` with the shape
of one input, and registered in the hook ``mtlcore_register_networks``. Every law about teleports is tried on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mtlcore.errors import PluginError
from mtlcore.hosting import registry


def network(*shape: int) -> Callable[[Callable[[int], Any]], Callable[[int], Any]]:
    """``@network(4)``: the function makes a trunk for inputs (N, 4), whose output is (N, width)."""

    def mark(function: Callable[[int], Any]) -> Callable[[int], Any]:
        function.shape = tuple(shape)  # type: ignore[attr-defined]
        return function

    return mark


def families() -> list[Callable[[Any], Any]]:
    """The registered families; one that cannot be imported is left out, and `mtl list --load` says why."""
    return [_checked(name, function, owner) for name, function, owner in _registered("family")]


def networks() -> dict[str, tuple[Callable[[int], Any], tuple[int, ...]]]:
    """Name -> (width -> trunk, shape of one input)."""
    return {name: (function, tuple(function.shape)) for name, function, _ in _registered("network")}


def _registered(kind: str) -> list[tuple[str, Any, str]]:
    """(name, object, distribution) of everything sound of a kind."""
    found = []
    for entry in registry().entries(kind):
        if entry.status == "ok":
            try:
                found.append((entry.name, registry().load(kind, entry.name), entry.distribution))
            except PluginError:
                continue
    return found


@functools.cache
def _checked(name: str, function: Callable[[Any], Any], owner: str) -> Callable[[Any], Any]:
    """The family under its registered name; what it returns is looked at, for a search would blame the method."""

    def family(draw: Any) -> Any:
        rows = function(draw)
        try:
            made = torch.tensor(rows, dtype=torch.float64)
            fine = made.ndim == 2 and made.numel() > 0 and bool(made.isfinite().all())
        except (TypeError, ValueError, RuntimeError):
            fine = False
        if not fine:
            raise PluginError(
                f"family {name!r} of {owner} returned {str(rows)[:80]}: it must return K rows of P finite numbers, as "
                f"[[1, 0], [-1, 2]]."
            )
        return rows

    family.__name__ = name
    return family
