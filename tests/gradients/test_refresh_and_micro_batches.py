"""Weights kept for some steps, and micro-batches aggregated once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlcore import Aggregation, Aggregator, MultiTask
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.gradients.accumulation import MicroBatches
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.refresh import Refresh
from mtlcore.presence import Presence
from support.jacobians import explicit, make, shared_gradient
from support.methods import Calls, Fixed, FixedOnLosses, FixedOnRows
from support.shapes import SHAPES


class Inverse(Aggregator):
    """Weights 1 / |g_i|: they follow the gradients."""

    def aggregate(self, view, state):
        n = state.get("n", torch.zeros(())) + 1
        return Aggregation(weights=1 / view.gramian.diagonal().sqrt(), state={"n": n})


def run(work, steps, rate=0.3, **options):
    """Reports, and the .grad of every step, of gradient descent on one batch."""
    mt = MultiTask(work.trunk, aggregator=Inverse(), **options)
    out = []
    for _ in range(steps):
        for p in work.parameters():
            p.grad = None
        losses, z = work.evaluate()
        report = mt.backward(losses, features=z)
        out.append((report, shared_gradient(work), [p.detach().clone() for p in work.trunk.parameters()]))
        with torch.no_grad():
            for p in work.parameters():
                p -= rate * p.grad
    return mt, out


def test_between_refreshes_the_direction_is_that_of_the_kept_weights():
    work = make(SHAPES["wide_mlp"])
    mt, steps = run(work, 7, refresh=3)
    asked = [r.gramian is not None for r, _, _ in steps]
    assert asked == [True, False, False, True, False, False, True]
    assert int(mt.state_dict()["state"]["n"]) == 3  # the method's state rests in between
    for i, (report, gradient, parameters) in enumerate(steps):
        assert torch.equal(report.weights, steps[i - i % 3][0].weights)
        reference = make(SHAPES["wide_mlp"])
        # Heads move too; only the trunk's Jacobian at the kept point is needed, so compare at the first three steps.
        if i == 0:
            jacobian, _ = explicit(reference)
            torch.testing.assert_close(gradient, jacobian.T @ report.weights)
        del parameters


def test_a_kept_step_equals_the_jacobian_at_that_step():
    work = make(SHAPES["wide_mlp"])
    mt = MultiTask(work.trunk, aggregator=Inverse(), refresh=2)
    losses, z = work.evaluate()
    first = mt.backward(losses, features=z).weights
    with torch.no_grad():
        for p in work.parameters():
            p.mul_(1.1)
            p.grad = None
    jacobian, heads = explicit(work)
    losses, z = work.evaluate()
    report = mt.backward(losses, features=z)
    torch.testing.assert_close(shared_gradient(work), jacobian.T @ first)
    for i, own in heads.items():
        torch.testing.assert_close(work.parameters()[i].grad, sum(g for g in own if g is not None))
    assert "earlier step" in report.gradient_source
    assert report.diagnostics["refresh_age"] == 1


def test_the_error_of_keeping_is_measured():
    work = make(SHAPES["wide_mlp"])
    _, steps = run(work, 3, refresh=2)
    old, new = steps[0][0].weights, steps[2][0]
    gram = new.gramian
    difference = new.weights - old
    expected = ((difference @ gram @ difference) / (new.weights @ gram @ new.weights)).sqrt()
    assert new.diagnostics["refresh_error"] == pytest.approx(float(expected), rel=1e-9)
    assert new.diagnostics["refresh_error"] > 1e-6
    assert "refresh_error" not in steps[0][0].diagnostics


def test_drift_refreshes_earlier():
    _, calm = run(make(SHAPES["wide_mlp"]), 4, rate=1e-9, refresh=Refresh(10, drift=1e-3))
    _, wild = run(make(SHAPES["wide_mlp"]), 4, rate=1.0, refresh=Refresh(10, drift=1e-3))
    assert [r.gramian is not None for r, _, _ in calm] == [True, False, False, False]
    assert [r.gramian is not None for r, _, _ in wild] == [True, True, True, True]
    assert 0 <= calm[1][0].diagnostics["refresh_drift"] < 1e-3


@pytest.mark.parametrize("policy", [3, Refresh(4, drift=0.5)])
def test_resumed_equals_uninterrupted(policy):
    _, straight = run(make(SHAPES["wide_mlp"]), 5, refresh=policy)
    work = make(SHAPES["wide_mlp"])
    mt, _ = run(work, 2, refresh=policy)
    state = mt.state_dict()
    again = MultiTask(work.trunk, aggregator=Inverse(), refresh=policy)
    again.load_state_dict(state)
    for expected, _, _ in straight[2:]:
        for p in work.parameters():
            p.grad = None
        losses, z = work.evaluate()
        report = again.backward(losses, features=z)
        assert torch.equal(report.weights, expected.weights)
        with torch.no_grad():
            for p in work.parameters():
                p -= 0.3 * p.grad


def test_refresh_is_refused_where_it_makes_no_sense():
    work = make(SHAPES["wide_mlp"])
    losses, z = work.evaluate()
    with pytest.raises(ConfigurationError, match="needs the features"):
        MultiTask(work.trunk, aggregator=Inverse(), refresh=2).backward(losses)
    with pytest.raises(ConfigurationError, match="returns a direction"):
        MultiTask(work.trunk, aggregator=FixedOnRows((1.0,) * 3), refresh=2).backward(losses, features=z)
    with pytest.raises(ConfigurationError, match="a detector or a teleport"):
        MultiTask(work.trunk, aggregator=Inverse(), refresh=2, detector="cosine")
    for bad in (0, 1.5):
        with pytest.raises(ConfigurationError, match="every must be"):
            Refresh(bad)
    with pytest.raises(ConfigurationError, match="drift must"):
        Refresh(2, drift=-1.0)


# --- micro-batches ------------------------------------------------------------------------------------------------


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 8)).double()
        heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3)).double()
        return trunk, heads, torch.randn(12, 20, dtype=torch.float64)


def losses_of(trunk, heads, x, scale=1.0):
    z = trunk(x)
    return {f"t{i}": scale * (i + 1) * h(z).square().mean() for i, h in enumerate(heads)}, z


def gradients(trunk, heads):
    return torch.cat([p.grad.flatten() for p in [*trunk.parameters(), *heads.parameters()]])


@pytest.mark.parametrize("method", [Inverse(), FixedOnRows((1.0, -2.0, 0.5)), FixedOnLosses((1.0, 2.0, 0.5))])
@pytest.mark.parametrize("with_features", [True, False])
def test_micro_batches_equal_the_whole_batch(method, with_features):
    trunk, heads, x = network()
    losses, z = losses_of(trunk, heads, x)
    whole = MultiTask(trunk, aggregator=method).backward(losses, features=z)
    expected = gradients(trunk, heads)
    trunk, heads, x = network()
    mt = MultiTask(trunk, aggregator=method)
    for i, part in enumerate(x.chunk(3)):
        losses, z = losses_of(trunk, heads, part, 1 / 3)
        features = z if with_features else None
        if i < 2:
            mt.accumulate(losses, features)
            assert all(p.grad is None for p in trunk.parameters())
        else:
            report = mt.backward(losses, features)
    torch.testing.assert_close(gradients(trunk, heads), expected)
    torch.testing.assert_close(report.losses, whole.losses)
    if whole.gramian is not None:
        torch.testing.assert_close(report.gramian, whole.gramian)
    assert "3 micro-batches" in report.gradient_source
    assert report.step == 0


def test_tasks_may_be_missing_from_a_micro_batch():
    trunk, heads, x = network()
    a, b = x.chunk(2)
    first, _ = losses_of(trunk, heads, a)
    second, _ = losses_of(trunk, heads, b)
    rows = []
    for name in first:
        total = first[name] + second[name] if name != "t1" else second[name]
        found = torch.autograd.grad(total, list(trunk.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    jacobian = torch.stack(rows)
    mt = MultiTask(trunk, aggregator=Fixed((1.0, 2.0, 3.0)), tasks=("t0", "t1", "t2"))
    losses, z = losses_of(trunk, heads, a)
    del losses["t1"]
    mt.accumulate(losses, z)
    report = mt.backward(*losses_of(trunk, heads, b))
    torch.testing.assert_close(report.gramian, jacobian @ jacobian.T)
    got = torch.cat([p.grad.flatten() for p in trunk.parameters()])
    torch.testing.assert_close(got, jacobian.T @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize("last", [False, True])
def test_an_error_forgets_the_micro_batches(last):
    trunk, heads, x = network()
    mt = MultiTask(trunk, aggregator=Fixed((1.0, 2.0, 3.0)))
    mt.accumulate(*losses_of(trunk, heads, x))
    losses, z = losses_of(trunk, heads, x)
    with pytest.raises(NonFiniteError):
        (mt.backward if last else mt.accumulate)({**losses, "t1": losses["t1"] * float("nan")}, z)
    report = mt.backward(*losses_of(trunk, heads, x))
    assert "micro" not in report.gradient_source


def test_step_does_not_swallow_micro_batches():
    trunk, heads, x = network()
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
    mt = MultiTask(trunk, aggregator=Fixed((1.0, 2.0, 3.0)), optimizer=optimizer)
    mt.accumulate(*losses_of(trunk, heads, x))
    with pytest.raises(ConfigurationError, match="micro-batches are waiting"):
        mt.step(lambda: losses_of(trunk, heads, x))


def test_feature_gradients_need_one_batch():
    trunk, heads, x = network()

    def answer(view, state):
        return Aggregation(weights=torch.ones(3), feature_gradient=(torch.zeros(12, 8),), state=state)

    mt = MultiTask(trunk, aggregator=Calls(answer))
    mt.accumulate(*losses_of(trunk, heads, x))
    with pytest.raises(ConfigurationError, match="micro-batches"):
        mt.backward(*losses_of(trunk, heads, x))


@pytest.mark.parametrize("odd", ["hooked", "nested"])
def test_features_that_kept_weights_cannot_serve_are_refused_with_the_way_out(odd):
    """The advice was about gradients="features", and taking it changed nothing."""
    trunk, heads, x = network()
    mt = MultiTask(trunk, aggregator=Inverse(), refresh=3)
    mt.backward(*losses_of(trunk, heads, x))
    losses, z = losses_of(trunk, heads, x)
    features = [z]
    if odd == "hooked":
        z.register_hook(lambda g: g)
    else:
        outer = z * 1.0
        losses, features = {n: v + outer.mean() for n, v in losses.items()}, [z, outer]
    with pytest.raises(ConfigurationError, match=r"^refresh (cannot serve|needs) .*, or leave refresh out\.$"):
        mt.backward(losses, features)


def test_freezing_between_micro_batches_is_refused():
    """Rows of one layer would be added to those of another."""
    trunk, heads, x = network()
    mt = MultiTask(trunk, aggregator=Fixed((1.0, 2.0, 3.0)))
    first = next(trunk.parameters())
    mt.accumulate(*losses_of(trunk, heads, x))
    first.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="changed between two micro-batches"):
        mt.backward(*losses_of(trunk, heads, x))
    assert "micro" not in mt.backward(*losses_of(trunk, heads, x)).gradient_source


def test_a_checkpoint_forgets_the_micro_batches():
    trunk, heads, x = network()
    mt = MultiTask(trunk, aggregator=Fixed((1.0, 2.0, 3.0)))
    mt.accumulate(*losses_of(trunk, heads, x))
    mt.load_state_dict(mt.state_dict())
    assert "micro" not in mt.backward(*losses_of(trunk, heads, x)).gradient_source


def test_micro_batches_keep_one_gradient_per_head_parameter():
    trunk, head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 100)
    micro = MicroBatches()
    for _ in range(3):
        z = trunk(torch.randn(3, 4))
        loss = head(z).square().mean()
        micro.add(Batch(Presence(("a",)), (loss,), (z,), tuple(trunk.parameters())), [loss.item()])
    _, _, found, _ = micro.finish(("a",), tuple(trunk.parameters()))
    assert [id(p) for p, _ in found.heads[0]] == [id(p) for p in head.parameters()]
