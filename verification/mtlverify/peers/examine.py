"""The ledger of another library's methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from mtlverify.law import Law
from mtlverify.ledger import store
from mtlverify.ledger.build import Row
from mtlverify.minimise import smaller
from mtlverify.peers.torchjd import Peer
from mtlverify.predicates import Precondition, escapable
from mtlverify.runner import Result, examine, laws
from mtlverify.strategies import NEARLY_STATIONARY, NOT_STATIONARY, jacobians

LAWS = (
    "finite", "pure", "deterministic", "shape-dtype-device", "non-conflicting", "permutation-equivariant",
    "positively-homogeneous", "linear-under-scaling", "conic-combination", "zero-only-if-stationary",
    "matches-reference",
)  # fmt: skip
"""Asked unless others are named."""


VISIBLE = 0.1
"""A conflict is sought that nobody can call rounding: a cosine below -0.1."""


def rows(
    peer: Peer, wanted: Iterable[str] = LAWS, max_examples: int = 60, seed: int = 0, hunt: float = 0.0
) -> Iterator[Row]:
    """One row per law; a counterexample is made as small as the built-in methods' are. What is stated is hunted for
    ``hunt`` seconds where sampling finds nothing."""
    by_id = {law.id: law for law in laws("aggregator")}
    for id in wanted:
        result = _searched(peer, by_id[id], max_examples, seed, hunt)
        yield Row(
            kind="aggregator",
            name=peer.name,
            label=peer.name,
            options={},
            distribution="torchjd",
            law=id,
            claimed=id in peer.promised,  # what every mtlcore plugin must obey, nobody there has promised
            status=result.status,
            examples=result.examples,
            worst_margin=result.worst_margin,
            detail=result.detail,
            counterexample=result.counterexample,
            families=dict(result.families),
            hunted=result.hunted,
            hunt_margin=result.hunt_margin,
        )


def _searched(peer: Peer, law: Law, max_examples: int, seed: int, hunt: float) -> Result:
    """The verdict, on the most telling counterexample that is found.

    Where no direction is good for all tasks a conflict is nobody's fault, so conflicts are sought elsewhere first, and
    visible ones first; then where a mean that nearly cancels leaves an iterative solver with a flat objective.
    """
    searches: list[tuple[Law, Precondition | None]] = [(law, None)]
    if law.id == "non-conflicting":
        visible = dataclasses.replace(law, check=lambda plugin, example: law.check(plugin, example) + VISIBLE)
        elsewhere = dataclasses.replace(visible, examples=lambda: jacobians(NOT_STATIONARY))
        flat = dataclasses.replace(law, examples=lambda: jacobians(NEARLY_STATIONARY, scalings=("unit",)))
        searches = [(elsewhere, escapable), (flat, escapable), (visible, None), (law, None)]
    tried, hunted, seen, broken = 0, 0, [], None
    for sought, allowed in searches:
        result = examine(peer, sought, max_examples, seed, hunt=hunt)
        tried, hunted = tried + result.examples, hunted + result.hunted
        seen += [] if result.hunt_margin is None else [result.hunt_margin]
        if result.status == "refuted" and result.counterexample is not None:
            candidate = smaller(sought, peer, store.example_of(result.counterexample), allowed)
            again = examine(peer, law, 1, seed, explicit=[candidate])
            shown = again if again.status == "refuted" else result
            return dataclasses.replace(shown, examples=tried, hunted=hunted, hunt_margin=min(seen, default=None))
        if result.status == "error":  # it raised on some input, which does not excuse it on all others
            broken = broken or result
        elif result.status != "verified":
            break
    return dataclasses.replace(broken or result, examples=tried, hunted=hunted, hunt_margin=min(seen, default=None))
