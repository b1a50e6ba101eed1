"""How deep a search is: a deep one draws larger inputs and longer runs than anybody would wait for every day."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

DEEP = 1000
"""Inputs per law from which a search counts as deep."""

_deep: contextvars.ContextVar[bool] = contextvars.ContextVar("deep", default=False)


def deep() -> bool:
    """Whether what is drawn now may be large and late."""
    return _deep.get()


@contextlib.contextmanager
def profile(max_examples: int) -> Iterator[None]:
    """Draws inside are deep if so many inputs are asked for."""
    token = _deep.set(max_examples >= DEEP)
    try:
        yield
    finally:
        _deep.reset(token)
