"""Certificates: the outcome of a check, kept as long as neither the plugin nor the harness changed.

A certificate is a JSON file under ``$MTLCORE_CACHE`` (default: the user's cache directory) that says what its outcome
depends on: name, hyper-parameters, distribution and version, the source of the core and of this harness, and the
digest of each source file the plugin is made of (see :mod:`mtlverify.sources`). It is valid where all of this is as
it says, so a hit is as good as a new run, nothing ever has to be invalidated, and reading one imports nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore.hosting import TookTooLong, registry
from mtlverify import sources
from mtlverify.law import DEPTH, KINDS

if TYPE_CHECKING:
    from mtlverify.runner import Result

Certificate = dict[str, Any]

SEED = 0
KEPT = 8
"""Files per plugin: other hyper-parameters, other checkouts. The oldest go first."""


def certify(kind: str, name: str, options: dict[str, Any], max_examples: int = DEPTH) -> Certificate | None:
    """``{"passed", "summary", "rows", "date"}`` of a registered plugin; a stored one if nothing changed.

    None for a kind that verification knows nothing about (the hook's next implementation may answer). ``passed`` is
    None for a plugin that was stopped because its time was over; that is not stored.
    """
    if kind not in KINDS:
        return None
    known = lookup(kind, name, options, max_examples)
    if known is not None:
        return known
    from mtlverify.runner import check

    plugin = registry().create(kind, name, **options)
    results: list[Result] = []
    try:
        for result in check(plugin, None, max_examples, SEED):
            results.append(result)
    except TookTooLong as late:  # the plugin is slow or hangs; were this passed on, the certifier would be blamed
        summary = f"{late}, after {len(results)} laws"
        return {"passed": None, "summary": summary, "rows": [r.to_json() for r in results], "date": _today()}
    return store(kind, name, options, results, max_examples, SEED)


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def lookup(
    kind: str, name: str, options: dict[str, Any] | None = None, max_examples: int = DEPTH, hunted: float = 0.0
) -> Certificate | None:
    """The certificate of a plugin as it is now, made with at least so many inputs per law; None if there is none. One
    that is to stand for a hunt must say of every promise kept that it was hunted.

    Of several, one that refutes wins, then the deepest search.
    """
    valid = []
    for file in _files(kind, name):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if (
                found["max_examples"] >= max_examples
                and (hunted <= 0 or _was_hunted(found["rows"]))
                and found["identity"] == _identity(kind, name, options or {})
                and sources.unchanged(found["sources"])
            ):
                valid.append(found)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half a file, or one of another form: as good as none
    if not valid:
        return None
    return _answer(min(valid, key=lambda c: (c["passed"], -c["max_examples"])))


def _was_hunted(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether every promise that an input shows to hold was hunted, as far as it can be: some was at least."""
    kept = [r for r in rows if r["claimed"] and r["status"] == "verified"]
    return not kept or any(r.get("hunted", 0) for r in kept)


def store(
    kind: str, name: str, options: dict[str, Any], results: Sequence[Result], max_examples: int, seed: int
) -> Certificate:
    """Keep the results of *all* laws about a registered plugin, and return them as a certificate."""
    cls = registry().load(kind, name)
    basis: dict[str, Any] = {
        "identity": _identity(kind, name, options),
        "sources": sources.plugin(cls),
        "max_examples": max_examples,
        "seed": seed,
    }
    certificate: dict[str, Any] = {
        "passed": not any(r.failed for r in results),
        "summary": summary(results),
        "rows": [r.to_json() for r in results],
        "date": _today(),
        **basis,
    }
    if all(basis["sources"].values()):  # a class without a source (typed into a notebook) could change unseen
        file = folder() / f"{kind}-{name}-{hashlib.sha256(json.dumps(basis).encode()).hexdigest()[:24]}.json"
        # A certificate saves time and is not worth failing for: a cache that cannot be written keeps nothing.
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Written beside and moved into place: a reader, or a killed run, never sees half a certificate.
            draft = file.with_suffix(f".{os.getpid()}.tmp")
            draft.write_text(json.dumps(certificate, indent=1), encoding="utf-8")
            draft.replace(file)
            for old in sorted(_files(kind, name), key=lambda f: f.stat().st_mtime)[:-KEPT]:
                old.unlink(missing_ok=True)
    return _answer(certificate)


def summary(results: Sequence[Result]) -> str:
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


def _files(kind: str, name: str) -> list[Path]:
    """The stored files of one plugin (``mgda`` and not ``mgda-fast``)."""
    start = f"{kind}-{name}-"
    return [f for f in folder().glob(f"{start}*.json") if "-" not in f.name.removeprefix(start)]


def _identity(kind: str, name: str, options: dict[str, Any]) -> list[Any]:
    entry = registry().find(kind, name)
    target = entry.target if isinstance(entry.target, str) else f"{entry.target.__module__}:{entry.target.__qualname__}"
    shown = [[k, repr(v)] for k, v in sorted(options.items())]
    return [kind, name, shown, entry.distribution, entry.version, target, sources.harness(), *_added()]


def _added() -> list[list[str]]:
    """Laws, families and networks of other packages: what is asked depends on them, too. By their sources, unread."""
    found = []
    for kind in ("law", "family", "network"):
        for entry in registry().entries(kind):
            if entry.status == "ok" and entry.distribution != "mtlcore":
                target: Any = entry.target
                made_by = getattr(target, "check", target)  # of a law the function
                module = target.partition(":")[0] if isinstance(target, str) else getattr(made_by, "__module__", "")
                source = sources.digest(sources.source_of(module)) if module else ""
                found.append([kind, entry.name, entry.distribution, str(entry.version), source])
    return found


def _answer(certificate: Certificate) -> Certificate:
    """What the hooks promise, without what it is based on."""
    return {key: certificate[key] for key in ("passed", "summary", "rows", "date")}
