"""Averaged copies of a network across teleports."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import mtlcore
from mtlcore.errors import ConfigurationError
from support.teleport_nets import Falling, problem


class Whole(nn.Module):
    """A user's network, in which the trunk and the heads have names of their own."""

    def __init__(self, made):
        super().__init__()
        self.encoder = made.trunk
        for name, head in made.heads.items():
            self.add_module(f"head_{name}", head)


def losses_of(made, trunk, heads) -> float:
    other = copy.copy(made)
    other.trunk, other.heads = trunk, heads
    return sum(other.losses(7).values())


def train(made, teleport, averaged, follow, steps=9, lr=0.0):
    """A step, a teleport and an average at a time; returns how many teleports there were, and the last report."""
    optimizer = made.optimizer(torch.optim.SGD, lr=lr)
    mt = mtlcore.MultiTask(
        made.trunk, "ls", optimizer, detector=Falling(), teleport=teleport, heads=made.heads, probe=made.batch(1)
    )
    if follow is not None:
        mt.follow(averaged, **follow)
    count = 0
    for s in range(steps):
        report = mt.step(made.batch(s))
        count += report.teleport.accepted
        averaged.update_parameters(made.both)
    return count, report


def prepared(kind="mlp", wrap=lambda made: nn.ModuleDict({"trunk": made.trunk, "heads": made.heads})):
    made = problem(kind)
    made.trunk.eval()
    made.both = wrap(made)
    return made, AveragedModel(made.both)


@pytest.mark.parametrize(
    ("name", "lr", "near"),
    [("relu-rescaling", 1e-3, 0.1), ("relu-rescaling", 0.0, 1e-9), ("linear-boundary", 0.0, 1e-9)],
)
def test_nine_teleports_and_the_average_is_as_good_as_the_network(name, lr, near):
    """Without steps in between it is the same function. Not carried, its loss is another one."""
    kept = {}
    for follow in (None, {}):
        made, averaged = prepared()
        count, report = train(made, name, averaged, follow, lr=lr)
        assert count == 9
        copied = averaged.module
        kept[follow is not None] = losses_of(made, copied["trunk"], copied["heads"])
        here = losses_of(made, made.trunk, made.heads)
        if follow is not None:
            assert report.teleport.diagnostics["averaged_copy"] == "carried"
    assert kept[True] == pytest.approx(here, rel=near)
    apart = {follow: abs(loss - here) for follow, loss in kept.items()}
    assert apart[False] > 2.0 * apart[True] + 0.01 * here, "or the test would pass without following"


def test_a_copy_of_a_whole_network_in_low_precision_and_with_names_of_its_own():
    made, averaged = prepared(wrap=Whole)
    averaged.float()
    mt = mtlcore.MultiTask(made.trunk, "ls", made.optimizer(), detector=Falling(), teleport="random", heads=made.heads)
    mt.follow(averaged, of=made.both)
    assert mt.step(made.batch(0)).teleport.accepted
    follower = mt._run.teleporter.followers[0]
    assert {id(p) for p in follower.parameters()} == {id(p) for p in averaged.module.parameters()}
    assert all(p.dtype == torch.float32 for p in averaged.module.parameters())


def test_the_copy_of_the_trunk_alone_follows_without_heads():
    made, _ = prepared()
    made.both = made.trunk
    averaged = AveragedModel(made.trunk)
    count, _ = train(made, "linear-boundary", averaged, {})
    assert count == 9
    assert losses_of(made, averaged.module, made.heads) == pytest.approx(
        losses_of(made, made.trunk, made.heads), rel=0.3
    )


def test_what_it_cannot_carry_it_says():
    made, averaged = prepared()
    with pytest.warns(UserWarning, match=r"not a reparametrisation of .*n_averaged\.zero_"):
        _, report = train(made, "lora", averaged, {}, steps=1)
    assert report.teleport.diagnostics["averaged_copy"].startswith("not carried")
    made, averaged = prepared(wrap=Whole)
    with pytest.warns(UserWarning, match=r"head_red\..*of=model"):
        train(made, "linear-boundary", averaged, {}, steps=1)


def test_a_refused_or_interrupted_teleport_leaves_the_copy_alone(monkeypatch):
    made, averaged = prepared()
    mt = mtlcore.MultiTask(made.trunk, "ls", made.optimizer(), detector=Falling(), teleport="random", heads=made.heads)
    mt.follow(averaged)
    before = [p.clone() for p in averaged.module.parameters()]

    def interrupted(*anything):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtlcore.teleporting.transaction.Transaction.commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mt.step(made.batch(0))
    assert all(map(torch.equal, before, averaged.module.parameters()))


def test_what_is_no_copy_is_refused():
    made, averaged = prepared()
    mt = mtlcore.MultiTask(made.trunk, "ls", teleport="random", heads=made.heads)
    with pytest.raises(ConfigurationError, match="found a dict"):
        mt.follow({})
    with pytest.raises(ConfigurationError, match="of the network itself"):
        mt.follow(made.trunk)
    with pytest.raises(ConfigurationError, match=r"of=model"):
        mt.follow(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match=r"of=model"):
        mt.follow(AveragedModel(nn.ModuleList([made.trunk, copy.deepcopy(made.trunk)])))
    with pytest.raises(ConfigurationError, match=r"not a copy of the module"):
        mt.follow(averaged, of=made.trunk)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mtlcore.MultiTask(made.trunk, "ls").follow(averaged)  # no teleports: nothing to carry
