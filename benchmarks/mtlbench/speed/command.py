"""``mtl speed``: measure time and memory of gradients, methods and teleports."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure time and memory. `mtl speed SUITE --help` shows the options of a suite.",
)

_SUITES = {
    "distributed": "Two processes against one, DDP's plain step and rows that are all summed; bytes, and a cost model.",
    "everyday": "Many objectives, micro-batches, sparse tables, hundreds of dependent gradients.",
    "first-step": "What comparing the source with plain autograd costs, on deep and wide trunks.",
    "gradients": "Every gradient source against the floor and the peers, on eight workloads.",
    "loss-level": "The cost of a step of methods that read losses only, against a summed loss.",
    "report": "Processor time and memory of the report of 50,000 records.",
    "solvers": "Time and soundness of the weights alone, given the Gramian, against TorchJD.",
    "teleports": "What a teleport costs, and what it gains, on the benchmark's tasks.",
}
_PLAIN = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _add(suite: str, what: str) -> None:
    @app.command(suite, help=what, context_settings=_PLAIN)
    def run(
        context: typer.Context, arguments: Annotated[list[str] | None, typer.Argument(metavar="[OPTIONS]")] = None
    ) -> None:
        module = importlib.import_module(f"mtlbench.speed.{suite.replace('-', '_')}")
        status = module.main([*(arguments or []), *context.args])
        if status:
            raise typer.Exit(status)


for _suite, _what in _SUITES.items():
    _add(_suite, _what)
