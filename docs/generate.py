"""Writes the reference pages that are made from the code: docs/reference/{methods,choosing,command-line}.md,
methods/*.md; and the verdicts of the ledger that `mtl show` prints.

Run by `make docs`; a test fails when a page is stale.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["MTLCORE_PLUGINS"] = "off"  # the pages describe this distribution, whatever else is installed

import typer
from method_facts import EQUATIONS
from method_facts import TITLES as PAPERS
from typer.testing import CliRunner

import mtlcore
from mtlcore import cli
from mtlcore.card import card
from mtlcore.discovery import extra_of
from mtlcore.glance import packages
from mtlcore.hyperparameters import allowed
from mtlcore.registry import registry
from mtlcore.showing import papers, slug
from mtlverify.ledger.build import Row
from mtlverify.ledger.verdicts import write as keep_verdicts

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Made by docs/generate.py from the code. Do not edit. -->\n\n"


SECTIONS = ("Args:", "Raises:", "Returns:")
FORMULA = re.compile(r"(?:^    .*\n?|^\n(?=    ))+", re.MULTILINE)


def sections(text: str | None) -> dict[str, str]:
    """A docstring in parts: "" is its text, "Args:" and so on are what stands below these headings."""
    parts: dict[str, list[str]] = {"": []}
    here = ""
    for line in inspect.cleandoc(text or "").splitlines():
        line = re.sub(r":(?:class|func|meth|mod|attr):`~?([^`]+)`", lambda m: f"`{m[1].split('.')[-1]}`", line)
        line = line.replace("``", "`").rstrip()
        if line in SECTIONS:
            here = line
        elif here and line and not line.startswith(" "):
            here = ""
        if line not in SECTIONS:
            parts.setdefault(here, []).append(line)
    return {name: "\n".join(lines).strip("\n") for name, lines in parts.items()}


def items(section: str) -> dict[str, str]:
    """{name: what it is} of a section of arguments or errors."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc("\n" + section).splitlines():
        head, colon, rest = line.partition(": ")
        if colon and re.fullmatch(r"[\w, *]+", head) and not line.startswith(" "):
            name, line = head, rest
        if name:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def prose(text: str) -> str:
    """The text of a docstring as Markdown: an indented formula keeps its lines."""

    def fenced(match: re.Match[str]) -> str:
        above = text[: match.start()].rstrip().splitlines()
        if above and re.match(r"\s*([-*]|\d+\.) ", above[-1]):
            return match[0]  # goes on with an item of a list
        return f"\n```text\n{inspect.cleandoc(match[0])}\n```\n"

    return re.sub(r"\n{3,}", "\n\n", FORMULA.sub(fenced, text))


TITLES = {
    "aggregator": "Aggregators",
    "detector": "Conflict detectors",
    "teleport": "Teleports",
    "explorer": "Explorers",
    "merger": "Mergers",
}
CALLS = {
    "explorer": 'explore(model, losses, batches, method="{name}", ...)',
    "merger": 'merge(base, experts, method="{name}")',
}
MARKS = {"proved": "● proved", "verified": "✓ verified", "refuted": "✗ refuted", "not-applicable": "– not applicable"}
COSTS = {
    "LOSSES": "One backward pass, whatever the number of tasks. The method reads the losses only.",
    "GRAMIAN": "The inner products of the K task gradients (K, K). How they are obtained, and what that costs in "
    "time and memory: [gradients](../../explanation/gradients.md).",
    "JACOBIAN": "The rows of the Jacobian (K, P): K gradients of the shared parameters in memory at once. See "
    "[gradients](../../explanation/gradients.md).",
}
TAGS = (
    "A tag in brackets says where a statement comes from: [paper] read in the paper ([paper*]: as generally known, not "
    "read again); [code], [official code] read in the authors' code; [lib code] in a library's; [textbook]; [derived] "
    "here; [memory] not confirmed; [choice] ours."
)


def summary(cls: type) -> str:
    """The first line of the docstring of the method's module: what it is, in one line."""
    text = (sys.modules[cls.__module__].__doc__ or cls.__doc__ or "").strip().splitlines()[0].replace("``", "`")
    text = re.sub(r"^`[\w-]+`: ", "", text)
    return text[0].upper() + text[1:]


def claims_of(kind: str, name: str) -> list[str]:
    return sorted(mtlcore.create(kind, name).claims)


def needs_of(kind: str, name: str) -> str | None:
    """What an instance with default options reads; None for what reads parameters (teleports)."""
    needs = getattr(mtlcore.create(kind, name), "needs", None)
    return needs.name if needs is not None else None


