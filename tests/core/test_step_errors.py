"""Every bad input gets an error that names the culprit; the step leaves everything as it was."""

from __future__ import annotations

import pytest
import torch

from mtlcore import Aggregation, MultiTask
from mtlcore.errors import ConfigurationError, FeaturesError, LossError, NonFiniteError, PluginError
from support.architectures import build
from support.methods import Calls, Fixed, FixedOnLosses


@pytest.fixture
def work():
    return build("mlp")


def snapshot(mt, work):
    return mt.state_dict(), [p.detach().clone() for p in work.parameters()]


def same(before, after):
    assert before[0] == after[0] or str(before[0]) == str(after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1]))


@pytest.mark.parametrize("empty", [{}, [], {"a": None}])
def test_no_losses(work, empty):
    with pytest.raises(LossError, match="no losses"):
        MultiTask(work.trunk, aggregator=Fixed(())).backward(empty)


def test_loss_that_is_no_scalar(work):
    losses, z = work.evaluate()
    losses["t1"] = z.sum(0)
    with pytest.raises(LossError, match=r"'t1' has shape \(8,\)"):
        MultiTask(work.trunk).backward(losses, features=z)


def test_loss_that_is_no_tensor(work):
    losses, z = work.evaluate()
    losses["t1"] = 3.0
    with pytest.raises(LossError, match="'t1' is a float"):
        MultiTask(work.trunk).backward(losses, features=z)


def test_loss_without_graph(work):
    losses, z = work.evaluate()
    losses["t2"] = losses["t2"].detach()
    with pytest.raises(LossError, match="'t2' has no gradient graph"):
        MultiTask(work.trunk).backward(losses, features=z)


def test_list_of_the_wrong_length(work):
    losses, z = work.evaluate()
    mt = MultiTask(work.trunk, aggregator=Fixed((1.0,)), tasks=["a", "b"])
    with pytest.raises(LossError, match="3 losses for 2 tasks"):
        mt.backward(list(losses.values()), features=z)


def test_unknown_task(work):
    losses, _ = work.evaluate()
    mt = MultiTask(work.trunk, aggregator=Fixed((1.0,) * 2), tasks=["t0", "t1"])
    with pytest.raises(LossError, match="unknown task 't2'"):
        mt.backward(losses)


@pytest.mark.parametrize("method", [Fixed, FixedOnLosses])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite(work, method, value):
    losses, z = work.evaluate()
    losses["t1"] = losses["t1"] * value
    mt = MultiTask(work.trunk, aggregator=method((1.0,) * 3))
    before = snapshot(mt, work)
    with pytest.raises(NonFiniteError, match="'t1'"):
        mt.backward(losses, features=z)
    same(before, snapshot(mt, work))
    assert all(p.grad is None for p in work.parameters())


@pytest.mark.parametrize("method", [Fixed, FixedOnLosses])
def test_gradient_that_is_not_finite_though_the_loss_is(work, method):
    losses, z = work.evaluate()
    # sqrt has an infinite slope at 0: the value is fine, the gradient is not.
    losses["t1"] = (losses["t1"] - losses["t1"].detach()).abs().sqrt() + work.heads[1](z).mean() * 0
    mt = MultiTask(work.trunk, aggregator=method((1.0,) * 3))
    before = snapshot(mt, work)
    with pytest.raises(NonFiniteError, match="'t1'"):
        mt.backward(losses, features=z)
    same(before, snapshot(mt, work))
    assert all(p.grad is None for p in work.trunk.parameters())


def test_a_bad_gradient_keeps_what_was_accumulated(work):
    mt = MultiTask(work.trunk, aggregator=FixedOnLosses((1.0,) * 3))
    losses, z = work.evaluate()
    mt.backward(losses, features=z)
    kept = [p.grad.clone() for p in work.trunk.parameters()]
    losses, z = work.evaluate()
    losses["t1"] = (losses["t1"] - losses["t1"].detach()).abs().sqrt()
    with pytest.raises(NonFiniteError):
        mt.backward(losses, features=z)
    assert all(torch.equal(a, p.grad) for a, p in zip(kept, work.trunk.parameters()))


