"""``forum`` on gradients so long that its multiplier leaves no digits for the mixture."""

from __future__ import annotations

import torch

import mtlcore
from mtlverify.example import Example
from mtlverify.runner import chosen


def test_long_gradients_leave_a_mixture():
    (law,) = chosen("aggregator", ["finite"])
    for size in (2500.0, 5e120):
        example = Example(torch.tensor([[size]], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
        assert law.measure(mtlcore.create("aggregator", "forum"), example) > 0