def namesakes(kind: str, name: str) -> dict[str, str]:
    """{kind: slug} of the methods of other kinds that have the same name."""
    return {k: slug(k, name) for k in TITLES if k != kind and name in mtlcore.available(k)}


def titled(kind: str, name: str) -> str:
    """What heads the page, and stands in lists: with its kind where another kind has the name, too."""
    return f"{name} ({kind})" if namesakes(kind, name) else name


def methods() -> str:
    """The table of all built-in methods, each with its page."""
    out = [
        "# Methods\n",
        "Every built-in method has a page: equation, options, cost, what it promises, and what was refuted. "
        "`mtl list` shows the same names, and those of every other plugin that is installed. "
        "[Which method?](choosing.md) compares the aggregators.\n",
    ]
    for kind, title in TITLES.items():
        out.append(f"## {title}\n\n| name | what it is | reads | promises |\n|---|---|---|---|")
        for name in mtlcore.available(kind):
            cls = registry().load(kind, name)
            needs = needs_of(kind, name)
            reads = f"`{needs}`" if needs else "parameters"
            promises = len(claims_of(kind, name))
            link = f"[{titled(kind, name)}](methods/{slug(kind, name)}.md)"
            out.append(f"| {link} | {summary(cls)} | {reads} | {promises} laws |")
        out.append("")
    out.append("## Tags\n\n" + TAGS)
    names = [slug(kind, name) for kind in TITLES for name in mtlcore.available(kind)]
    out.append("\n```{toctree}\n:hidden:\n:maxdepth: 1\n\n" + "\n".join(f"methods/{n}" for n in names) + "\n```")
    return "\n".join(out)


