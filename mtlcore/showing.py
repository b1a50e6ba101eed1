"""``mtl show``: everything that is known about one plugin, or about one law."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import warnings
from typing import Any

from mtlcore.card import card
from mtlcore.discovery import BUILT_IN
from mtlcore.errors import ConfigurationError, PluginWarning, UnknownPluginError, did_you_mean, like_plugin
from mtlcore.glance import installed, packages, pip_line
from mtlcore.hookspecs import KINDS
from mtlcore.hyperparameters import allowed
from mtlcore.listing import certificate, in_short
from mtlcore.output import cell, console, prose, table
from mtlcore.registry import Entry, registry
from mtlcore.safety import blame, one_line, plain, shown


def find(name: str, kind: str | None) -> Entry:
    """The entry of that name, in whatever kind it is.

    Raises:
        UnknownPluginError: no kind has it; suggests the nearest.
        ConfigurationError: several kinds have it.
        PluginError: it is broken.
    """
    kinds = [kind] if kind else registry().kinds_of(name)
    if len(kinds) > 1:
        raise ConfigurationError(f"{name!r} names plugins of several kinds: add --kind {' or --kind '.join(kinds)}.")
    if kinds:
        return registry().find(kinds[0], name)
    known = sorted({e.name for k in KINDS for e in registry().entries(k) if e.status == "ok" and "." not in e.name})
    raise UnknownPluginError(f"there is no plugin called {shown(name)}. {like_plugin(name, known)}")


def show(name: str, kind: str | None) -> None:
    """One plugin: what it is, its options, what it claims and what is known of that, where it comes from."""
    entry = find(name, kind)
    if entry.kind == "law":
        return show_law(name, None)
    target = registry().load(entry.kind, entry.name)
    out = console()
    out.print(cell(f"{entry.kind} {entry.name}", "bold"), cell(f"({entry.provenance})", "dim"))
    out.print(cell(prose(inspect.cleandoc(target.__doc__ or "No description."), out.width) + "\n"), soft_wrap=True)
    if isinstance(target, type):
        _options(out, target)
    _print_facts(out, _facts(entry, target))
    _counterexamples(out, entry)
    return None


def _print_facts(out: Any, facts: dict[str, str]) -> None:
    """One paragraph each, folded between words."""
    for label, text in facts.items():
        folded = prose(f"- {label}: {text}", out.width + 2).removeprefix("- ")
        out.print(cell(f"{label}: ", "bold"), cell(folded.removeprefix(f"{label}: ")), sep="", soft_wrap=True)


def _options(out: Any, cls: type) -> None:
    ranges = allowed(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init] if dataclasses.is_dataclass(cls) else []
    made = table("option", "default", "allowed", whole=("option",))
    for field in fields:
        default = "(none: it must be given)" if field.default is dataclasses.MISSING else shown(field.default)
        made.add_row(cell(field.name, "cyan"), cell(default), cell(ranges.get(field.name, "anything")))
    if fields:
        out.print(made)
        out.print()


def _facts(entry: Entry, target: Any) -> dict[str, str]:
    facts: dict[str, str] = {}
    facts |= _card(entry, target)
    optional = [_package(entry, package, options) for package, options in packages(entry).items()]
    if optional:
        facts["optional packages"] = "; ".join(optional)
    claims = getattr(target, "claims", None)
    if isinstance(claims, property):
        claims = registry().create(entry.kind, entry.name).claims
        facts["claims"] = (", ".join(sorted(claims)) or "nothing") + " (with the default options)"
    elif claims is not None:
        facts["claims"] = ", ".join(sorted(claims)) or "nothing"
    if claims is not None:
        known = certificate(entry)
        verify = f"mtl verify {registry().to_type(entry.kind, entry.name)}"
        facts["certificate"] = f"none yet: {verify}" if known is None else in_short(known)
    if papers(target):
        facts["paper"] = ", ".join(papers(target))
    facts["source"] = _source(target)
    if entry.distribution == BUILT_IN and claims is not None:
        facts |= _recorded(entry)
        page = f"docs/reference/methods/{slug(entry.kind, entry.name)}.md"
        facts["more"] = f"{page}, docs/reference/methods.md (the meaning of tags), docs/reference/ledger.md"
    return facts


def _recorded(entry: Entry) -> dict[str, str]:
    """What the ledger proved, verified and refuted, also of what is not promised."""
    try:
        known = registry().ask("mtlcore_recorded", kind=entry.kind, name=entry.name) or {}
        said = [f"{one_line(s)}: {', '.join(map(one_line, laws))}" for s, laws in known.items() if laws]
    except BaseException as error:  # a bad answer must not hide the rest
        warnings.warn(f"mtlcore_recorded: {blame(error)}", PluginWarning, stacklevel=2)
        return {}
    return {"ledger (default options)": "; ".join(said)} if said else {}


def _package(entry: Entry, package: str, options: str) -> str:
    there = "installed" if installed(package) else f"not installed: {pip_line(entry, package)}"
    return f"{package}, for {options} ({there})"


def _card(entry: Entry, target: Any) -> dict[str, str]:
    """Of an instance where one can be made: for a wrapper, say, what is read depends on the options."""
    if entry.kind == "aggregator":
        try:
            return card(registry().create(entry.kind, entry.name))
        except BaseException as error:  # an option without a default, or a fault of the plugin
            text = f"aggregator {entry.name} with its default options: {blame(error)}"
            warnings.warn(text, PluginWarning, stacklevel=2)
    needs = getattr(getattr(target, "needs", None), "name", None)
    return {} if needs is None else {"needs": str(needs).lower()}


def papers(target: Any) -> list[str]:
    """Addresses of the papers that a plugin's class names: ``paper``, a text or several."""
    named = getattr(target, "paper", ())
    named = (named,) if isinstance(named, str) else named
    return [one_line(p) for p in named if isinstance(p, str) and p] if isinstance(named, (tuple, list)) else []


