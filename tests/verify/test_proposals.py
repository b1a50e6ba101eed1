"""Laws about teleports share networks and answers, and none sees what another one did to them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import mtlcore
from mtlcore import Displacement, TeleportStrategy
from mtlverify import memory
from mtlverify.laws.proposals import asked, quietly, trainable
from mtlverify.runner import check
from mtlverify.strategies.networks import ARCHITECTURES, NetworkExample


def everything(made):
    history = made.optimizer.state
    for _, name, parameter in trainable(made):
        yield name, parameter.detach(), history[parameter]["exp_avg"], history[parameter]["exp_avg_sq"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_that_is_built_twice_is_the_same_and_shares_nothing(architecture):
    example = NetworkExample(architecture, 3, 2, 5)
    first = example.build()
    values = [(n, *(v.clone() for v in found)) for n, *found in everything(first)]
    losses = quietly(first, 9)
    torch.stack(list(first.batch(3)()[0].values())).sum().backward()
    first.optimizer.step()
    with torch.no_grad():
        for part in (*first.trunk.parameters(), *first.trunk.buffers(), *first.heads.parameters()):
            part.zero_()
    second = example.build()
    for (name, *old), (again, *new) in zip(values, everything(second), strict=True):
        assert name == again
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True)), name
    assert all(torch.equal(losses[task], value) for task, value in quietly(second, 9).items())
    assert all(p.grad is None for _, _, p in trainable(second))


@dataclasses.dataclass(frozen=True)
class Counted(TeleportStrategy):
    """Proposes nothing."""

    def propose(self, problem, generator):
        return Displacement({})


def test_laws_that_look_at_the_answer_only_ask_once(monkeypatch):
    memory._KNOWN.clear()
    asked = []
    monkeypatch.setattr(Counted, "propose", lambda *about: asked.append(1) or Displacement({}))
    list(check(Counted(), ["finite"], 40))
    assert len(asked) == 10
    list(check(Counted(), ["shape-dtype-device"], 40))
    assert len(asked) == 10
    list(check(Counted(), ["pure"], 40))
    assert len(asked) == 20


def test_an_answer_is_that_of_this_plugin_and_these_options():
    example = NetworkExample("mlp", 3, 2, 1)
    near, far = (asked(mtlcore.create("teleport", "random", bound=s), example) for s in (0.1, 1.0))
    assert not torch.equal(near.parameters["0.weight"], far.parameters["0.weight"])
