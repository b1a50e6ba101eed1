"""The step that is taken: measured, and with the method's laws in the optimizer's own metric."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError


class Work:
    """A small random network with three tasks."""

    def __init__(self, seed=0, optimizer=torch.optim.Adam, **options):
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3)).double()
        self.x, self.y = torch.randn(16, 5).double(), torch.randn(3, 16, 1).double()
        self.optimizer = optimizer([*self.trunk.parameters(), *self.heads.parameters()], **options)

    def evaluate(self):
        z = self.trunk(self.x)
        return [(h(z) - y).square().mean() for h, y in zip(self.heads, self.y)], z

    def multitask(self, method="upgrad", **options):
        return MultiTask(self.trunk, method, self.optimizer, **options)

    def flat(self):
        return torch.cat([p.detach().flatten() for p in self.trunk.parameters()])


def test_taken_is_the_change_of_the_losses():
    work = Work(lr=1e-5)
    mt = work.multitask(taken=True)
    for _ in range(3):
        rows = [torch.autograd.grad(v, list(work.trunk.parameters())) for v in _each(work)]
        before = work.flat()
        report = mt.step(work.evaluate)
        moved = work.flat() - before
        expected = torch.stack([torch.cat([g.flatten() for g in r]) @ moved for r in rows])
        torch.testing.assert_close(report.taken.changes, expected, rtol=1e-9, atol=0.0)
    json.dumps(report.scalars())
    assert report.scalars()["taken/min_cosine"] == report.taken.min_cosine == float(report.taken.cosines.min())
    assert report.taken.preconditioner < 0.999


def _each(work):
    return [work.evaluate()[0][i] for i in range(3)]


CASES = [
    (torch.optim.SGD, {"lr": 0.1}, {"gradient": 1.0, "momentum": 0.0, "decay": 0.0}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"decay": 0.0}),
    (torch.optim.Adam, {"lr": 0.01, "betas": (0.0, 0.99)}, {"gradient": 1.0, "momentum": 0.0, "decay": 0.0}),
    (torch.optim.Adam, {"lr": 0.01, "betas": (0.0, 0.99), "weight_decay": 0.1}, {"momentum": 0.0}),
    (torch.optim.AdamW, {"lr": 0.01, "betas": (0.0, 0.99), "weight_decay": 0.1}, {"momentum": 0.0}),
    (torch.optim.RMSprop, {"lr": 0.01, "centered": True}, {"gradient": 1.0}),
    (torch.optim.Adagrad, {"lr": 0.01, "lr_decay": 0.1}, {"gradient": 1.0}),
]


@pytest.mark.parametrize(("optimizer", "options", "shares"), CASES)
def test_the_parts_explain_the_step(optimizer, options, shares):
    """Without momentum nothing is left for it: the formula of every optimizer is the one that torch applies."""
    work = Work(optimizer=optimizer, **options)
    mt = work.multitask(taken=True)
    for _ in range(4):
        taken = mt.step(work.evaluate).taken
    assert sum(taken.shares.values()) == pytest.approx(1.0)
    for part, share in shares.items():
        assert taken.shares[part] == pytest.approx(share, abs=1e-9)
    if options.get("momentum"):
        assert taken.shares["momentum"] > 0.1
    if options.get("weight_decay"):
        assert abs(taken.shares["decay"]) > 1e-4


def smallest_cosine(metric, method):
    """Of the step on two quadratics, with an Adam that divides the second coordinate by ten."""
    targets = torch.tensor([[-1.0, 0.0], [0.8, -1.0]], dtype=torch.float64)
    x = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    adam = torch.optim.Adam([x], lr=1e-3, betas=(0.0, 0.9999))
    square = torch.tensor([1.0, 100.0], dtype=torch.float64)
    adam.state[x] = {"step": torch.tensor(1e5), "exp_avg": torch.zeros_like(x), "exp_avg_sq": square}
    mt = MultiTask([x], method, adam, metric=metric, taken=True)
    taken = mt.step(lambda: list((x - targets).square().sum(1) / 2)).taken
    assert taken.direction.min() > 0.0 or metric == "optimizer"
    return taken.min_cosine


@pytest.mark.parametrize("method", ["upgrad", "mgda"])
def test_the_step_conflicts_with_no_task_in_the_optimizers_metric(method):
    assert smallest_cosine("euclidean", method) < -0.1
    assert smallest_cosine("optimizer", method) > 0.0


@pytest.mark.parametrize("method", ["upgrad", "pcgrad", "graddrop"])
def test_under_sgd_the_metric_is_the_euclidean_bit_for_bit(method):
    ends = []
    for metric in ("euclidean", "optimizer"):
        work = Work(optimizer=torch.optim.SGD, lr=0.1, momentum=0.9)
        mt = work.multitask(method, gradients="sequential", metric=metric)
        for _ in range(3):
            mt.step(work.evaluate)
        ends.append(work.flat())
    assert torch.equal(*ends)


@pytest.mark.parametrize("method", ["upgrad", "cagrad", "graddrop"])
def test_rescaled_parameters_take_the_same_step(method):
    """Two groups of SGD with rates a and b are one group in coordinates y = x / sqrt(rate): the same answer."""

    def run(scale):
        work = Work()
        first, *rest = work.trunk.parameters()
        weight = first.detach().clone()
        with torch.no_grad():
            first.div_(scale)
        groups = [{"params": [first], "lr": 0.01 / scale**2}, {"params": [*rest, *work.heads.parameters()], "lr": 0.01}]
        optimizer = torch.optim.SGD(groups)

        def evaluate():
            layer = work.trunk[0]
            z = work.trunk[2](torch.tanh(work.x @ (scale * layer.weight).T + layer.bias))
            return [(h(z) - y).square().mean() for h, y in zip(work.heads, work.y)], z

        mt = MultiTask(work.trunk, method, optimizer, metric="optimizer", gradients="sequential", seed=3)
        for _ in range(3):
            mt.step(evaluate)
        assert not torch.equal(first.detach() * scale, weight)
        return torch.cat([first.detach().flatten() * scale, *(p.detach().flatten() for p in rest)])

    # 1 / 16 of the rate is the rate of a coordinate that is four times as long; powers of two round alike.
    torch.testing.assert_close(run(1.0), run(0.25), rtol=1e-6, atol=1e-9)


def test_what_cannot_be_served_is_refused_by_name():
    work = Work(optimizer=torch.optim.NAdam)
    with pytest.raises(ConfigurationError, match="NAdam"):
        work.multitask(metric="optimizer").step(work.evaluate)
    assert work.multitask(taken=True).step(work.evaluate).taken.shares == {}
    for options, why in [
        ({"metric": "riemann"}, "riemann"), ({"metric": "optimizer", "method": "sum"}, "losses only"),
        ({"taken": True, "refresh": 2}, "refresh"), ({"taken": True, "gradients": "features"}, "gradients"),
    ]:  # fmt: skip
        with pytest.raises(ConfigurationError, match=why):
            work.multitask(**options)


def test_the_source_says_that_factors_do_not_serve():
    work = Work()
    report = work.multitask(metric="optimizer", gradients="streaming").step(work.evaluate)
    assert "streaming keeps no rows" in report.gradient_source
    assert report.gradient_source.endswith("in the optimizer's metric")