def test_features_that_are_copies(work):
    losses, z = work.evaluate()
    with pytest.raises(FeaturesError, match=r"features\[0\] \(shape \(10, 8\)\) is not in the graph"):
        MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3)).backward(losses, features=z * 1)


def test_features_that_are_detached(work):
    losses, z = work.evaluate()
    with pytest.raises(FeaturesError, match="no gradient graph"):
        MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3)).backward(losses, features=z.detach())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda v, s: Aggregation(weights=torch.ones(7)), r"weights of shape \(7,\); expected \(3,\)"),
        (lambda v, s: Aggregation(weights=torch.full((3,), float("nan"))), "weights that are not finite"),
        (lambda v, s: Aggregation(direction=torch.ones(2)), r"direction of shape \(2,\)"),
        (lambda v, s: Aggregation(direction=v.jacobian.sum(0) / 0), "direction that are not finite"),
        (lambda v, s: Aggregation(weights=torch.ones(3), head_weights=torch.ones(1)), "head_weights of shape"),
        (lambda v, s: v.jacobian.sum(0), "returned Tensor, not an mtlcore.Aggregation"),
        (lambda v, s: Aggregation(weights=torch.ones(3), state={"a": 1}), "not a dict of tensors"),
        (lambda v, s: Aggregation(weights=torch.ones(3) + 0 * v.jacobian.zero_().sum()), "wrote into view.jacobian"),
        (lambda v, s: 1 / 0, "raised ZeroDivisionError"),
        (lambda v, s: Aggregation(), "exactly one of weights"),
    ],
)
def test_method_that_breaks_its_contract(work, function, message):
    losses, z = work.evaluate()
    mt = MultiTask(work.trunk, aggregator=Calls(function=function))
    before = snapshot(mt, work)
    with pytest.raises(PluginError, match=message) as caught:
        mt.backward(losses, features=z)
    assert "Calls" in str(caught.value)
    same(before, snapshot(mt, work))
    assert all(p.grad is None for p in work.parameters())


def fails(error):
    def function(view, state):
        raise error("the user's own")

    return function


@pytest.mark.parametrize("error", [LossError, FeaturesError, NonFiniteError, ConfigurationError])
def test_what_a_method_blames_on_the_user_is_not_the_plugins_fault(work, error):
    losses, z = work.evaluate()
    with pytest.raises(error, match="^the user's own$"):
        MultiTask(work.trunk, aggregator=Calls(function=fails(error))).backward(losses, features=z)


def test_method_that_reads_more_than_it_declared(work):
    losses, z = work.evaluate()

    class Nosy(Fixed):
        def aggregate(self, view, state):
            return Aggregation(weights=view.jacobian.sum(1))

    with pytest.raises(PluginError, match=r"declares needs = Needs\.GRAMIAN"):
        MultiTask(work.trunk, aggregator=Nosy()).backward(losses, features=z)


def test_forced_source_that_cannot_serve(work):
    losses, z = work.evaluate()
    with pytest.raises(ConfigurationError, match='gradients="losses" provides LOSSES'):
        MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3), gradients="losses").backward(losses, features=z)
    with pytest.raises(ConfigurationError, match="choose one of"):
        MultiTask(work.trunk, gradients="fastest")
    with pytest.raises(ConfigurationError, match="needs the features"):
        MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3), gradients="features").backward(losses)


def test_trunk_without_parameters():
    with pytest.raises(ConfigurationError, match="no parameters"):
        MultiTask(torch.nn.ReLU())


def test_frozen_trunk(work):
    for p in work.trunk.parameters():
        p.requires_grad_(False)
    losses, _ = work.evaluate()
    with pytest.raises(ConfigurationError, match="everything is frozen"):
        MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3)).backward(losses)


def test_step_without_optimizer(work):
    with pytest.raises(ConfigurationError, match="pass optimizer"):
        MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3)).step(work.evaluate)


def test_class_instead_of_instance(work):
    with pytest.raises(ConfigurationError, match="make an instance"):
        MultiTask(work.trunk, aggregator=Fixed)
