"""A method that looks at the losses twice: the same batch, the same noise, and no other trace of the second look."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from mtlcore import MultiTask


class Work:
    """A batch norm in trunk and heads, and noise from every stream that a closure may draw from."""

    def __init__(self):
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
        self.heads = nn.ModuleDict({n: nn.Sequential(nn.Linear(6, 1), nn.BatchNorm1d(1)) for n in "ab"})
        self.optimizer = torch.optim.SGD([*self.trunk.parameters(), *self.heads.parameters()], lr=0.1)
        self.x = torch.randn(8, 4)
        self.drawn = []

    def evaluate(self):
        self.drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
        z = self.trunk(self.x)
        return {n: (head(z) - i - 1.0).square().mean() for i, (n, head) in enumerate(self.heads.items())}, z


@pytest.mark.parametrize("method", ["sum", "famo"])
def test_a_second_look_leaves_no_trace(method):
    work = Work()
    mt = MultiTask(work.trunk, method, work.optimizer, heads=work.heads)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    for _ in range(3):
        mt.step(work.evaluate)
    looks = 2 if method == "famo" else 1
    assert len(work.drawn) == 3 * looks
    assert len(set(work.drawn)) == 3, "the second look draws what the first one drew"
    for module in [*work.trunk.modules(), *work.heads.modules()]:
        if isinstance(module, nn.BatchNorm1d):
            assert module.num_batches_tracked == 3
    after = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    assert after == [(random.random(), np.random.rand()) for _ in range(4)][3]
