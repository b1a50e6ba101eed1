"""Where plugins come from: entry points of installed distributions."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pluggy

from mtlcore import hookspecs
from mtlcore.errors import MissingExtraError, PluginError, PluginWarning, did_you_mean
from mtlcore.hookspecs import PROJECT
from mtlcore.safety import one_line, plain, shown

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
    allowed = None if not wish else {w.strip() for w in wish.split(",")} - {"off", ""}
    known: set[str] = set()
    for point in importlib.metadata.entry_points(group=PROJECT):
        distribution, version = _provenance(point.dist)
        known |= {point.name, distribution}
        if allowed is None or distribution == BUILT_IN or allowed & {point.name, distribution}:
            yield Plugin(one_line(point.name, 64), distribution, version, functools.partial(_load, point))
    for name in sorted((allowed or set()) - known):
        hint = did_you_mean(name, known - {BUILT_IN}, "Installed")
        warnings.warn(
            f"MTLCORE_PLUGINS allows {shown(name)}, which is not installed. {hint}", PluginWarning, stacklevel=2
        )


def _load(point: importlib.metadata.EntryPoint) -> Any:
    """What the entry point names. One that is malformed is said to be: Python itself stumbles over it."""
    if point.pattern.match(point.value) is None:
        raise PluginError(
            f"its entry point {plain(point.name)} = {shown(point.value)} is not of the form 'module' or "
            f"'module:attribute': correct it in the table project.entry-points.{PROJECT} of its pyproject.toml, and "
            "install it again"
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
    return one_line(known.get("Name") or "?", 100), one_line(known.get("Version") or "", 100)


def missing_extra(error: BaseException) -> MissingExtraError | None:
    """The error with the pip line, if this one says that a package of one of our extras is not installed."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    extra = extra_of(package) if isinstance(error, ModuleNotFoundError) else None
    return None if extra is None else MissingExtraError(package, extra, "This")


def extra_of(package: str) -> str | None:
    """The first of our extras that brings a package; None if none does."""
    try:
        lines = importlib.metadata.requires(BUILT_IN) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for line in lines:
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == [\"'](\w+)[\"']", line)
        if name and extra and name[0].lower().replace("-", "_") == package.lower():
            return extra[1]
    return None
