"""Certificates: the outcome of a check, kept as long as neither the plugin nor the harness changed.

A certificate is a JSON file under ``$MTLCORE_CACHE`` (default: the user's cache directory), named by a hash of
everything the outcome depends on: kind, name, hyper-parameters, distribution and version, the source of the
plugin's module and of every module of the same package it imports, the source of the core and of this harness, and
the depth of the search. A hit is therefore as good as a new run; nothing ever has to be invalidated.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

from mtlcore.registry import registry
from mtlverify.runner import DEPTH, Result, check

SEED = 0


def certify(kind: str, name: str, options: dict[str, Any], max_examples: int = DEPTH) -> dict[str, Any] | None:
    """``{"passed", "summary", "rows"}`` of a registered plugin; from the cache if nothing changed.

    None for a kind that verification knows nothing about (the hook's next implementation may answer).
    """
    from mtlverify.runner import KINDS

    if kind not in KINDS:
        return None
    known = lookup(kind, name, options, max_examples)
    if known is not None:
        return known
    plugin = registry().create(kind, name, **options)
    results = list(check(plugin, None, max_examples, SEED))
    certificate = {
        "passed": not any(r.failed for r in results),
        "summary": summary(results),
        "rows": [r.to_json() for r in results],
    }
    path = _path(kind, name, options, max_examples)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and moved into place: a reader, or a killed run, never sees half a certificate.
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(certificate, indent=1), encoding="utf-8")
    draft.replace(path)
    return certificate


def lookup(
    kind: str, name: str, options: dict[str, Any] | None = None, max_examples: int = DEPTH
) -> dict[str, Any] | None:
    """The stored certificate of a plugin as it is now, or None."""
    try:
        path = _path(kind, name, options or {}, max_examples)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def summary(results: list[Result]) -> str:
    """One line for a report."""
    broken = [r for r in results if r.failed]
    kept = [r for r in results if r.claimed and r.status == "verified"]
    tried = sum(r.examples for r in results)
    if broken:
        named = ", ".join(f"{r.law} ({r.status})" for r in broken)
        return f"{len(broken)} of {len(broken) + len(kept)} promises broken or unchecked: {named}"
    return f"{len(kept)} promises kept on {tried:,} inputs"


def folder() -> Path:
    """Where certificates are kept."""
    chosen = os.environ.get("MTLCORE_CACHE")
    if chosen:
        return Path(chosen) / "certificates"
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "mtlcore" / "certificates"


def _path(kind: str, name: str, options: dict[str, Any], max_examples: int) -> Path:
    cls = registry().load(kind, name)
    entry = registry().find(kind, name)
    key = {
        "plugin": [kind, name, sorted((k, repr(v)) for k, v in options.items()), entry.distribution, entry.version],
        "source": source_hash(cls),
        "harness": harness_hash(),
        "search": [max_examples, SEED],
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return folder() / f"{kind}-{name}-{digest[:24]}.json"


def source_hash(cls: type) -> str:
    """Hash of the source of a class's module, of its bases' modules, and of what these import from the same package."""
    files: dict[str, bytes] = {}
    for base in cls.__mro__:
        if base.__module__.split(".")[0] not in ("builtins", "abc", "mtlcore"):
            _gather(base.__module__, files)
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return digest.hexdigest()


def _gather(module: str, files: dict[str, bytes]) -> None:
    """The module's source and, along its import statements, that of its own package."""
    if module in files:
        return
    try:
        spec = sys.modules[module].__spec__ if module in sys.modules else importlib.util.find_spec(module)
        origin = inspect.getsourcefile(sys.modules[module]) if spec is None else spec.origin
        source = Path(origin or "").read_bytes()
    except (OSError, ImportError, TypeError, KeyError, AttributeError):
        return  # a name inside a module, or no source at all (a class typed into a notebook)
    files[module] = source
    top = module.split(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module if (origin or "").endswith("__init__.py") else module.rpartition(".")[0]
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == top:
                _gather(name, files)


@functools.cache
def harness_hash() -> str:
    """Hash of every source file of the core and of this wing, and the versions of what they compute with."""
    import hypothesis
    import torch

    digest = hashlib.sha256(f"{torch.__version__} {hypothesis.__version__}".encode())
    for package in ("mtlcore", "mtlverify"):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec is not None else []:
            for path in sorted(Path(root).rglob("*.py")):
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
