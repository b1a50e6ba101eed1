"""Exact references: the same methods computed another way, in float64, sharing no code with the methods themselves.

Convex methods are cvxpy programs (solved by Clarabel, then polished on the active set they found), the others closed
forms on QR or SVD. Every answer carries the residual of its optimality conditions; an answer that does not satisfy
them is an error (:class:`ReferenceFailed`), never a pass. Where a method's definition has no unique answer, the
reference says so (:class:`NoUniqueAnswer`) and the example shows nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView
from mtlcore.hosting import registry

Array = np.ndarray[Any, np.dtype[Any]]

ACCEPTED = 1e-7
"""Largest residual of the optimality conditions (of unit rows) that is accepted."""


class ReferenceFailed(ArithmeticError):
    """The reference did not converge; its residual is in the message."""


class NoUniqueAnswer(ArithmeticError):
    """The definition of the method does not determine an answer for this input."""


@dataclasses.dataclass(frozen=True)
class Solution:
    """What a reference found.

    Args:
        direction: (P,) float64.
        size: the magnitude it was made of, sum_i |w_i| |g_i|; errors are relative to it.
        residual: largest violation of the optimality conditions or duality gap, relative to unit rows; 0 for a closed
            form.
        distance: a bound on |direction - exact| that follows from the residual, as a length.
    """

    direction: Array
    size: float
    residual: float = 0.0
    distance: float = 0.0

    def accepted(self) -> Solution:
        """Itself, if it is a solution."""
        if not self.residual <= ACCEPTED or not np.isfinite(self.direction).all():
            raise ReferenceFailed(f"the reference's optimality residual is {self.residual:.2g} > {ACCEPTED:g}")
        return self


Reference = Callable[[Array, Any, Array], Solution]
"""``reference(rows, plugin, losses)``: rows (K, P), losses (K,), float64; hyper-parameters are read from the plugin."""

F = TypeVar("F", bound=Callable[..., Solution])

_KNOWN: dict[str, Callable[..., Solution]] = {}


def reference(*names: str) -> Callable[[F], F]:
    """``@reference("mgda")``: the function is the exact reference of the method registered under that name.

    The name need not be that of a built-in method. The function takes ``(rows, plugin)``, or ``(rows, plugin, losses)``
    if its module says ``uses_losses = True``; a function ``covers(plugin)`` in its module says for which
    hyper-parameters it is meant. A package of one's own imports the module where it registers its laws or its method.
    """

    def declare(function: F) -> F:
        _KNOWN.update(dict.fromkeys(names, function))
        return function

    return declare


@functools.cache
def _load_own() -> None:
    """Import every module of this package once; each reference registers itself."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def known() -> dict[str, Callable[..., Solution]]:
    """Registered name of a method -> its reference."""
    _load_own()
    return dict(_KNOWN)


def reference_for(plugin: Any) -> Reference | None:
    """The reference of a plugin, by its registered name; None if there is none, or not for its hyper-parameters.

    An unregistered class may name the method it implements in an attribute ``reference``.
    """
    _load_own()
    found = _KNOWN.get(getattr(plugin, "reference", None) or registry().name_of(plugin))
    if found is None:
        return None
    home = sys.modules[found.__module__]
    covers = getattr(home, "covers", None)
    if covers is not None and not covers(plugin):
        return None
    if getattr(home, "uses_losses", False):
        return cast(Reference, found)
    return lambda rows, plugin, losses: found(rows, plugin)


@dataclasses.dataclass(frozen=True)
class Exact(Aggregator):
    """A reference in the form of a method, so that a law can be asked about the mathematics alone."""

    original: Any = None
    needs = Needs.JACOBIAN

    @property
    def degree(self) -> float:  # type: ignore[override]
        """That of the method."""
        return float(getattr(self.original, "degree", 1.0))

    def aggregate(self, view: StepView, state: dict[str, torch.Tensor]) -> Aggregation:
        """The reference's direction, in the dtype of the rows."""
        rows = view.jacobian
        reference = reference_for(self.original)
        assert reference is not None
        found = reference(rows.double().numpy(), self.original, view.losses.double().numpy())
        return Aggregation(direction=torch.from_numpy(found.direction).to(rows.dtype), state=state)


def exact_twin(plugin: Any) -> Exact | None:
    """The exact reference of a method as a method, or None."""
    return None if reference_for(plugin) is None else Exact(plugin)
