"""The planner: a rule picks, plain autograd checks, and two equal runs are equal bit for bit."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from mtlbench.speed import workloads
from mtlcore import Aggregation, Aggregator, MultiTask, Needs
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.gradients import planner, rule
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.plan import PLANS
from mtlcore.gradients.rule import Shape, preferences
from mtlcore.presence import Presence
from support.architectures import build
from support.jacobians import explicit, make, shared_gradient
from support.methods import Fixed, FixedOnRows
from support.shapes import SHAPES

WEIGHTS = (1.0, -0.5, 2.0)


class Ones(Aggregator):
    """The sum, for however many tasks."""

    def aggregate(self, view, state):
        return Aggregation(weights=torch.ones(view.n_tasks), state=state)


def train(work, method, steps, **options):
    """Reports of some steps on the same batch, the .grad of each checked by nobody yet."""
    mt = MultiTask(work.trunk, aggregator=method, **options)
    reports, gradients = [], []
    for _ in range(steps):
        for p in work.parameters():
            p.grad = None
        losses, z = work.evaluate()
        reports.append(mt.backward(losses, features=z))
        gradients.append(shared_gradient(work))
    return mt, reports, gradients


def name(report):
    return report.gradient_source.split(":")[0]


@pytest.fixture
def always_together(monkeypatch):
    monkeypatch.setattr(rule, "_TINY", 0)
    monkeypatch.setattr(rule, "_against_together", lambda shape, factors: None if shape.separated else "no features")


SHAPE = Shape(
    tasks=5, functions=20, work=10**7, convolutions=False, kept=0.3, capped=False, separated=True, accelerator=False
)
LARGE = {"work": 10**12}


@pytest.mark.parametrize(
    ("needs", "changes", "expected"),
    [
        (Needs.GRAMIAN, {}, ["streaming-together", "streaming", "sequential"]),
        (Needs.GRAMIAN, {"kept": 1.0}, ["streaming-together", "sequential"]),
        (Needs.JACOBIAN, {}, ["batched", "sequential"]),
        (Needs.GRAMIAN, LARGE, ["streaming-together", "streaming", "sequential"]),
        (Needs.GRAMIAN, {**LARGE, "kept": 1.0}, ["sequential"]),
        (Needs.JACOBIAN, LARGE, ["sequential"]),
        (Needs.GRAMIAN, {"convolutions": True}, ["streaming", "sequential"]),
        (Needs.GRAMIAN, {"convolutions": True, "capped": True}, ["sequential"]),
        (Needs.GRAMIAN, {"separated": False}, ["streaming", "sequential"]),
        (Needs.GRAMIAN, {"tasks": 1}, ["streaming", "sequential"]),
        (Needs.GRAMIAN, {"tasks": 2}, ["streaming", "sequential"]),
        (Needs.GRAMIAN, {"tasks": 4, "work": 1000}, ["sequential"]),
        (Needs.GRAMIAN, {"tasks": 5, "work": 1000}, ["streaming-together", "sequential"]),
        (Needs.JACOBIAN, {"tasks": 1}, ["sequential"]),
        (Needs.GRAMIAN, {"accelerator": True}, ["streaming", "sequential"]),
        (Needs.GRAMIAN, {"accelerator": True, "tasks": 40}, ["streaming-together", "streaming", "sequential"]),
        (Needs.GRAMIAN, {"accelerator": True, "tasks": 40, **LARGE}, ["streaming", "sequential"]),
    ],
)
def test_the_rule(needs, changes, expected):
    plans, why = preferences(needs, dataclasses.replace(SHAPE, **changes))
    assert [p.name for p in plans] == expected
    assert why


def test_the_shape_of_a_network_is_read_from_its_graph():
    work = workloads.build(workloads.WORKLOADS["mlp3"])
    losses, z = work.forward()
    shape = Shape.of(Batch(Presence(tuple("abc")), tuple(losses), (z,), tuple(work.trunk.parameters())))
    rows = len(work.inputs[0])
    assert shape.work == rows * sum(p.numel() for p in work.trunk.parameters() if p.ndim == 2)
    assert (shape.tasks, shape.separated, shape.convolutions, shape.accelerator) == (3, True, False, False)


LONG = {"cnn11": pytest.mark.slow}
"""cnn-bn3 and resnet3 have convolutions, mlp40 has many tasks: quicker."""


@pytest.mark.parametrize("work", [pytest.param(name, marks=LONG.get(name, ())) for name in workloads.WORKLOADS])
def test_two_equal_runs_are_equal_bit_for_bit(work):
    """Whatever else the machine does meanwhile."""

    def run():
        w = workloads.build(workloads.WORKLOADS[work])
        optimizer = torch.optim.SGD([*w.trunk.parameters(), *w.heads.parameters()], lr=1e-3)
        mt, sources = MultiTask(w.trunk, "upgrad"), []
        for _ in range(2):
            optimizer.zero_grad()
            losses, z = w.forward()
            sources.append(mt.backward(losses, features=z).gradient_source)
            optimizer.step()
        return sources, [p.detach().clone() for p in w.trunk.parameters()]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (first, one), (second, other) = run(), run()
    finally:
        torch.set_num_threads(threads)
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("source", [s for s in PLANS if s not in ("losses", "features")])
def test_every_name_a_report_shows_can_be_forced_and_means_the_same(source):
    method = FixedOnRows(WEIGHTS) if PLANS[source].provides == Needs.JACOBIAN else Fixed(WEIGHTS)
    _, reports, gradients = train(make(SHAPES["wide_mlp"]), method, 1, gradients=source)
    assert name(reports[0]) == source
    jacobian, _ = explicit(make(SHAPES["wide_mlp"]))
    expected = jacobian.T @ torch.tensor(WEIGHTS, dtype=torch.float64)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("always_together")
@pytest.mark.parametrize("method", [Fixed, FixedOnRows])
@pytest.mark.parametrize("shape", ["wide_mlp", "small_image_convolutions", "embedding_looked_up_twice"])
def test_every_step_is_a_correct_step(shape, method):
    jacobian, _ = explicit(make(SHAPES[shape]))
    expected = jacobian.T @ torch.tensor(WEIGHTS, dtype=torch.float64)
    _, reports, gradients = train(make(SHAPES[shape]), method(WEIGHTS), 3)
    for report, gradient in zip(reports, gradients):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(report.gramian, jacobian @ jacobian.T, rtol=1e-9, atol=0.0)
    assert "compared with plain autograd" in reports[0].gradient_source
    assert "compared" not in reports[1].gradient_source
    assert torch.equal(gradients[0], gradients[1]), "the step that compares is the chosen source's already"


@pytest.mark.usefixtures("always_together")
def test_a_graph_is_checked_once_and_a_new_one_again():
    work = make(SHAPES["wide_mlp"])
    mt, reports, _ = train(work, Ones(), 2)
    losses, z = work.evaluate()
    del losses["t1"]
    assert "compared" in mt.backward(losses, features=z).gradient_source  # two tasks: another shape
    losses, z = work.evaluate()
    assert mt.backward(losses, features=z).gradient_source == reports[-1].gradient_source


@pytest.mark.usefixtures("always_together")
def test_without_the_check_nothing_is_compared(monkeypatch):
    monkeypatch.setattr(planner.check, "disagreement", lambda *a: pytest.fail("compared"))
    _, reports, _ = train(make(SHAPES["wide_mlp"]), Fixed(WEIGHTS), 2, check_source=False)
    assert name(reports[0]) == "streaming-together"
    assert "compared" not in reports[0].gradient_source


class _Crooked(torch.autograd.Function):
    """Its backward asks the shape of what it gets: right for one task, wrong under vmap, and silent about it."""

    generate_vmap_rule = False

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g if not torch._C._functorch.is_batchedtensor(g) else 1.5 * g


class _Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(40, 30), nn.Linear(30, 24)

    def forward(self, x):
        return self.b(torch.tanh(_Crooked.apply(self.a(x))))


@pytest.mark.usefixtures("always_together")
@pytest.mark.parametrize("method", [Fixed, FixedOnRows])
def test_a_source_that_errs_is_refused_and_the_gradients_stay_right(method):
    def crooked():
        from support.architectures import _standard, _x

        return _standard(_Wrong(), _x(4, 40), 24)

    jacobian, _ = explicit(make(crooked))
    expected = jacobian.T @ torch.tensor(WEIGHTS, dtype=torch.float64)
    _, reports, gradients = train(make(crooked), method(WEIGHTS), 3)
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert "refused" in reports[-1].gradient_source
    assert "together" not in reports[-1].gradient_source.split(":")[0]
    assert "batched" not in reports[-1].gradient_source.split(":")[0]


def test_memory_budget():
    work = make(SHAPES["wide_mlp"], torch.float32)
    rows = 3 * sum(p.numel() for p in work.trunk.parameters()) * 4
    _, reports, _ = train(work, Fixed(WEIGHTS), 1, gradient_memory=rows - 1)
    assert reports[0].gradient_source == "streaming: the rows would not fit into the memory budget"
    with pytest.raises(ConfigurationError, match="reads whole rows"):
        train(work, FixedOnRows(WEIGHTS), 1, gradient_memory=rows - 1)
    _, reports, _ = train(work, Fixed(WEIGHTS), 1, gradient_memory=rows)
    assert "memory" not in reports[0].gradient_source


def test_unknown_source():
    with pytest.raises(
        ConfigurationError, match="auto, losses, features, sequential, batched, streaming, streaming-to"
    ):
        MultiTask(nn.Linear(2, 2), aggregator=Fixed(()), gradients="fast")


def test_without_features_the_report_says_what_it_costs():
    work = build("mlp")
    losses, _ = work.evaluate()
    assert "no features were given" in MultiTask(work.trunk, aggregator=Fixed(WEIGHTS)).backward(losses).gradient_source


def heads(width, k=3):
    return nn.ModuleList(nn.Linear(width, 2) for _ in range(k))


def test_another_graph_of_the_same_shape_goes_by_the_reference():
    """The winner differentiates all tasks at once; then a head appears that reads a weight of the trunk."""
    torch.manual_seed(0)
    trunk, hs = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), heads(8, 9)
    names = [f"t{i}" for i in range(9)]
    mt = MultiTask(trunk, aggregator=Ones(), tasks=names)
    for present in (range(8), range(1, 9), range(8), range(1, 9)):
        trunk.zero_grad()
        z = trunk(torch.randn(5, 6))
        losses = {names[i]: (hs[i](z) if i < 8 else z @ trunk[0].weight).square().mean() for i in present}
        expected = torch.autograd.grad(sum(losses.values()), list(trunk.parameters()), retain_graph=True)
        report = mt.backward(losses, features=z)
        for p, g in zip(trunk.parameters(), expected):
            torch.testing.assert_close(p.grad, g)
        assert name(report) == ("streaming-together" if 8 not in present else "sequential")


@pytest.mark.usefixtures("always_together")
@pytest.mark.parametrize("odd", ["a head reads a weight of the trunk", "a hook on the features"])
def test_a_graph_that_some_candidates_can_serve_is_not_forced_on_the_others(odd):
    """Every other step; the plan of the plain steps is one that cannot."""
    torch.manual_seed(0)
    trunk, hs = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), heads(8)
    mt = MultiTask(trunk, aggregator=Ones())
    for step in range(6):
        trunk.zero_grad()
        z = trunk(torch.randn(5, 6))
        losses = {f"t{i}": h(z).square().mean() for i, h in enumerate(hs)}
        if step % 2 and "hook" in odd:
            z.register_hook(torch.neg)
        elif step % 2:
            losses["t0"] = (z @ trunk[0].weight).square().mean()
        expected = torch.autograd.grad(sum(losses.values()), list(trunk.parameters()), retain_graph=True)
        report = mt.backward(losses, features=z)
        for p, g in zip(trunk.parameters(), expected):
            torch.testing.assert_close(p.grad, g)
        assert name(report) == ("sequential" if step % 2 else "streaming-together")


@pytest.mark.usefixtures("always_together")
def test_a_first_step_with_an_infinite_gradient_judges_nobody():
    torch.manual_seed(0)
    trunk, hs = nn.Linear(6, 8), heads(8)
    mt = MultiTask(trunk, aggregator=Fixed(WEIGHTS))
    for bad in (True, False, False):
        y = trunk(torch.randn(4, 6))
        z = y * 0 + (y - y.detach()).abs().sqrt() if bad else y
        losses = {f"t{i}": h(z).square().mean() for i, h in enumerate(hs)}
        if bad:
            with pytest.raises(NonFiniteError):
                mt.backward(losses, features=z)
        else:
            source = mt.backward(losses, features=z).gradient_source
            assert "refused" not in source


@pytest.mark.usefixtures("always_together")
@pytest.mark.parametrize("method", [Ones(), FixedOnRows(WEIGHTS)])
def test_numbers_are_held_once_for_all_shapes(method):
    torch.manual_seed(0)
    trunk, hs = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)), heads(16)
    mt = MultiTask(trunk, aggregator=method)
    for batch in (2, 4, 8, 16, 32):
        for _ in range(3):
            z = trunk(torch.randn(batch, 16))
            mt.backward({f"t{i}": h(z).square().mean() for i, h in enumerate(hs)}, features=z)
    assert mt._run.planner.storage._flat.numel() <= 3 * sum(p.numel() for p in trunk.parameters())
    assert len(pickle.dumps(mt._run.planner.storage)) < 1000
    pickle.dumps(mt)


def test_a_budget_counts_bytes_and_is_kept():
    work = make(SHAPES["small_image_convolutions"])  # float64, and mostly whole gradients
    numbers = sum(p.numel() for p in work.trunk.parameters())
    _, reports, _ = train(work, Fixed(WEIGHTS), 1, gradient_memory=3 * numbers * 8 - 1)
    assert reports[0].gradient_source.startswith("streaming")
    mt, _, gradients = train(work, Fixed(WEIGHTS), 1, gradient_memory=2 * numbers * 8)
    assert mt._run.planner.storage._flat.numel() <= 2 * numbers
    jacobian, _ = explicit(make(SHAPES["small_image_convolutions"]))
    expected = jacobian.T @ torch.tensor(WEIGHTS, dtype=torch.float64)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("budget", ["1GB", -5, 0, 1.5, True])
def test_a_budget_is_a_number_of_bytes(budget):
    with pytest.raises(ConfigurationError, match="gradient_memory=.*positive whole number of bytes"):
        MultiTask(nn.Linear(2, 2), aggregator=Fixed(()), gradient_memory=budget)


# --- the clock, for who asks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Fixed(WEIGHTS), FixedOnRows(WEIGHTS)])
def test_tune_measures_pins_and_leaves_no_trace(method):
    work = make(SHAPES["wide_mlp"])
    mt = MultiTask(work.trunk, aggregator=method)
    before = [p.detach().clone() for p in work.parameters()]
    noise = torch.get_rng_state()
    table = mt.tune(work.evaluate, repeats=2)
    exact = {p.name for p in PLANS.values() if p.provides >= method.needs and p.name != "features"}
    assert {r.source for r in table.rows} == exact
    assert table.rows[0].ratio == 1.0
    assert table.fastest in str(table)
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(work.parameters(), before))
    assert torch.equal(torch.get_rng_state(), noise)
    losses, z = work.evaluate()
    report = mt.backward(losses, features=z)
    assert name(report) == table.fastest
    assert "pinned by tune" in report.gradient_source
    again = MultiTask(work.trunk, aggregator=method)
    again.load_state_dict(mt.state_dict())
    losses, z = work.evaluate()
    assert name(again.backward(losses, features=z)) == table.fastest


def test_tune_says_why_a_source_cannot_serve():
    from support.architectures import _standard, _x

    work = make(lambda: _standard(_Wrong(), _x(4, 40), 24))
    table = MultiTask(work.trunk, aggregator=Fixed(WEIGHTS)).tune(work.evaluate, repeats=1)
    refused = {r.source: r.refused for r in table.rows if r.seconds is None}
    assert "differ from plain autograd" in refused["streaming-together"]
    assert table.fastest not in refused
    with pytest.raises(ConfigurationError, match="at least once"):
        MultiTask(work.trunk, aggregator=Fixed(WEIGHTS)).tune(work.evaluate, repeats=0)


def test_a_pin_that_cannot_serve_another_graph_gives_way():
    torch.manual_seed(0)
    trunk, hs = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), heads(8)
    mt = MultiTask(trunk, aggregator=Fixed(WEIGHTS))
    mt._run.planner.pin(Needs.GRAMIAN, "streaming-together")
    z = trunk(torch.randn(5, 6))
    z.register_hook(torch.neg)
    losses = [h(z).square().mean() for h in hs]
    expected = torch.autograd.grad(sum(w * x for w, x in zip(WEIGHTS, losses)), [trunk[0].weight], retain_graph=True)
    report = mt.backward(losses, features=z)
    assert name(report) == "sequential"
    assert "streaming-together refused" in report.gradient_source
    torch.testing.assert_close(trunk[0].weight.grad, expected[0])
