"""What ``mtl verify`` prints: a table of results, the counts, and every broken promise in full."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from mtlcore.hosting import cell, console, table

if TYPE_CHECKING:
    from mtlverify.runner import Result

STYLES = {"verified": "green", "refuted": "yellow", "not-applicable": "dim", "error": "bold red"}

MARGIN = (
    "margin: the smallest margin of the law over all inputs, a number without a unit. It is >= 0 where the law holds "
    "and negative where it is violated; `mtl show --law LAW` says what it measures."
)


def show(results: list[Result], all_rows: bool, asked_for: bool = False) -> None:
    """Print one line per plugin and law worth reading, the counts, and every broken promise in full; if the laws were
    asked for by name, also what refutes those that nobody promised."""
    out = console()
    groups = [[r] for r in results] if all_rows else _alike(results)
    out.print(_table([g for g in groups if all_rows or g[0].claimed or g[0].status == "refuted" or g[0].failed]))
    out.print(cell("\n" + MARGIN, "dim"))
    counts = ", ".join(f"{sum(r.status == s for r in results)} {s}" for s in STYLES)
    out.print(f"\n{sum(r.examples for r in results):,} examples tried: {counts}.")
    broken = [r for r in results if r.failed]
    others = [r for r in results if r.status == "refuted" and not r.failed]
    if others:
        out.print("A law that is refuted and not claimed is not a failure; --json FILE keeps its counterexample.")
    for r in others if asked_for else ():
        out.print(cell("\n" + _in_full([r]), "yellow"), soft_wrap=not sys.stdout.isatty())
    for group in _alike(broken):
        out.print(cell("\n" + _in_full(group), "red"), soft_wrap=not sys.stdout.isatty())
    if broken:
        promises = "1 promise" if len(broken) == 1 else f"{len(broken)} promises"
        out.print(cell(f"\n{promises} broken or unchecked.", "bold red"))
    elif any(r.claimed and r.status == "verified" for r in results):
        out.print(cell("Every promise kept.", "bold green"))
    else:
        out.print("No promise was checked.")


def _table(groups: list[list[Result]]) -> Any:
    """A row for every group. In a terminal a plugin's name has a row of its own, so that 80 columns hold every law."""
    terminal = sys.stdout.isatty()
    columns = (*(() if terminal else ("plugin",)), "law", "claimed", "status", "examples", "margin", "cause")
    made = table(*columns, right=("examples", "margin"), whole=columns[:-1])
    last = None
    for group in groups:
        r = group[0]
        if terminal and (r.kind, r.name) != last:
            made.add_row(cell(r.name, "bold"))
        law = r.law if len(group) == 1 else f"{r.law} and {len(group) - 1} more"
        made.add_row(
            *(cell(f"  {law}"),) if terminal else (cell(r.name), cell(law)),
            "yes" if r.claimed else "",
            cell(r.status, "bold red" if r.failed else STYLES[r.status]),
            str(r.examples),
            "" if r.worst_margin is None else f"{r.worst_margin:.2g}",
            cell(r.detail.partition(":")[0].removeprefix("the ") if r.status == "refuted" else "", "dim"),
        )
        last = (r.kind, r.name)
    return made


def _alike(results: list[Result]) -> list[list[Result]]:
    """The results one by one, but errors that say the same of a plugin, up to numbers, together: there is one cause."""
    groups: dict[Any, list[Result]] = {}
    for i, r in enumerate(results):
        groups.setdefault((r.kind, r.name, re.sub(r"\d+", "", r.detail)) if r.status == "error" else i, []).append(r)
    return list(groups.values())


def _in_full(group: list[Result]) -> str:
    """Who failed at what, why, what the law says, and on which input."""
    r = group[0]
    others = f" (and {', '.join(o.law for o in group[1:])})" if len(group) > 1 else ""
    lines = [f"{r.kind} {r.name} ({r.distribution}), {r.law}{others}: {r.status}. {r.detail}".rstrip()]
    if r.status == "refuted":
        lines += [f"  law: {statement}" for statement in [_statement(r)] if statement]
        lines += [f"  here: {r.reason}"] if r.reason else []
    if r.counterexample is not None:
        lines.append(f"  {_input(r.counterexample)}")
    return "\n".join(lines)


def _statement(result: Result) -> str:
    from mtlverify.runner import laws

    return next((law.statement for law in laws(result.kind) if law.id == result.law), "")


USUAL = {"seed": 0, "dtype": "float64"}
"""Not worth a word."""


def _input(counterexample: dict[str, Any]) -> str:
    """A counterexample in one line: what is not as usual."""
    example = {k: v for k, v in counterexample["example"].items() if k not in ("shape", "family", "extra")}
    example |= {k: v for k, v in (counterexample["example"].get("extra") or {}).items() if v != []}
    if set(example.get("losses", ())) == {1.0}:
        del example["losses"]
    shown = [f"{k} = {_plain(v)}" for k, v in example.items() if v is not None and USUAL.get(k) != v]
    return "counterexample: " + ", ".join(shown)


def _plain(value: Any) -> str:
    """Nested lists of numbers with 2 for 2.0."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(int(value)) if isinstance(value, float) and abs(value) < 1e6 and value == int(value) else repr(value)
