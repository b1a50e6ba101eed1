"""Where plugins come from: entry points of installed distributions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
from collections.abc import Iterator
from typing import Any

import pluggy

from mtlcore import hookspecs
from mtlcore.errors import PluginError
from mtlcore.hookspecs import PROJECT

BUILT_IN = "mtlcore"
"""Name of the distribution whose plugins are the built-in ones."""


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A source of hooks: an entry point, or an object handed to :func:`add_plugin`."""

    name: str
    distribution: str
    version: str
    load: Any = dataclasses.field(compare=False)


def new_manager() -> pluggy.PluginManager:
    """That knows the hooks, and no plugin yet."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def discover() -> Iterator[Plugin]:
    """Entry points of the group, filtered by MTLCORE_PLUGINS (off, or a list of names or distributions)."""
    wish = os.environ.get("MTLCORE_PLUGINS", "").strip()
    allowed = None if not wish else {w.strip() for w in wish.split(",")} - {"off"}
    for point in importlib.metadata.entry_points(group=PROJECT):
        distribution, version = _provenance(point.dist)
        if allowed is None or distribution == BUILT_IN or allowed & {point.name, distribution}:
            yield Plugin(point.name, distribution, version, functools.partial(_load, point))


def _load(point: importlib.metadata.EntryPoint) -> Any:
    """What the entry point names. One that is malformed is said to be: Python itself stumbles over it."""
    if point.pattern.match(point.value) is None:
        raise PluginError(
            f"its entry point {point.name} = {point.value!r} is not of the form 'module' or 'module:attribute': "
            f"correct it in the table project.entry-points.{PROJECT} of its pyproject.toml, and install it again"
        )
    return point.load()


def _provenance(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Name and version, as far as they are known: what an interrupted uninstall leaves behind has no metadata."""
    if distribution is None:
        return "?", ""
    try:
        metadata = distribution.metadata
    except importlib.metadata.PackageNotFoundError:
        return "?", ""
    known = {key: metadata[key] for key in ("Name", "Version") if key in metadata}
    return known.get("Name") or "?", known.get("Version") or ""


@contextlib.contextmanager
def quiet_exit() -> Iterator[None]:
    """A plugin that calls sys.exit at import must not end the host."""
    try:
        yield
    except SystemExit as error:
        raise PluginError(f"called sys.exit({error.code!r})").with_traceback(error.__traceback__) from error
