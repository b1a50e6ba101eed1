"""How deep a search is: a deep one draws larger inputs and longer runs than anybody would wait for every day."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

DEEP = 1000
"""Inputs per law from which a search counts as deep."""

_deep: contextvars.ContextVar[bool] = contextvars.ContextVar("deep", default=False)
_domain: contextvars.ContextVar[Callable[[Any], bool] | None] = contextvars.ContextVar("domain", default=None)


def deep() -> bool:
    """Whether what is drawn now may be large and late."""
    return _deep.get()


def spoken_about() -> Callable[[Any], bool] | None:
    """Which Jacobians the law that is checked now speaks about; None if that is not known, or none is."""
    return _domain.get()


@contextlib.contextmanager
def profile(max_examples: int, domain: Callable[[Any], bool] | None = None) -> Iterator[None]:
    """Draws inside are deep if so many inputs are asked for, and for a law about the Jacobians of ``domain``."""
    tokens = _deep.set(max_examples >= DEEP), _domain.set(domain)
    try:
        yield
    finally:
        _deep.reset(tokens[0])
        _domain.reset(tokens[1])
