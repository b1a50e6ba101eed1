"""The step that is taken: measured, with the method's laws in the optimizer's own metric, and whole in the cone."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

import mtlcore
from mtlcore import MultiTask
from mtlcore.errors import ConfigurationError, NonFiniteError, TrainingWarning
from mtlcore.geometry.ahead import ahead
from mtlcore.geometry.cone import multipliers
from mtlcore.geometry.moves import moves
from mtlcore.gradients.storage import Storage


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


@pytest.mark.parametrize("source", ["auto", "streaming", "streaming-together", "sequential"])
def test_taken_is_the_same_from_every_source(source):
    """Also where streaming would take parameters in blocks and keep none of their gradients."""
    found = []
    for gradients in (source, "batched"):
        torch.manual_seed(0)
        trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 4)
        ).double()
        x, optimizer = torch.randn(8, 1, 6, 6, dtype=torch.float64), torch.optim.Adam(trunk.parameters(), lr=1e-3)
        mt = MultiTask(trunk, "upgrad", optimizer, taken=True, gradients=gradients)

        def closure(trunk=trunk, x=x):
            z = trunk(x)
            return [(z * torch.sin(torch.arange(4.0) + i)).square().mean() for i in range(40)], z

        mt.step(closure)
        found.append(mt.step(closure).taken)
    torch.testing.assert_close(found[0].changes, found[1].changes, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(found[0].direction, found[1].direction, rtol=1e-9, atol=1e-9)


def test_taken_reads_nothing_that_an_earlier_step_left_in_memory(monkeypatch):
    """A parameter that no task reaches does not move, and only one group decays."""
    whole = Storage.take
    monkeypatch.setattr(Storage, "take", lambda *given: whole(*given).fill_(torch.nan))
    work = Work()
    work.trunk.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    unused, first, *others = work.trunk.parameters()
    assert unused is work.trunk.unused
    groups = [{"params": [first], "weight_decay": 0.1}, {"params": [unused, *others, *work.heads.parameters()]}]
    mt = MultiTask(work.trunk, "upgrad", torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0), taken=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        taken = [mt.step(work.evaluate).taken for _ in range(3)][-1]
    assert taken.changes.isfinite().all()
    assert sum(taken.shares.values()) == pytest.approx(1.0)
    assert taken.shares["decay"] != 0.0
    assert 0.0 < taken.preconditioner < 1.0


def test_taken_with_a_method_that_reads_losses():
    work = Work()
    taken = work.multitask("sum", taken=True).step(work.evaluate).taken
    assert (taken.changes < 0.0).any()


def test_taken_of_a_loss_for_every_sample():
    work = Work()
    mt = work.multitask(taken=True)
    before, rows = work.flat(), []
    for i in range(16):
        loss = work.heads[0](work.trunk(work.x))[i].square().sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(work.trunk.parameters()))]))
    report = mt.step(lambda: work.heads[0](work.trunk(work.x)).square().sum(1))
    torch.testing.assert_close(report.taken.changes, torch.stack(rows) @ (work.flat() - before), rtol=1e-9, atol=1e-15)


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


OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
    (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "dampening": 0.5}),
    (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}),
    (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.5}),
    (torch.optim.RMSprop, {"lr": 1e-3}),
    (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5, "centered": True, "weight_decay": 0.1}),
    (torch.optim.Adagrad, {"lr": 1e-2, "lr_decay": 0.01, "weight_decay": 0.1}),
]


class Noisy(Work):
    """Batches of four of 16, and tasks that pull apart: past gradients often point against present ones."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.draws, self.tasks = torch.Generator().manual_seed(0), (1.0, -1.0, 3.0)

    def closure(self):
        i = torch.randint(16, (4,), generator=self.draws)

        def evaluate():
            z = self.trunk(self.x[i])
            return [(c * h(z) - y[i]).square().mean() for c, h, y in zip(self.tasks, self.heads, self.y)], z

        return evaluate


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_the_move_is_known_before_the_optimizer_makes_it(optimizer, options):
    work = Noisy(optimizer=optimizer, **options)
    parameters = list(work.trunk.parameters())
    for _ in range(4):
        losses, _ = work.closure()()
        work.optimizer.zero_grad()
        sum(losses).backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        found = ahead(moves(work.optimizer, parameters, "test"), parameters, gradient)
        nudged = ahead(moves(work.optimizer, parameters, "test"), parameters, gradient * (1 + 1e-7))
        before = work.flat()
        work.optimizer.step()
        torch.testing.assert_close(before - work.flat(), found.moved, rtol=1e-9, atol=1e-15)
        if optimizer is torch.optim.SGD:  # the others renew D as well
            change = found.diagonal * gradient * 1e-7
            torch.testing.assert_close(nudged.moved - found.moved, change, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("method", ["upgrad", "ls", "graddrop"])
@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_the_whole_step_raises_no_loss(optimizer, options, method):
    """Of methods on the Gramian, on losses and on rows; the report says before what the optimizer does after."""
    work = Noisy(optimizer=optimizer, **options)
    mt = work.multitask(method, metric="step", taken=True)
    reports = [mt.step(work.closure()) for _ in range(25)]
    smallest = [r.taken.min_cosine for r in reports]
    for report, cosine in zip(reports, smallest):
        assert report.diagnostics["step_cosine"] == pytest.approx(cosine, abs=1e-9)
        assert cosine > -1e-4 or not report.diagnostics["step_safe"]
    safe = sum(r.diagnostics["step_safe"] for r in reports)
    assert safe >= 24, f"{safe} of 25 steps"
    assert any(r.diagnostics["step_before"] < -0.01 for r in reports), "the step of the method alone conflicts"


def test_a_step_that_harms_nobody_is_left_alone():
    """Bit for bit, whole trainings of a method that is non-conflicting under an optimizer without memory."""
    ends = []
    for metric in ("euclidean", "step"):
        work = Noisy(optimizer=torch.optim.SGD, lr=0.05)
        mt = work.multitask("upgrad", gradients="sequential", metric=metric)
        notes = [mt.step(work.closure()).diagnostics for _ in range(5)]
        ends.append(work.flat())
    assert torch.equal(*ends)
    assert all(n["step_rounds"] == 0 for n in notes)


def test_the_weights_that_were_written_are_reported():
    work = Noisy(optimizer=torch.optim.SGD, lr=0.01, momentum=0.95)
    mt = work.multitask("upgrad", metric="step", gradients="sequential")
    rounds = 0
    while not rounds:
        closure = work.closure()
        losses, _ = closure()
        rows = [torch.autograd.grad(v, list(work.trunk.parameters()), retain_graph=True) for v in losses]
        report = mt.step(closure)
        rounds = report.diagnostics["step_rounds"]
    written = torch.cat([p.grad.flatten() for p in work.trunk.parameters()])
    torch.testing.assert_close(
        torch.stack([torch.cat([g.flatten() for g in r]) for r in rows]).T @ report.weights, written
    )


def test_two_optimizers_and_groups_of_several_rates():
    work = Noisy(lr=1e-2)
    first, *rest = work.trunk.parameters()
    work.optimizer = [
        torch.optim.AdamW([{"params": [first], "lr": 3e-3, "weight_decay": 0.3}]),
        torch.optim.SGD([{"params": rest}, {"params": work.heads.parameters(), "lr": 1e-3}], lr=2e-3, momentum=0.9),
    ]
    mt = work.multitask("cagrad", metric="step", taken=True)
    taken = [mt.step(work.closure()) for _ in range(25)]
    assert min(r.taken.min_cosine for r in taken) > -1e-6
    assert any(r.diagnostics["step_rounds"] for r in taken)


def test_absent_tasks_and_gradients_that_wait():
    """What is in ``.grad`` already is a part of the step."""
    work = Noisy(optimizer=torch.optim.SGD, lr=1e-2, momentum=0.9)
    mt = MultiTask(work.trunk, "upgrad", work.optimizer, metric="step", tasks=["a", "b", "c"])
    for number in range(12):
        losses, z = work.closure()()
        present = {n: v for n, v in zip("abc", losses) if n != "abc"[number % 3]}
        rows = [torch.autograd.grad(v, list(work.trunk.parameters()), retain_graph=True) for v in present.values()]
        work.optimizer.zero_grad()
        for p in work.trunk.parameters():
            p.grad = 0.5 * torch.randn(p.shape, generator=work.draws).double()
        before = work.flat()
        report = mt.backward(present, z)
        work.optimizer.step()
        changes = torch.stack([torch.cat([g.flatten() for g in r]) for r in rows]) @ (work.flat() - before)
        assert float(changes.max()) < 1e-12
        assert report.weights[number % 3] == 0.0


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_the_cone_is_free_of_units(scale):
    generator = torch.Generator().manual_seed(1)
    for dependent in (False, True):
        rows = torch.randn(5, 8, generator=generator, dtype=torch.float64)
        rows[4] = rows[0] + rows[1] if dependent else rows[4]
        rows = rows * scale * 10.0 ** torch.arange(5.0, dtype=torch.float64)[:, None]
        point = torch.randn(8, generator=generator, dtype=torch.float64)
        y = multipliers(rows @ rows.T, rows @ point)
        near = point + rows.T @ y
        cosines = rows @ near / (rows.norm(dim=1) * near.norm())
        assert float(cosines.min()) > -1e-9
        assert bool((y >= 0).all())
        assert abs(float(y @ (rows @ near))) < 1e-9


def test_whoever_changes_the_gradients_afterwards_is_told():
    work = Noisy(lr=1e-3)
    mt = work.multitask("upgrad", metric="step")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mt.backward(*work.closure()())
        mt.backward(*work.closure()())  # accumulates
        work.optimizer.step()
        mt.step(work.closure())
    work.optimizer.zero_grad()
    mt.backward(*work.closure()())
    nn.utils.clip_grad_norm_(work.trunk.parameters(), 1e-3)
    with pytest.warns(TrainingWarning, match=r"4 parameters.*clipped"):
        work.optimizer.step()
    clipped = mtlcore.create("aggregator", "clipped", method="upgrad", max_norm=1e-3)
    mt = MultiTask(work.trunk, clipped, work.optimizer, metric="step", taken=True)
    assert min(mt.step(work.closure()).taken.min_cosine for _ in range(10)) > -1e-6


def test_a_move_that_is_not_finite_is_refused():
    work = Noisy(optimizer=torch.optim.SGD, lr=0.1, momentum=0.9)
    mt = work.multitask("upgrad", metric="step")
    mt.step(work.closure())
    work.optimizer.state[next(work.trunk.parameters())]["momentum_buffer"][0] = float("nan")
    before = work.flat()
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        mt.step(work.closure())
    assert torch.equal(before, work.flat())


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


@pytest.mark.parametrize("options", [{"metric": "optimizer"}, {"metric": "step"}, {"taken": True}])
@pytest.mark.parametrize(("source", "why"), [("features", "shared representation only"), ("losses", "takes none")])
def test_a_refused_source_says_why_and_which_ones_serve(options, source, why):
    work = Work()
    with pytest.raises(ConfigurationError, match=f'gradients="{source}" .*{why}') as refused:
        work.multitask(**options, gradients=source)
    assert "refresh" not in str(refused.value)
    assert 'Choose "sequential" or "batched"' in str(refused.value)
    for serves in ("sequential", "batched"):
        work.multitask(**options, gradients=serves).step(work.evaluate)


def test_the_source_says_that_factors_do_not_serve():
    work = Work()
    report = work.multitask(metric="optimizer", gradients="streaming").step(work.evaluate)
    assert "streaming keeps no rows" in report.gradient_source
    assert report.gradient_source.endswith("in the optimizer's metric")


def test_a_refusal_names_the_metric_that_was_asked_for():
    trunk = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)
    for metric in ("optimizer", "step"):
        mt = MultiTask(trunk, "upgrad", torch.optim.Adamax(trunk.parameters()), metric=metric)
        with pytest.raises(ConfigurationError, match=f'^metric="{metric}": .*Adamax is not known'):
            mt.step(lambda: {"a": trunk(x).sum(), "b": trunk(x).square().sum()})
