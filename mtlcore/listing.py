"""``mtl list``: the rows of every plugin, as JSON and as tables."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from mtlcore import glance
from mtlcore.errors import MtlError, PluginWarning
from mtlcore.hookspecs import KINDS, SHAPES
from mtlcore.output import cell, console, table
from mtlcore.patience import waiting
from mtlcore.registry import Entry, registry
from mtlcore.safety import blame, one_line

Row = dict[str, Any]


def rows(kind: str | None, load: bool) -> list[Row]:
    """One row per plugin, broken ones included; ``load`` really imports each of them."""
    entries: list[Entry] = []
    for one in [kind] if kind else KINDS:
        for entry in registry().entries(one) if load else ():
            if entry.status == "ok":
                try:
                    registry().load(one, entry.name)
                except MtlError:
                    continue  # its entry now says "broken", or the footnote which extra is missing
        entries += registry().entries(one)
    return [_row(entry) for entry in entries + registry().problems()]


def _row(entry: Entry) -> Row:
    fields = ("kind", "name", "distribution", "version", "status", "problem")
    return {
        **{field: getattr(entry, field) for field in fields},
        "needs": glance.needs(entry),
        "packages": glance.packages(entry),
        "description": glance.description(entry) if entry.status == "ok" else "",
        "certificate": certificate(entry),
    }


def certificate(entry: Entry) -> dict[str, Any] | None:
    """What is known already of its promises, at its default hyper-parameters; nothing is checked or imported for it."""
    if entry.status != "ok":
        return None
    try:
        with waiting(f"what is known about {entry.kind} {entry.name!r}"):
            known = registry().ask("mtlcore_certified", kind=entry.kind, name=entry.name, options={})
        return None if known is None else _summed_up(known)
    except BaseException as error:  # a bad answer must not hide the list
        warnings.warn(f"mtlcore_certified: {blame(error)}", PluginWarning, stacklevel=2)
        return None


def _summed_up(known: dict[str, Any]) -> dict[str, Any]:
    rows = known["rows"]
    broken = [r for r in rows if r["status"] == "error" or (r["claimed"] and r["status"] == "refuted")]
    return {
        "passed": known["passed"] is True,
        "summary": one_line(known["summary"]),
        "date": one_line(known["date"]),
        "kept": [one_line(r["law"]) for r in rows if r["claimed"] and r["status"] == "verified"],
        "broken": [one_line(r["law"]) for r in broken],
    }


def in_short(certificate: dict[str, Any]) -> str:
    """A certificate in a few words."""
    kept, broken, date = (certificate[key] for key in ("kept", "broken", "date"))
    if certificate["passed"]:
        return f"certified: {len(kept)} laws, {date}"
    return f"broken: {', '.join(broken)} ({len(broken)} of {len(kept) + len(broken)} laws), {date}"


def show(found: list[Row]) -> None:
    """One table per kind, then what is broken, then which extras are missing."""
    out = console()
    kinds = [kind for kind in KINDS if any(r["kind"] == kind and r["status"] == "ok" for r in found)]
    for kind in kinds:
        mine = [r for r in found if r["kind"] == kind and r["status"] == "ok"]
        if sys.stdout.isatty():
            out.print(cell(f"\n{kind}", "bold"))
        out.print(_table(kind, mine))
    if not found:
        out.print(cell("Nothing of this kind is installed. `mtl new-plugin NAME --kind KIND` writes a package."))
    if sys.stdout.isatty() and not any(r["certificate"] for r in found) and any(SHAPES[kind].base for kind in kinds):
        hint = "Nothing is verified yet on this machine: `mtl verify NAME` checks what a plugin promises."
        out.print(cell(f"\n{hint}", "dim"))
    broken = [r for r in found if r["status"] != "ok"]
    if broken:
        out.print(cell(f"\n{len(broken)} broken, set aside; everything else works without them:", "bold red"))
    for r in broken:
        provenance = f"{r['distribution']} {r['version']}".strip()
        out.print(cell(f"  {r['kind']} {r['name']!r} ({provenance}): {r['problem']}"), soft_wrap=True)
    for kind in kinds:
        missing = glance.missing_packages(kind)
        if missing:
            what = f"\nTo use a built-in {kind}: pip install 'mtlcore[{SHAPES[kind].extra}]' "
            out.print(cell(f"{what}({', '.join(missing)} not installed)"), soft_wrap=True)
    for r in found:
        for package, options in r["packages"].items():
            if not glance.installed(package):
                line = glance.pip_line(registry().find(r["kind"], r["name"]), package)
                text = f"\nTo use {r['name']} with {options}: {line} ({package} not installed)"
                out.print(cell(text), soft_wrap=True)


def _needs(row: Row) -> str:
    """What it reads of the gradients, and the packages that some of its options need."""
    return ", ".join(filter(None, [row["needs"], *(f"{package} (optional)" for package in row["packages"])]))


def _table(kind: str, mine: list[Row]) -> Any:
    """In a terminal as few columns as possible; in a pipe all of them, so that every line can be searched."""
    strangers = any(r["distribution"] != "mtlcore" for r in mine)
    columns = {
        "kind": not sys.stdout.isatty(),
        "name": True,
        "from": strangers or not sys.stdout.isatty(),
        "needs": any(map(_needs, mine)),
        "what it is": True,
        "promises": SHAPES[kind].base != "" and (not sys.stdout.isatty() or any(r["certificate"] for r in mine)),
    }
    made = table(*[name for name, wanted in columns.items() if wanted], whole=("kind", "name", "needs"))
    for r in mine:
        known = r["certificate"]
        style = "dim" if known is None else "green" if known["passed"] else "bold red"
        cells = {
            "kind": cell(r["kind"]),
            "name": cell(r["name"], "cyan"),
            "from": cell(f"{r['distribution']} {r['version']}".strip()),
            "needs": cell(_needs(r)),
            "what it is": cell(r["description"]),
            "promises": cell("-" if known is None else in_short(known), style),
        }
        made.add_row(*[cells[name] for name, wanted in columns.items() if wanted])
    return made