def slug(kind: str, name: str) -> str:
    """What the page of a built-in method is called. Names are unique within a kind only: what has the name of an
    aggregator carries its kind."""
    taken = kind != "aggregator" and any(
        e.name == name and e.distribution == BUILT_IN for e in registry().entries("aggregator")
    )
    return f"{name}-{kind}" if taken else name


def _source(target: Any) -> str:
    module = getattr(target, "__module__", None) or type(target).__module__
    spec = importlib.util.find_spec(module) if module not in ("__main__", "builtins") else None
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return one_line(f"{module}:{name}" + (f" ({spec.origin})" if spec is not None and spec.origin else ""))


def _counterexamples(out: Any, entry: Entry) -> None:
    """Those of the stored certificate: what the plugin does not promise is interesting, too."""
    known = registry().ask("mtlcore_certified", kind=entry.kind, name=entry.name, options={}) or {"rows": []}
    refuted = [r for r in known["rows"] if r["status"] == "refuted"]
    if refuted:
        out.print(cell("\nCounterexamples:", "bold"))
    for row in refuted:
        example = (row.get("counterexample") or {}).get("example") or {}
        where = {k: v for k, v in example.items() if k in ("jacobian", "losses", "extra") and v not in ({}, None)}
        promise = ", claimed" if row["claimed"] else ""
        out.print(cell(f"  {row['law']}{promise}: {row.get('reason') or row.get('detail') or ''}"), soft_wrap=True)
        out.print(cell("    " + ", ".join(f"{k} = {v}" for k, v in where.items()), "dim"), soft_wrap=True)


def show_law(id: str, kind: str | None) -> None:
    """One law: what it states, where it comes from, what its margin means, and who claims it."""
    entries = {e.name: e for e in registry().entries("law") if e.status == "ok"}
    wanted = [name for name in entries if id in (name, name.rpartition(".")[2])]
    if kind is not None:
        wanted = [name for name in wanted if (name.partition(".")[0] if "." in name else "aggregator") == kind]
    if not wanted:
        raise UnknownPluginError(f"there is no law called {shown(id)}. {did_you_mean(id, entries)}")
    out = console()
    for name in wanted if id not in wanted or kind else [id, *[n for n in wanted if n != id]]:
        law = registry().load("law", name)
        out.print(cell(f"law {law.id}", "bold"), cell(f"about every {law.kind} ({entries[name].provenance})", "dim"))
        out.print(cell(plain(law.statement)))
        must = "every one must obey it, claimed or not" if getattr(law, "universal", False) else "a plugin may claim it"
        facts = {
            "status": must,
            "margin": getattr(law, "margin", ""),
            "source": getattr(law, "source", ""),
            "claimed by": ", ".join(_claimants(law)) or "no installed plugin",
        }
        _print_facts(out, facts)
        out.print()


def _claimants(law: Any) -> list[str]:
    if getattr(law, "universal", False):
        return [f"every {law.kind}"]
    names = []
    for entry in registry().entries(law.kind):
        if entry.status == "ok":
            try:
                if law.id in registry().create(law.kind, entry.name).claims:
                    names.append(entry.name)
            except Exception:  # what cannot be made claims nothing
                continue
    return names
