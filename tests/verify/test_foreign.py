"""Families, networks and laws of other packages are tried on every method, and methods of theirs on ours."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import mtlcore
from mtlcore import hookimpl
from mtlcore.errors import PluginError
from mtlcore.registry import registry
from mtlverify import certificates
from mtlverify.campaign import Depth, campaign
from mtlverify.law import law
from mtlverify.mutants import teleports, twins
from mtlverify.runner import chosen, examine
from mtlverify.strategies import jacobians, pick
from mtlverify.strategies.foreign import network

ODD = 777


def odd(draw):
    """Rows that no family of ours has: the first entry is 777."""
    rest = draw(pick.lists(pick.integers(-9, 9), min_size=5, max_size=5))
    return [[ODD, *rest[:2]], rest[2:]]


@network(4)
def gated(width):
    """A gated linear unit between two linear layers."""
    return nn.Sequential(nn.Linear(4, 2 * width), nn.GLU(), nn.Linear(width, width))


@law(
    "longer-than-zero",
    statement="The direction is as long as the longest gradient, or longer.",
    source="a stranger",
    examples=jacobians,
)
def longer(plugin, example):
    from mtlverify.answer import ask

    return ask(plugin, example).length - float(example.jacobian.double().norm(dim=1).max())


class Stranger:
    """What a package would register."""

    def __init__(self, family=odd):
        self.family = family

    @hookimpl
    def mtlcore_register_families(self, register):
        register("odd", self.family)

    @hookimpl
    def mtlcore_register_networks(self, register):
        register("gated", gated)

    @hookimpl
    def mtlcore_register_laws(self, register):
        register("longer-than-zero", longer)


@pytest.fixture
def stranger():
    mtlcore.add_plugin(Stranger(), name="stranger")
    yield
    mtlcore.remove_plugin("stranger")


@dataclasses.dataclass(frozen=True)
class BreaksOnTheOdd(twins.MinNorm):
    """Wrong where an entry is 777 times a power of two."""

    def weigh(self, view):
        weights = super().weigh(view)
        first = float(view.jacobian[0, 0].abs())
        hit = first > 0 and view.n_tasks > 1 and torch.frexp(torch.tensor(first))[0] == ODD / 1024
        return weights.flip(0) * 3.0 if hit else weights


def about(id):
    return chosen("aggregator", [id])[0]


def test_only_a_registered_family_shows_what_is_wrong_there(stranger):
    found = examine(BreaksOnTheOdd(), about("simplex-weights"), 120, 0, shrink=False)
    assert found.status == "refuted"
    assert found.counterexample["example"]["family"].partition(" (")[0] == "odd"
    mtlcore.remove_plugin("stranger")
    assert examine(BreaksOnTheOdd(), about("simplex-weights"), 120, 0, shrink=False).status == "verified"
    mtlcore.add_plugin(Stranger(), name="stranger")


def test_a_law_about_some_jacobians_is_tried_on_those_draws_only(stranger):
    plugin = mtlcore.create("aggregator", "pcgrad")
    aligned = examine(plugin, about("no-conflict-identity"), 60, 0)
    assert aligned.status == "verified"
    assert 0 < aligned.families["odd"] <= 20
    assert "odd" not in examine(plugin, about("pareto-stationary-zero"), 30, 0).families, "none is stationary"


def test_a_family_that_returns_nonsense_is_named_with_its_owner():
    mtlcore.add_plugin(Stranger(lambda draw: [[1, 2], [3]]), name="stranger")
    try:
        with pytest.raises(PluginError, match=r"family 'odd' of .* must return K rows"):
            examine(twins.Mean(), about("finite"), 60, 0)
    finally:
        mtlcore.remove_plugin("stranger")


def test_a_registered_network_is_tried_by_the_laws_of_teleports(stranger):
    (finite,) = chosen("teleport", ["shape-dtype-device"])
    assert examine(teleports.Rescaling(), finite, 60, 0).families["gated"] > 0


@dataclasses.dataclass(frozen=True)
class ScalesTheGate(teleports.Rescaling):
    """Takes a gate for a ReLU: found on no network of ours."""

    def layers(self, trunk):
        gate = isinstance(trunk, nn.Sequential) and any(isinstance(m, nn.GLU) for m in trunk)
        return ("0", "2") if gate else None

    def finish(self, problem, known, maps):
        return super().finish(problem, known, {n: d for n, d in maps.items() if n.startswith("0.")})


def test_a_teleport_that_is_wrong_on_a_registered_network_only_is_caught_there(stranger):
    (invariant,) = chosen("teleport", ["loss-invariant"])
    found = examine(ScalesTheGate(), invariant, 60, 0, shrink=False)
    assert (found.status, found.counterexample["example"]["architecture"]) == ("refuted", "gated")


def test_their_laws_are_tried_on_built_ins_and_make_old_certificates_worthless(monkeypatch):
    entry, options = registry().find("aggregator", "ls"), {}
    certificates.store("aggregator", "ls", options, [], 3, 0)
    assert certificates.lookup("aggregator", "ls", options, 3) is not None
    mtlcore.add_plugin(Stranger(), name="stranger")
    try:
        assert certificates.lookup("aggregator", "ls", options, 3) is None
        wanted = ["longer-than-zero"]
        [(_, [result])] = campaign([entry], Depth(40), laws=wanted, jobs=2)  # in this process: no other knows the law
        assert (result.law, result.status, result.claimed) == ("longer-than-zero", "refuted", False)
    finally:
        mtlcore.remove_plugin("stranger")
    assert certificates.lookup("aggregator", "ls", options, 3) is not None
