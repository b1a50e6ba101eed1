"""Writes the reference pages that are made from the code: docs/reference/{api,methods,choosing,command-line}.md.

Run by `make docs`; a test fails when a page is stale.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import enum
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["MTLCORE_PLUGINS"] = "off"  # the pages describe this distribution, whatever else is installed

import mtlcore
from mtlcore import errors
from mtlcore.hyperparameters import allowed
from mtlcore.registry import registry

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Made by docs/generate.py from the code. Do not edit. -->\n\n"


def prose(text: str | None) -> str:
    """A docstring as Markdown: roles become code, Args and Raises become lists."""
    lines: list[str] = []
    for line in inspect.cleandoc(text or "").splitlines():
        line = re.sub(r":(?:class|func|meth|mod|attr):`~?([^`]+)`", lambda m: f"`{m[1].split('.')[-1]}`", line)
        line = line.replace("``", "`")
        if line in ("Args:", "Raises:", "Returns:"):
            line = f"**{line[:-1]}**\n"
        elif line.startswith("        "):
            line = line[4:]
        elif line.startswith("    "):
            head, colon, rest = line.strip().partition(": ")
            line = f"- `{head}`: {rest}" if colon and re.fullmatch(r"[\w, *]+", head) else f"  {line.strip()}"
        lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


def signature(thing: Any) -> str:
    """Its signature without the quotes of deferred annotations."""
    try:
        return str(inspect.signature(thing)).replace("'", "").replace("torch.Tensor", "Tensor")
    except (TypeError, ValueError):
        return ""


def attributes(cls: type) -> list[str]:
    """One line per documented attribute of the class: its name, what it is set to, and the string below it."""
    [body] = [n.body for n in ast.parse(inspect.getsource(cls)).body if isinstance(n, ast.ClassDef)]
    lines = []
    for node, below in itertools.pairwise(body):
        text = getattr(getattr(below, "value", None), "value", None)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(text, str):
            name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
            default = f" = {ast.unparse(node.value)}" if node.value is not None else ""
            lines.append(f"- `{name}{default}`: " + prose(text).strip().replace("\n", "\n  "))
    return lines


def api() -> str:
    """Everything ``mtlcore`` exports, and its errors."""
    out = [
        "# Python reference\n",
        f"What `mtlcore` {mtlcore.__version__} exports, and [the errors](#errors) of `mtlcore.errors`. "
        "Everything else is internal.\n",
    ]
    for name in sorted(mtlcore.__all__, key=str.lower):
        thing = getattr(mtlcore, name)
        if name.startswith("__") or name == "hookimpl":
            continue
        if not inspect.isclass(thing):
            out += [f"## {name}\n", f"```text\n{name}{signature(thing)}\n```\n", prose(thing.__doc__)]
            continue
        called = "" if issubclass(thing, enum.Enum) else signature(thing)
        out += [f"## {name}\n", f"```text\n{name}{called}\n```\n", prose(thing.__doc__)]
        known = attributes(thing)
        out += [*known, ""] if known else []
        for attribute, value in vars(thing).items():
            documented = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if attribute.startswith("_") or not inspect.isfunction(documented) or not documented.__doc__:
                continue
            shown = (
                ""
                if isinstance(value, property)
                else signature(documented).replace("(self, ", "(").replace("(self)", "()")
            )
            out += [f"### {name}.{attribute}\n", f"```text\n{attribute}{shown}\n```\n", prose(documented.__doc__)]
    out.append("## Errors\n")
    for name, error in vars(errors).items():
        if inspect.isclass(error):
            out.append(f"- `{name}({', '.join(b.__name__ for b in error.__bases__)})`: {prose(error.__doc__).strip()}")
    return "\n".join(out)


def methods() -> str:
    """Every built-in aggregator, detector and teleport with its hyper-parameters and claims."""
    out = [
        "# Methods\n",
        "Every built-in plugin: its docstring, its hyper-parameters and the laws it claims. What was verified and what "
        "was refuted is in [the ledger](ledger.md).\n",
        "Tags: [paper] read in the paper ([paper*]: as generally known, not read again); [code], [official code] read "
        "in the authors' code; [lib code] in a library's; [textbook]; [memory] not confirmed; [choice] ours.\n",
    ]
    for kind, title in (("aggregator", "Aggregators"), ("detector", "Conflict detectors"), ("teleport", "Teleports")):
        out.append(f"## {title}\n")
        for name in mtlcore.available(kind):
            cls = registry().load(kind, name)
            out += [f"### {name}\n", prose(cls.__doc__)]
            ranges = allowed(cls)
            if ranges:
                out.append("| hyper-parameter | default | allowed |\n|---|---|---|")
                for field in dataclasses.fields(cls):
                    if field.name in ranges:
                        out.append(f"| `{field.name}` | `{field.default!r}` | {ranges[field.name]} |")
                out.append("")
            plugin = mtlcore.create(kind, name)
            needs = getattr(plugin, "needs", None)
            claims = sorted(plugin.claims)
            facts = [f"Needs `{needs.name}`."] if needs is not None else []
            facts.append("Claims " + (", ".join(f"`{c}`" for c in claims) if claims else "nothing"))
            out.append(" ".join(facts) + f". Source: `{cls.__module__}`.\n")
    return "\n".join(out)


def choosing() -> str:
    """One line per aggregator: what it needs, what is known about it, and where it comes from."""
    rows = json.loads((REFERENCE / "ledger.json").read_text(encoding="utf-8"))
    known = {(r["name"], r["law"]): r["status"] for r in rows if r["kind"] == "aggregator" and not r["options"]}
    marks = {"proved": "proved", "verified": "verified", "refuted": "refuted"}
    out = [
        "# Which method?\n",
        "Start from what you can pay. Methods that need `LOSSES` cost one backward pass; `GRAMIAN` costs one per task "
        "(or one through the heads, where features are handed over); `JACOBIAN` keeps the gradients of all tasks, and "
        "several batches multiply the forward passes, too.\n",
        "- **No reason to think that tasks harm each other**: `ls`, tuned. It is the baseline that others must beat.\n"
        "- **Losses of different units, many tasks**: a method on log losses (`si`, `famo`, `stch`, `db-mtl`).\n"
        "- **No task may be harmed by a step**: a method whose column *no conflict* says proved (`upgrad`, `mgda`, "
        "`nash-mtl`, `fairgrad`, `gradops`, `dualproj`). MGDA stops at the first Pareto-stationary point it meets.\n"
        "- **A preference between tasks**: `ls` with weights, `pbi`, `cosmos`, `stch`; or `task-weighted` around any.\n"
        "- **Noisy gradients**: `moco`, `modo`, `sdmgrad`; or `cr-mogm` and `ema` around any method.\n"
        "- **Some tasks may be broken**: `capped-mgda`, `krum`, `trimmed-mean`.\n",
        "Verdicts are those of [the ledger](ledger.md); *claimed* is a promise that `mtl verify` checks and that has "
        "no row in it yet. Absent tasks: every method is asked about those present; *state* says what it remembers.\n",
        "| method | needs | batches | no conflict | scale-free | cone | state | source |\n" + 8 * "|---" + "|",
    ]
    for name in mtlcore.available("aggregator"):
        plugin = mtlcore.create("aggregator", name)
        verdicts = []
        for law in ("non-conflicting", "scale-free", "conic-combination"):
            verdicts.append(marks.get(known.get((name, law), ""), "claimed" if law in plugin.claims else "–"))
        state = ", ".join(f"`{key}`" for key in plugin.init(2)) or "none"
        paper = getattr(type(plugin), "paper", "")
        source = f"[paper or code]({paper})" if paper else "[see](methods.md#" + name + ")"
        cells = [
            f"[`{name}`](methods.md#{name})",
            f"`{plugin.needs.name}`",
            str(plugin.batches),
            *verdicts,
            state,
            source,
        ]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def command_line() -> str:
    """The help of every command."""
    out = ["# Command line\n", "`mtl ...` is the same as `python -m mtlcore ...`.\n"]
    env = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    for command in (
        [],
        ["list"],
        ["verify"],
        ["bench"],
        ["bench", "list"],
        ["bench", "run"],
        ["bench", "report"],
        ["new-plugin"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mtlcore", *command, "--help"], capture_output=True, text=True, env=env, check=True
        )
        text = "\n".join(line.rstrip() for line in done.stdout.replace("__main__.py", "mtl").splitlines()).strip()
        text = text.replace("python -m mtlcore", "mtl")
        out += [f"## {' '.join(['mtl', *command])}\n", f"```text\n{text}\n```\n"]
    return "\n".join(out)


PAGES = {"api.md": api, "methods.md": methods, "choosing.md": choosing, "command-line.md": command_line}


def main() -> None:
    """Write all pages. There are no options: whoever asks for help must not get new pages instead."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page, make in PAGES.items():
        (REFERENCE / page).write_text(NOTE + make().rstrip() + "\n", encoding="utf-8")
        print(f"wrote {REFERENCE / page}")


if __name__ == "__main__":
    main()
