"""What a step with an aggregator reads, costs and remembers, in a few words: for ``mtl show`` and the documentation."""

from __future__ import annotations

from mtlcore.contracts import Aggregator, Needs

READS = {
    Needs.LOSSES: "1 backward pass",
    Needs.GRAMIAN: "products of K gradients",
    Needs.JACOBIAN: "rows of K gradients",
}
DRAWS = "equivariant-in-distribution"
"""Only a method that draws in its steps promises symmetry in distribution alone."""


def card(method: Aggregator) -> dict[str, str]:
    """{what: in words} of a method with the options that it has."""
    return {
        "needs": method.needs.name.lower(),
        "cost of a step": _cost(method),
        "state": ", ".join(_state(method)) or "none",
        "random": "yes" if DRAWS in method.claims else "no",
        "absent tasks": "sees them" if method.handles_absent else "left out",
    }


def _cost(method: Aggregator) -> str:
    cost = READS[method.needs]
    if method.batches > 1:
        cost += f", {method.batches} batches"
    if method.looks_twice():
        cost += ", 1 more forward pass"
    inner = getattr(method, "inner_steps", 0)
    if inner:
        cost += f", {inner} inner steps"
    return cost


def _state(method: Aggregator) -> list[str]:
    """Names of what it remembers."""
    return sorted(method.init(2))
