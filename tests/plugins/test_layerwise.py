"""``layerwise`` with one group is the method itself."""

from __future__ import annotations

import random

import pytest
import torch

import mtlcore
from mtlverify.answer import ask
from mtlverify.strategies import jacobians


@pytest.mark.parametrize("name", ["upgrad", "cagrad", "pcgrad", "ls"])
def test_one_group_is_the_method_itself(name):
    inside, around = mtlcore.create("aggregator", name), mtlcore.create("aggregator", "layerwise", method=name)
    assert around.claims >= inside.claims - {"one-backward-pass"}
    assert "one-backward-pass" not in around.claims
    rng = random.Random(0)
    for stratum in jacobians().strata:
        example = stratum.sample(rng)
        alone, wrapped = ask(inside, example), ask(around, example)
        assert torch.equal(alone.weights, wrapped.weights)
        assert torch.equal(alone.direction, wrapped.direction)


def test_several_groups_keep_less():
    grouped = mtlcore.create("aggregator", "layerwise", method="mgda", sizes=(1.0,))
    assert "non-conflicting" in grouped.claims
    assert "simplex-weights" not in grouped.claims
