"""The planner: verified candidates, timed on real steps, one choice per shape, never a wrong gradient."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from mtlcore import Aggregation, Aggregator, MultiTask
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.gradients import calibration, planner
from support.architectures import build
from support.jacobians import explicit, make, shared_gradient
from support.methods import Fixed, FixedOnRows
from support.shapes import SHAPES

WEIGHTS = (1.0, -0.5, 2.0)
LONG = 17
"""Steps of a calibration among three candidates with one turn each in the final: 1 + 2 * 3 + 3 * 3, and one more."""


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(planner, "_SMALL", 0)
    monkeypatch.setattr(calibration, "_TURNS", 1)
    monkeypatch.setattr(calibration, "_MOST_TURNS", 1)


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


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("method", [Fixed, FixedOnRows])
@pytest.mark.parametrize("name", ["wide_mlp", "small_image_convolutions", "embedding_looked_up_twice"])
def test_every_step_of_a_calibration_is_a_correct_step(name, method):
    jacobian, _ = explicit(make(SHAPES[name]))
    expected = jacobian.T @ torch.tensor(WEIGHTS, dtype=torch.float64)
    _, reports, gradients = train(make(SHAPES[name]), method(WEIGHTS), LONG)
    for report, gradient in zip(reports, gradients):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(report.gramian, jacobian @ jacobian.T, rtol=1e-9, atol=0.0)
    assert reports[0].gradient_source.startswith("calibrating (sequential, ")
    assert "measured step times sequential 1.00" in reports[-1].gradient_source


@pytest.mark.usefixtures("everything_is_large")
def test_calibrates_once_per_shape_and_remembers():
    work = make(SHAPES["wide_mlp"])
    mt, reports, _ = train(work, Ones(), LONG)
    choice = dict(mt._planner.choices())
    assert len(choice) == 1
    losses, z = work.evaluate()
    del losses["t1"]
    assert "calibrating" in mt.backward(losses, features=z).gradient_source  # two tasks: another shape
    losses, z = work.evaluate()
    assert mt.backward(losses, features=z).gradient_source == reports[-1].gradient_source
    work.trunk.eval()
    losses, z = work.evaluate()
    assert "calibrating" in mt.backward(losses, features=z).gradient_source


@pytest.mark.usefixtures("everything_is_large")
def test_a_checkpoint_keeps_the_choice():
    mt, reports, _ = train(make(SHAPES["wide_mlp"]), Fixed(WEIGHTS), LONG)
    work = make(SHAPES["wide_mlp"])
    again = MultiTask(work.trunk, aggregator=Fixed(WEIGHTS))
    again.load_state_dict(mt.state_dict())
    losses, z = work.evaluate()
    report = again.backward(losses, features=z)
    assert report.gradient_source.split(":")[0] == reports[-1].gradient_source.split(":")[0]
    assert "as before the checkpoint" in report.gradient_source


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


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("method", [Fixed, FixedOnRows])
def test_a_source_that_errs_is_refused_and_the_gradients_stay_right(method):
    def crooked():
        from support.architectures import _standard, _x

        return _standard(_Wrong(), _x(4, 40), 24)

    jacobian, _ = explicit(make(crooked))
    expected = jacobian.T @ torch.tensor(WEIGHTS, dtype=torch.float64)
    _, reports, gradients = train(make(crooked), method(WEIGHTS), LONG)
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert "refused" in reports[-1].gradient_source
    assert "together" not in reports[-1].gradient_source.split(":")[0]
    assert "batched" not in reports[-1].gradient_source.split(":")[0]


@pytest.mark.usefixtures("everything_is_large")
def test_timing_decides(monkeypatch):
    clock = {"streaming": 2.2, "streaming-together": 1.8, "sequential": 2.0}
    monkeypatch.setattr(calibration.Calibration, "_note", _noting(clock))
    _, reports, _ = train(make(SHAPES["wide_mlp"]), Fixed(WEIGHTS), LONG)
    expected = "streaming-together: measured step times sequential 1.00, streaming 1.10, streaming-together 0.90"
    assert reports[-1].gradient_source == expected
    clock.update({"streaming-together": 1.95})
    _, reports, _ = train(make(SHAPES["wide_mlp"]), Fixed(WEIGHTS), LONG)
    assert reports[-1].gradient_source.startswith("sequential:")  # 2.5 % are not worth it


@pytest.mark.usefixtures("everything_is_large")
def test_who_is_far_behind_in_the_heats_is_not_in_the_final(monkeypatch):
    clock = {"streaming": 1.2, "streaming-together": 1.0, "sequential": 2.0}
    monkeypatch.setattr(calibration.Calibration, "_note", _noting(clock))
    _, reports, _ = train(make(SHAPES["wide_mlp"]), Fixed(WEIGHTS), 1 + 6 + 6 + 1)
    expected = "streaming-together: measured step times sequential 1.00, streaming 0.60, streaming-together 0.50"
    assert reports[-1].gradient_source == expected
    clock.update({"streaming": 3.0})
    _, reports, _ = train(make(SHAPES["wide_mlp"]), Fixed(WEIGHTS), 1 + 6 + 1)  # no final at all
    assert reports[-1].gradient_source.startswith("streaming-together: measured step times sequential 1.00")


def test_a_lucky_turn_and_the_first_steps_of_turns_do_not_decide(monkeypatch):
    monkeypatch.setattr(planner, "_SMALL", 0)
    true = {"streaming": 1.1, "streaming-together": 0.9, "sequential": 1.0}
    noted = []
    original = calibration.Calibration._note

    def note(self, candidate, seconds):
        n = len(noted)
        noted.append(candidate.label)
        first = noted[-2:-1] != [candidate.label]  # after another source: twice as slow for the one that is fastest
        spoilt = 2.0 if n >= 6 and first and candidate.label == "streaming-together" else 1.0
        lucky = 0.2 if 6 <= n < 15 and candidate.label == "streaming" else 1.0  # in one round of five
        load = 1.0 + (n - 6) // 9 % 3 if n >= 6 else 1.0  # of a whole round
        original(self, candidate, true[candidate.label] * spoilt * lucky * load)

    monkeypatch.setattr(calibration.Calibration, "_note", note)
    _, reports, _ = train(make(SHAPES["wide_mlp"]), Fixed(WEIGHTS), 1 + 6 + 5 * 9 + 1)
    assert reports[-1].gradient_source.startswith("streaming-together: measured step times sequential 1.00")


def _noting(clock):
    original = calibration.Calibration._note
    return lambda self, candidate, seconds: original(self, candidate, clock[candidate.label])


def test_small_steps_are_decided_without_the_clock(monkeypatch):
    monkeypatch.setattr(calibration._Stopwatch, "pause", lambda self: pytest.fail("timed"))
    _, reports, first = train(build("mlp"), Fixed(WEIGHTS), 2)
    assert reports[-1].gradient_source == "sequential: a small step, chosen by rule and not by the clock"
    weights = tuple(0.1 * i for i in range(40))
    _, reports, first = train(build("forty_tasks"), Fixed(weights), 3)
    assert reports[-1].gradient_source.startswith("streaming-together: a small step")
    _, _, second = train(build("forty_tasks"), Fixed(weights), 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert torch.equal(first[0], first[2])  # the verifying step is the chosen source's already


@pytest.mark.usefixtures("everything_is_large")
def test_deterministic_algorithms_switch_timing_off():
    torch.use_deterministic_algorithms(True)
    try:
        _, reports, _ = train(make(SHAPES["wide_mlp"]), Fixed(WEIGHTS), 2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert reports[0].gradient_source.startswith("sequential: deterministic algorithms are on")


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
    with pytest.raises(ConfigurationError, match="auto, losses, sequential, threaded, batched, streaming, features"):
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
    assert report.gradient_source.startswith("streaming-together: ")
    assert "sequential for another graph, which streaming-together cannot serve: " in report.gradient_source


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("odd", ["a head reads a weight of the trunk", "a hook on the features"])
def test_a_graph_that_some_candidates_can_serve_is_not_forced_on_the_others(odd, monkeypatch):
    """Every other step, in the contest and after it; the winner of the plain steps is one that cannot."""
    clock = {"streaming": 1.9, "streaming-together": 1.6, "sequential": 2.0}
    monkeypatch.setattr(calibration.Calibration, "_note", _noting(clock))
    torch.manual_seed(0)
    trunk, hs = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), heads(8)
    mt = MultiTask(trunk, aggregator=Ones())
    for step in range(LONG + 4):
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
    assert report.gradient_source.startswith("streaming-together: measured step times")
    assert "sequential for another graph, which streaming-together cannot serve: " in report.gradient_source


@pytest.mark.parametrize("odd", ["a head reads a weight of the trunk", "a hook on the features"])
def test_an_odd_first_step_does_not_rule_out_for_good_what_it_cannot_use(odd):
    torch.manual_seed(0)
    trunk, hs = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), heads(8, 8)
    mt = MultiTask(trunk, aggregator=Ones())
    sources = []
    for step in range(4):
        trunk.zero_grad()
        z = trunk(torch.randn(5, 6))
        losses = {f"t{i}": h(z).square().mean() for i, h in enumerate(hs)}
        if step < 2 and "hook" in odd:
            z.register_hook(torch.neg)
        elif step < 2:
            losses["t0"] = (z @ trunk[0].weight).square().mean()
        expected = torch.autograd.grad(sum(losses.values()), list(trunk.parameters()), retain_graph=True)
        sources.append(mt.backward(losses, features=z).gradient_source)
        for p, g in zip(trunk.parameters(), expected):
            torch.testing.assert_close(p.grad, g)
    assert "streaming-together refused" in sources[1]
    assert sources[2].startswith("streaming-together: a small step")
    assert sources[2].endswith("in this step compared with sequential")
    assert sources[3].endswith("not by the clock")


@pytest.mark.usefixtures("everything_is_large")
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
            assert source.startswith("calibrating")
            assert "refused" not in source


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("method", [Ones(), FixedOnRows(WEIGHTS)])
def test_numbers_are_held_once_for_all_shapes(method):
    torch.manual_seed(0)
    trunk, hs = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)), heads(16)
    mt = MultiTask(trunk, aggregator=method)
    held = set()
    for batch in (2, 4, 8, 16, 32):
        for _ in range(3):
            z = trunk(torch.randn(batch, 16))
            mt.backward({f"t{i}": h(z).square().mean() for i, h in enumerate(hs)}, features=z)
            sources = [c.source for cal in mt._planner._calibrations.values() for c in cal._candidates]
            held |= {id(s._storage) for s in sources}
    assert held == {id(mt._planner._storage)}
    assert mt._planner._storage._flat.numel() <= 3 * sum(p.numel() for p in trunk.parameters())
    assert len(pickle.dumps(mt._planner._storage)) < 1000
    pickle.dumps(mt)


@pytest.mark.usefixtures("everything_is_large")
def test_memory_of_the_reference_is_let_go_of_when_a_stream_wins():
    work = make(SHAPES["wide_mlp"])
    mt, _, _ = train(work, Fixed(WEIGHTS), 1)
    rows = 3 * sum(p.numel() for p in work.trunk.parameters())
    assert mt._planner._storage._flat.numel() == rows
    (contest,) = mt._planner._calibrations.values()
    contest._settle(next(c for c in contest._candidates if c.label == "streaming"))
    losses, z = work.evaluate()
    mt.backward(losses, features=z)
    assert 0 < mt._planner._storage._flat.numel() < rows / 2


def test_a_budget_counts_bytes_and_is_kept():
    work = make(SHAPES["small_image_convolutions"])  # float64, and mostly whole gradients
    numbers = sum(p.numel() for p in work.trunk.parameters())
    _, reports, _ = train(work, Fixed(WEIGHTS), 1, gradient_memory=3 * numbers * 8 - 1)
    assert reports[0].gradient_source.startswith("streaming")
    mt, _, gradients = train(work, Fixed(WEIGHTS), 1, gradient_memory=2 * numbers * 8)
    assert mt._planner._storage._flat.numel() <= 2 * numbers
    jacobian, _ = explicit(make(SHAPES["small_image_convolutions"]))
    expected = jacobian.T @ torch.tensor(WEIGHTS, dtype=torch.float64)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("budget", ["1GB", -5, 0, 1.5, True])
def test_a_budget_is_a_number_of_bytes(budget):
    with pytest.raises(ConfigurationError, match="gradient_memory=.*positive whole number of bytes"):
        MultiTask(nn.Linear(2, 2), aggregator=Fixed(()), gradient_memory=budget)


def test_a_budget_counts_after_a_checkpoint_too():
    work = make(SHAPES["wide_mlp"])
    key = next(iter(train(work, Fixed(WEIGHTS), 1)[0]._planner._calibrations))
    mt = MultiTask(work.trunk, aggregator=Fixed(WEIGHTS), gradient_memory=1)
    mt._planner.restore({key: "sequential"})
    losses, z = work.evaluate()
    assert "memory budget" in mt.backward(losses, features=z).gradient_source


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("label", ["sequential", "streaming", "streaming-together"])
def test_a_choice_of_a_checkpoint_serves_from_the_first_step(label):
    work = make(SHAPES["wide_mlp"])
    key = next(iter(train(work, Fixed(WEIGHTS), 1)[0]._planner._calibrations))
    mt = MultiTask(work.trunk, aggregator=Fixed(WEIGHTS))
    mt._planner.restore({key: label})
    for _ in range(2):
        losses, z = work.evaluate()
        assert mt.backward(losses, features=z).gradient_source.startswith(f"{label}: as before the checkpoint")
    assert mt._planner.choices() == {key: label}


def test_an_unknown_choice_of_a_checkpoint_is_said_to_be_unknown():
    work = make(SHAPES["wide_mlp"])
    key = next(iter(train(work, Fixed(WEIGHTS), 1)[0]._planner._calibrations))
    mt = MultiTask(work.trunk, aggregator=Fixed(WEIGHTS))
    mt._planner.restore({key: "magic"})
    losses, z = work.evaluate()
    expected = "sequential: the checkpoint's 'magic' is not to be had here"
    assert mt.backward(losses, features=z).gradient_source == expected
