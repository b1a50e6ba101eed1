"""The page: first the overview, then what methods do not do, then every method with its evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mtlverify.answer import ask
from mtlverify.example import Example
from mtlverify.ledger import figures, planar, store
from mtlverify.ledger.build import Row
from mtlverify.ledger.negatives import NEGATIVES
from mtlverify.ledger.subjects import Subject
from mtlverify.runner import laws

WORDS = {
    "proved": "● proved",
    "verified": "✓ verified",
    "refuted": "✗ refuted",
    "not-applicable": "– not applicable",
    "error": "! error",
}
HEADLINE = (
    "non-conflicting", "conic-combination", "pareto-stationary-zero", "permutation-equivariant",
    "positively-homogeneous", "scale-free", "linear-under-scaling", "no-conflict-identity",
)  # fmt: skip
"""Columns of the overview."""


def page(
    rows: Sequence[Row], title: str = "The ledger", preface: str = "", figures_at: str = "figures", runs: str = ""
) -> str:
    """Markdown; ``runs`` is what :func:`convergence` made."""
    parts = [f"# {title}\n", preface or _PREFACE, _overview(rows), _negatives(rows, figures_at), runs, _methods(rows)]
    return "\n".join(p for p in parts if p).rstrip() + "\n"


def convergence(verdicts: Sequence[dict[str, Any]]) -> str:
    """Where runs end, from the rows of ``mtl converge --json``."""
    signs = {"converged": "✓ converged", "approaching": "↘ approaching", "stalled": "✗ stalled", "error": "! error"}
    problems = list(dict.fromkeys(v["problem"] for v in verdicts))
    lines = [
        "## Where the methods go\n",
        "Runs on problems whose Pareto set is known, with exact gradients (`mtl converge`). The",
        "number is what is left of the first min-norm, by the independent reference. Noisy gradients and all numbers:",
        "[convergence.json](convergence.json).\n",
        "| method | " + " | ".join(problems) + " |",
        "|---" * (len(problems) + 1) + "|",
    ]
    for method in dict.fromkeys(v["method"] for v in verdicts):
        mine = [v for v in verdicts if v["method"] == method and not v["noisy"]]
        cells = [f"{signs[v['verdict']]} {v['remaining']:.0e}" for v in mine]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    claims = [v for v in verdicts if v["claimed"]]
    if claims:
        kept = sum(bool(v["as_claimed"]) for v in claims)
        lines.append(f"\nRates are claimed for {len(claims)} of these runs; {kept} of them kept the claim:\n")
        lines += dict.fromkeys(f"- {v['method']}: {v['source']}" for v in claims)
    return "\n".join(lines) + "\n"


def draw(rows: Iterable[Row], folder: Path) -> list[Path]:
    """A picture of every planar counterexample to non-conflict; returns the files."""
    drawn = []
    for row in rows:
        example = _planar(row)
        if example is None:
            continue
        answer = ask(_subject(row).make(), example)
        if answer.length == 0 or planar.worst_cosine(answer) >= 0:
            continue  # the harm is done in a later step, and the picture is of the first
        file = folder / f"{_subject(row).slug}.svg"
        cone = planar.has_common_descent(example.jacobian)
        title = f"{row.label}: d misses the good cone" if cone else f"{row.label} (no direction is good for all)"
        figures.write(answer, title, _describe(row, example, answer), file)
        drawn.append(file)
    return drawn


_PREFACE = """\
Written by `python -m mtlverify.ledger`; do not edit. The same as data: [ledger.json](ledger.json). How to read a law, a
tolerance and a verdict: [what is verified](../explanation/what-is-verified.md).

- **● proved**: there is a proof (cited below, with its assumptions), and the search found nothing against it.
- **✓ verified**: the search found no counterexample among the examples counted below. Evidence, not proof.
- **✗ refuted**: there is a counterexample; it is stored, and the tests replay it: it must still fail.
- **– not applicable**: the law says nothing about this method; the reason is given below.

What rests on a search is said under *strength*: inputs of each family, and inputs of the hunt, an adversarial search
for the smallest margin. Promises are hunted where inputs are gradients; networks, experts and searches have no slope.

A law in **bold** in a method's table is one that the method promises. A refuted law that nobody promised is no
defect: it is what one has to know before using the method.
"""


def _overview(rows: Sequence[Row]) -> str:
    """Aggregators x the laws asked about most."""
    table = {(r.label, r.law): r for r in rows if r.kind == "aggregator"}
    columns = [law for law in HEADLINE if any(law == k[1] for k in table)]
    labels = list(dict.fromkeys(k[0] for k in table))
    if not labels or not columns:
        return ""
    lines = ["## Overview of the aggregators\n", "| method | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for label in labels:
        cells = [WORDS[table[label, law].status] if (label, law) in table else "" for law in columns]
        lines.append(f"| [{label}](#{_anchor('aggregator', label)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _negatives(rows: Sequence[Row], figures_at: str) -> str:
    """The statements that must stay true, with numbers and pictures."""
    by_key = {(r.kind, r.name, tuple(r.options.items()), r.law): r for r in rows}
    lines = []
    for n in NEGATIVES:
        row = by_key.get((n.subject.kind, n.subject.name, n.subject.options, n.law))
        if row is None or row.counterexample is None or row.distribution != "mtlcore":
            continue
        lines += [f"### {n.sentence}\n", f"`{row.label}` and the law *{n.law}*: {n.why}.\n"]
        lines += [_evidence(row), ""]
        example = _planar(row)
        if example is not None:
            answer = ask(_subject(row).make(), example)
            lines += [f"![{_describe(row, example, answer)}]({figures_at}/{_subject(row).slug}.svg)\n"]
    if not lines:
        return ""
    head = """\