def options(cls: type, meanings: dict[str, str]) -> str:
    """Its hyper-parameters as a table; one sentence without any."""
    ranges = allowed(cls)
    rows = [
        f"| `{f.name}` | `{f.default!r}` | {ranges[f.name]} | {meanings.get(f.name, '').replace('|', chr(92) + '|')} |"
        for f in dataclasses.fields(cls)
        if f.name in ranges
    ]
    head = ["| option | default | allowed | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""]) if rows else "It has no options.\n"


def meanings(cls: type) -> dict[str, str]:
    """What its docstring, and those of its bases, say about each hyper-parameter."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        out |= items(sections(base.__doc__).get("Args:", "")) if base.__doc__ else {}
    return out


def shown(counterexample: dict[str, Any] | None) -> str:
    """A counterexample in a cell of a table: its Jacobian where it is small, otherwise where to find it."""
    rows = (counterexample or {}).get("example", {}).get("jacobian")
    text = str([[int(v) if float(v).is_integer() else v for v in row] for row in rows]) if rows else ""
    return f"J = `{text}`" if text and len(text) <= 100 else "stored in ledger.json"


def verdicts(kind: str, name: str, rows: list[dict[str, Any]]) -> str:
    """What the ledger knows about one method, one table for each set of options that it was asked with."""
    out = []
    own = (r for r in rows if (r["kind"], r["name"]) == (kind, name))
    for label, group in itertools.groupby(own, key=lambda r: r["label"]):
        asked = [r for r in group if r["status"] != "not-applicable"]
        out += [
            f"### {label}\n",
            "| law | promised | verdict | inputs | why, or a counterexample |",
            "|---|---|---|---|---|",
        ]
        for r in sorted(asked, key=lambda r: (not r["claimed"], r["law"])):
            why = shown(r["counterexample"]) if r["status"] == "refuted" else (r["citation"] or r["detail"])
            why = why.replace("|", "\\|")
            promised = "yes" if r["claimed"] else ""
            inputs = r["examples"] or "stored"
            if r.get("hunted"):
                inputs = f"{inputs}, {r['hunted']:,} hunted"
            out.append(f"| `{r['law']}` | {promised} | {MARKS[r['status']]} | {inputs} | {why} |")
        out.append("")
    return "\n".join(out) or "It is not in the ledger yet.\n"


def pictures(kind: str, name: str) -> str:
    """The drawings that the ledger keeps of this method's counterexamples."""
    found = sorted((REFERENCE / "figures").glob(f"{kind}.{name}.svg"))
    return "\n".join(f"![A counterexample for {name}, drawn in the plane](../figures/{p.name})\n" for p in found)


def method(kind: str, name: str, ledger: list[dict[str, Any]]) -> str:
    """The page of one method."""
    cls = registry().load(kind, name)
    equation = EQUATIONS.get(slug(kind, name))
    others = namesakes(kind, name)
    out = [f"# {titled(kind, name)}\n", summary(cls) + "\n"]
    for other, page in others.items():
        out.append(f"Not to be confused with the [{other} of the same name]({page}.md).\n")
    if equation:
        out.append(f"$$\n{equation}\n$$\n")
    call = CALLS.get(kind, 'MultiTask(trunk, {kind}="{name}", ...)').format(kind=kind, name=name)
    which = f" --kind {kind}" if others else ""
    out.append(f"```text\nmtlcore.{call}\nmtl verify {name}{which}\n```\n")
    text = sections(cls.__doc__)
    out += [
        "## What it does\n",
        prose(text[""]) + "\n",
        "What the tags in brackets mean: [methods](../methods.md#tags).\n",
    ]
    out += ["## Options\n", options(cls, meanings(cls))]
    for package, why in packages(registry().find(kind, name)).items():
        extra = f"[the extra](../../install.md#extras) `{extra_of(package)}`"
        out.append(f"The package `{package}` is needed for {why}: {extra}.\n")
    errors = items(text.get("Raises:", ""))
    if errors:
        out += ["## Errors\n", *(f"- `{name}`: {why}" for name, why in errors.items()), ""]
    needs = needs_of(kind, name)
    if needs:
        out += ["## Cost\n", COSTS[needs] + "\n"]
    claims = ", ".join(f"`{c}`" for c in claims_of(kind, name)) or "nothing"
    out += [
        "## Promises and refutations\n",
        f"With default options it promises {claims}.\n",
        verdicts(kind, name, ledger),
    ]
    out += [
        pictures(kind, name),
        "How to read this: [what is verified](../../explanation/what-is-verified.md). All methods ",
    ]
    out[-1] += "side by side: [the ledger](../ledger.md).\n"
    out.append("## Sources\n")
    out += [f"- Paper: [{PAPERS[address]}]({address})" for address in papers(cls)]
    file = Path(inspect.getsourcefile(cls) or "").resolve().relative_to(REFERENCE.parents[1])
    out.append(f"- Code: [`{file}`](../../../{file})")
    return "\n".join(out)


def method_pages() -> dict[str, Callable[[], str]]:
    """File name -> maker, for every built-in method."""
    ledger = json.loads((REFERENCE / "ledger.json").read_text(encoding="utf-8"))
    return {
        f"methods/{slug(kind, name)}.md": functools.partial(method, kind, name, ledger)
        for kind in TITLES
        for name in mtlcore.available(kind)
    }


CHOOSING = """# Which method?

**Nothing is known yet**: take the default, `nash-mtl`. [A rule](../results/standard.md#the-rule-for-the-default) chose
it from the committed results of seven tasks, among the methods that keep `non-conflicting`: the best mean rank, ties to
the cheaper step, then to the lower delta-m. FairGrad is tied with it. Those are small networks; measure your own with
`mtl bench`.

Otherwise start from what a step may cost. A method that needs `LOSSES` costs one backward pass. `GRAMIAN` costs up to
one pass per task, without keeping the gradients where a [source](../explanation/gradients.md) can avoid it.
`JACOBIAN` keeps the gradients of all tasks. Several batches multiply forward and backward passes. An inner step is a
forward and a backward pass. `mtl show NAME` prints the line of one method.

- **No reason to think that tasks harm each other**: `ls`, tuned. It is the baseline that others must beat.
- **Losses of different units, many tasks**: a method on log losses (`si`, `famo`, `db-mtl`).
- **No task may be harmed by a step**: a method whose column *no conflict* says proved or verified. MGDA stops at the
  first Pareto-stationary point that it meets.
- **A preference between tasks**: `ls` with weights, `pbi`, `cosmos`, `stch`; or `task-weighted` around any method.
- **Noisy gradients**: `moco`, `modo`, `sdmgrad`; or `cr-mogm` and `ema` around any method.
- **Some tasks may be broken**: `capped-mgda`, `krum`, `trimmed-mean`.

Every row is about default options. A wrapper (`clipped`, `cr-mogm`, `ema`, `layerwise`, `row-normalised`,
`task-weighted`) stands with its default method, `upgrad`, inside, and its row changes with the method. The columns:

- *no conflict*, *scale-free*, *cone*: the laws `non-conflicting`, `scale-free` and `conic-combination`. The verdicts
  are those of [the ledger](ledger.md). *Promised*: `mtl verify` checks it, and the ledger has no row yet. A dash:
  neither promised nor tried.
- *state*: what it remembers between steps.
- *random*: whether a step draws random numbers, always from the generator of the step. (The
  `bilb4mtl` methods draw only the first values of their router.)
- *absent tasks*: "left out": it is asked about the tasks present, and keeps the state of the others. "Sees them": it
  is asked about all tasks, and decides itself.
"""


def choosing() -> str:
    """One line per aggregator: what it needs, what is known about it, and where it comes from."""
    rows = json.loads((REFERENCE / "ledger.json").read_text(encoding="utf-8"))
    known = {(r["name"], r["law"]): r["status"] for r in rows if r["kind"] == "aggregator" and not r["options"]}
    heads = (
        "method",
        "needs",
        "cost of a step",
        "no conflict",
        "scale-free",
        "cone",
        "state",
        "random",
        "absent tasks",
        "source",
    )
    out = [CHOOSING, "| " + " | ".join(heads) + " |", len(heads) * "|---" + "|"]
    for name in mtlcore.available("aggregator"):
        plugin = mtlcore.create("aggregator", name)
        known_of = card(plugin)
        laws = ("non-conflicting", "scale-free", "conic-combination")
        verdicts = [known.get((name, law)) or ("promised" if law in plugin.claims else "–") for law in laws]
        sources = papers(type(plugin))
        cells = [
            f"[`{name}`](methods/{name}.md)",
            f"`{plugin.needs.name}`",
            known_of["cost of a step"],
            *verdicts,
            ", ".join(f"`{key}`" for key in plugin.init(2)) or "none",
            known_of["random"],
            known_of["absent tasks"],
            f"[{PAPERS[sources[0]]}]({sources[0]})" if sources else "–",
        ]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join([*out, FAILS, *_fails(rows)])


FAILS = """
## Where each fails

The laws that the ledger refutes for a method with its default options. The page of the method has a counterexample for
each. None of them is promised: a method need not obey a law to be good, but whoever counts on the law must know.

| method | refuted |
|---|---|"""


def _fails(rows: list[dict[str, Any]]) -> Iterator[str]:
    for name in mtlcore.available("aggregator"):
        mine = (r for r in rows if (r["kind"], r["name"], r["options"]) == ("aggregator", name, {}))
        refuted = sorted(f"`{r['law']}`" for r in mine if r["status"] == "refuted")
        yield f"| [`{name}`](methods/{name}.md) | {', '.join(refuted) or 'nothing'} |"


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of ``mtl``, from whichever package it comes."""
    yield path
    if hasattr(group, "list_commands"):
        context = group.make_context("mtl", [], resilient_parsing=True)
        for name in group.list_commands(context):
            if not group.get_command(context, name).hidden:  # a short form of another one
                yield from commands(group.get_command(context, name), (*path, name))


def command_line() -> str:
    """The help of every command."""
    out = ["# Command line\n", "`mtl ...` is the same as `python -m mtlcore ...`.\n"]
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})
    for command in commands(typer.main.get_command(cli.app)):
        shown = runner.invoke(cli.app, [*command, "--help"], prog_name="mtl", catch_exceptions=False)
        if shown.exit_code != 0:
            raise RuntimeError(f"mtl {' '.join(command)} --help ended with code {shown.exit_code}: {shown.output}")
        text = "\n".join(line.rstrip() for line in shown.output.splitlines()).strip()
        out += [f"## {' '.join(['mtl', *command])}\n", f"```text\n{text}\n```\n"]
    return "\n".join(out)


def pages() -> dict[str, Callable[[], str]]:
    """Every page that is made from the code: its file below docs/reference, and its maker."""
    return {"methods.md": methods, "choosing.md": choosing, "command-line.md": command_line, **method_pages()}


def write(to: Path) -> None:
    """Write all pages below ``to``; pages of methods that are gone disappear."""
    (to / "methods").mkdir(parents=True, exist_ok=True)
    made = pages()
    for stale in (to / "methods").glob("*.md"):
        if f"methods/{stale.name}" not in made:
            stale.unlink()
    for page, make in made.items():
        (to / page).write_text(NOTE + make().rstrip() + "\n", encoding="utf-8")


def main() -> None:
    """Write all pages. There are no options: whoever asks for help must not get new pages instead."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write(REFERENCE)
    keep_verdicts(Row(**row) for row in json.loads((REFERENCE / "ledger.json").read_text(encoding="utf-8")))
    print(f"wrote {len(pages())} pages below {REFERENCE}")


if __name__ == "__main__":
    main()
