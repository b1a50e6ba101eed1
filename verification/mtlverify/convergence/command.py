"""``mtl converge``: run methods on problems whose Pareto set is known, and say where they end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mtlcore import available, create
from mtlcore.errors import MtlError
from mtlcore.hosting import as_json, check_writable, own_stdout, plain, registry, to_stdout
from mtlverify.convergence.suite import CASES, STEPS
from mtlverify.convergence.verdict import Verdict, judge
from mtlverify.processes import workers

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SYMBOLS = {"converged": "✓", "approaching": "↘", "stalled": "✗", "error": "!"}


@app.command()
def main(
    methods: Annotated[Optional[list[str]], typer.Argument(metavar="[METHOD]...", help="All if left out.")] = None,  # noqa: UP045
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write the verdicts there; - is stdout.")] = None,  # noqa: UP045
    steps: Annotated[int, typer.Option(min=20, help="Steps per run.")] = STEPS,
    seed: Annotated[int, typer.Option(help="Of starts, noise and methods.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Run every method on every problem with exact and with noisy gradients, and say where it went.

    Exit code 1 if a run broke off or a claimed rate was not met, 0 otherwise: to stall is a finding, not a failure.
    """
    with own_stdout() as stdout:
        try:
            check_writable(json_file)
            for name in methods or []:
                registry().find("aggregator", name)
        except MtlError as error:
            typer.secho(f"mtl converge: {plain(error)}", fg="red", err=True)
            raise typer.Exit(2) from error
        chosen = methods or available("aggregator")
        with workers(jobs) as pool:
            found = list(pool.map(_verdicts, chosen, [steps] * len(chosen), [seed] * len(chosen)))
        verdicts = [v for method in found for v in method]
        told = as_json([v.to_json() for v in verdicts])
        if to_stdout(json_file):
            stdout.write(told)
    if json_file is not None and not to_stdout(json_file):
        json_file.write_text(told, encoding="utf-8")
    if not to_stdout(json_file):
        _show(verdicts)
    if any(v.verdict == "error" or v.as_claimed is False for v in verdicts):
        raise typer.Exit(1)


def _verdicts(method: str, steps: int, seed: int) -> list[Verdict]:
    plugin = create("aggregator", method)
    return [judge(plugin, case, noisy=noisy, steps=steps, seed=seed) for case in CASES for noisy in (False, True)]


def _show(verdicts: list[Verdict]) -> None:
    """One row per method, one column per problem; exact gradients first, then noisy ones; then the claims."""
    from mtlcore.hosting import console, table

    out = console()
    for noisy in (False, True):
        columns = [f"({i + 1})" for i in range(len(CASES))]
        made = table("method", *columns, whole=tuple(columns))
        made.title = "noisy gradients" if noisy else "exact gradients"
        for method in dict.fromkeys(v.method for v in verdicts):
            mine = {v.problem: v for v in verdicts if v.method == method and v.noisy == noisy}
            cells = [f"{SYMBOLS[v.verdict]} {v.remaining:.0e}" if v.tasks else "! error" for v in mine.values()]
            made.add_row(method, *cells)
        out.print(made)
    lines = [f"({i + 1}) {case.label}" for i, case in enumerate(CASES)]
    lines.append("✓ converged  ↘ approaching  ✗ stalled; the number is what is left of the first min-norm")
    for v in verdicts:
        if v.claimed:
            word = "as claimed" if v.as_claimed else "SLOWER THAN CLAIMED"
            lines.append(f"{v.method} on {v.problem}: {v.rate}; claimed {v.claimed}: {word}")
        if v.verdict == "error":
            lines.append(f"{v.method} on {v.problem}: {v.detail}")
    lines += dict.fromkeys(f"{v.method}: {v.source}" for v in verdicts if v.source)
    lines.append(f"{len(verdicts)} runs in {sum(v.seconds for v in verdicts):.0f} process-seconds")
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)