## What methods do not do

Each statement has a stored counterexample. In the pictures, blue arrows are task gradients, a dotted line across each
marks where that task begins to lose, the green cone is what improves every task, and the dashed orange arrow d is what
the method returns. (Parameters move along -d.)
"""
    return head + "\n" + "\n".join(lines)


def _methods(rows: Sequence[Row]) -> str:
    statements = {(law.kind, law.id): law for kind in {r.kind for r in rows} for law in laws(kind)}
    lines = ["## Every method\n"]
    for kind, label in dict.fromkeys((r.kind, r.label) for r in rows):
        mine = [r for r in rows if (r.kind, r.label) == (kind, label)]
        lines += [
            f"### {label} ({kind})\n",
            "| law | verdict | examples | worst margin | strength | evidence |",
            "|---|---|---|---|---|---|",
        ]
        for r in mine:
            name = f"**{r.law}**" if r.claimed else r.law
            examples = str(r.examples) if r.examples else ""
            margin = "" if r.worst_margin is None else _short(r.worst_margin)
            lines.append(f"| {name} | {WORDS[r.status]} | {examples} | {margin} | {r.strength} | {_cell(r)} |")
        lines.append("")
    lines += ["## The laws\n"]
    for (kind, id), law in sorted(statements.items()):
        lines.append(f"- *{kind}* **{id}**: {law.statement} Margin: {law.margin}. Source: {law.source}.")
    return "\n".join(lines) + "\n"


def _cell(row: Row) -> str:
    parts = []
    if row.citation:
        reader = " [read by a machine for few tasks]" if row.read_by == "machine" else ""
        parts.append(row.citation + (f" (needs: {row.assumptions})" if row.assumptions else "") + reader)
    if row.counterexample is not None:
        parts.append(_evidence(row))
    elif row.detail:
        parts.append(row.detail)
    return "; ".join(parts).replace("|", "\\|").replace("\n", " ")


def _evidence(row: Row) -> str:
    """The counterexample in words."""
    assert row.counterexample is not None
    example = row.counterexample["example"]
    parts = []
    if "jacobian" in example:
        parts.append(f"J = `{matrix(example['jacobian'])}`")
        if any(v != 1.0 for v in example["losses"]):
            parts.append(f"losses `{_vector(example['losses'])}`")
        if example["dtype"] != "float64":
            parts.append(example["dtype"])
        told = {k: v for k, v in example["extra"].items() if v not in ([], {})}
        parts += [f"{k} `{_vector(v) if isinstance(v, list) else v}`" for k, v in told.items()]
    else:
        parts.append("stored input")
    if row.detail:
        parts.append(row.detail)
    return "; ".join(parts)


def matrix(rows: Iterable[Iterable[float]]) -> str:
    """``[[1, 2], [-3, 1e-8]]``."""
    return "[" + ", ".join(_vector(row) for row in rows) + "]"


def _vector(values: Iterable[Any]) -> str:
    shown = (v if isinstance(v, str) else _vector(v) if isinstance(v, list) else _short(v) for v in values)
    return "[" + ", ".join(shown) + "]"


def _short(value: float) -> str:
    if isinstance(value, bool):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}"


def _planar(row: Row) -> Example | None:
    if row.kind != "aggregator" or row.law != "non-conflicting" or row.counterexample is None:
        return None
    example = store.example_of(row.counterexample)
    return example if example.jacobian.shape[1] == 2 else None


def _describe(row: Row, example: Example, answer: object) -> str:
    """What is in the picture, for those who do not see it."""
    d = answer.direction.double()  # type: ignore[attr-defined]
    rows = example.jacobian.double()
    angles = [
        math.degrees(math.acos(max(-1.0, min(1.0, float(g @ d / (g.norm() * d.norm()))))))
        for g in rows
        if float(g.norm()) > 0
    ]
    told = ", ".join(f"{a:.0f}" for a in angles)
    return (
        f"Gradients {matrix(rows.tolist())} in the plane. The direction of {row.label} makes angles of {told} degrees "
        f"with them; beyond 90 a task is harmed."
    )


def _subject(row: Row) -> Subject:
    return Subject(row.kind, row.name, tuple(row.options.items()))


def _anchor(kind: str, label: str) -> str:
    """What GitHub makes of the method's heading."""
    text = f"{label} ({kind})".lower()
    return "".join(c for c in text if c.isalnum() or c in " -_").replace(" ", "-")
