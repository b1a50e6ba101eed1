"""Every bad input gets an error that names the culprit; the step leaves everything as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlcore import Aggregation, Aggregator, Conflict, ConflictDetector, MultiTask, Needs, Refresh, aggregate
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
        (lambda v, s: Aggregation(weights=[1.0, 1.0, 1.0]), "weights that are not a real tensor but a list"),
        (lambda v, s: Aggregation(weights=torch.ones(3) * 1j), "that are not a real tensor but a torch.complex64"),
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


@pytest.mark.parametrize("declared", [{"needs": "gramian"}, {"claims": "non-conflicting"}])
def test_instance_whose_class_declares_nonsense(work, declared):
    with pytest.raises(PluginError, match=f"{next(iter(declared))} is '"):
        MultiTask(work.trunk, aggregator=type("Nonsense", (Fixed,), declared)((1.0,)))


def test_frozen_trunk(work):
    for p in work.trunk.parameters():
        p.requires_grad_(False)
    losses, _ = work.evaluate()
    expected = torch.autograd.grad(sum(losses.values()), list(work.heads.parameters()), retain_graph=True)
    report = MultiTask(work.trunk, aggregator=Fixed((3.0, 2.0, 1.0))).backward(losses)
    assert "no parameter of the trunk requires gradients" in report.gradient_source
    assert report.weights.tolist() == [1.0, 1.0, 1.0]
    for p, g in zip(work.heads.parameters(), expected):
        torch.testing.assert_close(p.grad, g)


def test_step_without_optimizer(work):
    with pytest.raises(ConfigurationError, match="pass optimizer"):
        MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3)).step(work.evaluate)


def test_class_instead_of_instance(work):
    with pytest.raises(ConfigurationError, match="make an instance"):
        MultiTask(work.trunk, aggregator=Fixed)


@pytest.mark.parametrize(
    ("jacobian", "losses", "message"),
    [
        (torch.ones(2, 3), [1.0, 2.0], r"losses must be a tensor of shape \(2,\), .*; found list"),
        (torch.ones(2, 3), torch.ones(3), r"losses must be a tensor of shape \(2,\), .*; found \(3,\)"),
        (
            torch.ones(2, 3, dtype=torch.int64),
            None,
            r"floating-point tensor of shape \(K, P\), found \(2, 3\) torch.int64",
        ),
        ([[1.0]], None, "found list"),
    ],
)
def test_one_step_for_study_names_what_it_was_given(jacobian, losses, message):
    with pytest.raises(ConfigurationError, match=message):
        aggregate(Fixed((1.0, 1.0)), jacobian, losses)


@pytest.mark.parametrize(
    ("method", "message"),
    [(Fixed, r"make an instance: Fixed\(...\)"), (42, "must be a registered name or an mtlcore.Aggregator, found 42")],
)
def test_one_step_for_study_of_what_is_no_method(method, message):
    with pytest.raises(ConfigurationError, match=message):
        aggregate(method, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be a torch.optim.Optimizer, found 'adam'"),
        ({"heads": [nn.Linear(1, 1)]}, "heads must be an nn.Module, found a list: put several into nn.ModuleDict"),
        ({"probe": 3}, "probe must be a function .* found a int"),
        ({"brakes": {"cap": 1}}, "brakes must be mtlcore.Brakes"),
    ],
)
def test_arguments_that_are_something_else(work, options, message):
    with pytest.raises(ConfigurationError, match=message):
        MultiTask(work.trunk, **options)


def test_an_optimizer_that_evaluates_by_itself(work):
    """Refused for step, where it ended in a TypeError after the state was committed; at work around backward."""
    optimizer = torch.optim.LBFGS(work.trunk.parameters(), lr=0.1, max_iter=5)
    with pytest.raises(ConfigurationError, match="LBFGS evaluates the losses several times a step"):
        MultiTask(work.trunk, optimizer=optimizer)
    mt = MultiTask(work.trunk, "sum")
    seen = []

    def closure():
        optimizer.zero_grad()
        losses, z = work.evaluate()
        report = mt.backward(losses, features=z)
        seen.append(float(report.losses.sum()))
        return report.losses.sum()

    optimizer.step(closure)
    assert len(seen) == 5
    assert seen[-1] < seen[0]


@pytest.mark.parametrize("seed", [None, 0.5, "3"])
def test_seed_that_is_no_whole_number(work, seed):
    with pytest.raises(ConfigurationError, match="seed must be a whole number"):
        MultiTask(work.trunk, seed=seed)
    with pytest.raises(ConfigurationError, match="seed must be a whole number"):
        aggregate(Fixed((1.0, 1.0)), torch.ones(2, 3), seed=seed)


@pytest.mark.parametrize("losses", [None, 5, "ab"])
def test_losses_that_are_none(work, losses):
    with pytest.raises(LossError, match="losses must be {task: scalar loss} or a list"):
        MultiTask(work.trunk).backward(losses)


def test_complex_loss(work):
    losses, z = work.evaluate()
    losses["t1"] = losses["t1"] * 1j
    with pytest.raises(LossError, match="'t1' is complex"):
        MultiTask(work.trunk).backward(losses, features=z)


@pytest.mark.parametrize("features", ["z", 3, object(), [[1.0]]])
def test_features_that_are_no_tensors(work, features):
    losses, _ = work.evaluate()
    with pytest.raises(FeaturesError, match="features must be tensors"):
        MultiTask(work.trunk).backward(losses, features=features)


def test_feature_that_is_a_leaf(work):
    losses, _ = work.evaluate()
    with pytest.raises(FeaturesError, match=r"features\[0\] .* is a leaf"):
        MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3)).backward(losses, features=next(work.trunk.parameters()))


def test_tasks_may_have_numbers_for_names(work):
    losses, z = work.evaluate()
    numbered = dict(enumerate(losses.values()))
    with pytest.raises(FeaturesError, match=r"not in the graph of any loss \(0, 1, 2\)"):
        MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3)).backward(
            numbered, features=z.detach().clone().requires_grad_() * 1.0
        )


def test_pair_of_losses_of_which_one_is_missing(work):
    optimizer = torch.optim.SGD(work.parameters(), lr=0.1)
    mt = MultiTask(work.trunk, aggregator=FixedOnLosses((1.0,)), optimizer=optimizer, tasks=["a", "b"])
    report = mt.step(lambda: (None, work.evaluate()[0]["t0"]))
    assert report.losses.isnan().tolist() == [True, False]


@pytest.mark.parametrize("tasks", ["seg", [], ["a", "a"], 3, [["a"], ["b"]]])
def test_tasks_that_are_no_list_of_names(work, tasks):
    with pytest.raises(ConfigurationError, match="tasks must be a list of distinct names|a task cannot be called"):
        MultiTask(work.trunk, tasks=tasks)


TRUNKS = {
    "a single tensor": (lambda w: next(w.trunk.parameters()), "trunk is a single tensor"),
    "named parameters": (lambda w: w.trunk.named_parameters(), "trunk parameter 0 is a tuple"),
    "computed": (
        lambda w: [p * 2 for p in w.trunk.parameters()],
        "trunk parameter 0 .* is computed from other tensors",
    ),
    "complex": (lambda w: [torch.nn.Parameter(torch.ones(2, dtype=torch.cfloat))], "parameter 0 .* is complex"),
}


@pytest.mark.parametrize("kind", TRUNKS)
def test_trunk_that_is_none(work, kind):
    make, message = TRUNKS[kind]
    with pytest.raises(ConfigurationError, match=message):
        MultiTask(make(work))


def test_parameters_that_were_replaced(work):
    mt = MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3))
    torch.nn.utils.parametrizations.weight_norm(work.trunk[0])
    losses, z = work.evaluate()
    with pytest.raises(ConfigurationError, match=r"parameters 0\.parametrizations.* were not there when"):
        mt.backward(losses, features=z)


class Misbehaves(Aggregator):
    """In what it is told to."""

    def __init__(self, **answers):
        vars(self).update(answers)

    needs = Needs.LOSSES

    def init(self, n_tasks):
        return self.__dict__.get("first", lambda: {"s": torch.zeros(n_tasks)})()

    def aggregate(self, view, state):
        notes = self.__dict__.get("notes", {})
        return Aggregation(weights=torch.ones(view.n_tasks), state=state, diagnostics=notes)


class MisbehavesLater(Misbehaves):
    def observe(self, view, state):
        return self.second


STATES = {
    "init raises": ({"first": lambda: 1 / 0}, "raised in init ZeroDivisionError"),
    "init returns nothing": (
        {"first": lambda: None},
        "init returned a state that is not a dict of tensors: it is a NoneType",
    ),
    "init returns a list": (
        {"first": lambda: {"s": [0.0]}},
        "init returned a state that is not a dict of tensors: 's' is a list",
    ),
    "diagnostics": ({"notes": [1]}, "diagnostics that are not a dict but a list"),
}


@pytest.mark.parametrize("case", STATES)
def test_method_whose_state_is_none(work, case):
    answers, message = STATES[case]
    losses, z = work.evaluate()
    with pytest.raises(PluginError, match=f"Misbehaves.*{message}"):
        MultiTask(work.trunk, aggregator=Misbehaves(**answers)).backward(losses, features=z)


@pytest.mark.parametrize("second", [None, {"s": 1.0}])
def test_observation_that_is_no_state(work, second):
    optimizer = torch.optim.SGD(work.parameters(), lr=0.1)
    mt = MultiTask(work.trunk, aggregator=MisbehavesLater(second=second), optimizer=optimizer)
    before = [p.detach().clone() for p in work.parameters()]
    with pytest.raises(PluginError, match="MisbehavesLater.*observe"):
        mt.step(work.evaluate)
    assert mt.state_dict()["state"] is None, "a second look that fails leaves everything as before the step"
    assert all(torch.equal(p, q) for p, q in zip(work.parameters(), before))


class Complains(MisbehavesLater):
    def observe(self, view, state):
        raise LossError("the loss of task 't1' is too small")


def test_an_observation_may_complain_of_a_loss(work):
    mt = MultiTask(work.trunk, aggregator=Complains(), optimizer=torch.optim.SGD(work.parameters(), lr=0.1))
    with pytest.raises(LossError, match="'t1' is too small"):
        mt.step(work.evaluate)


class Says(ConflictDetector):
    def __init__(self, **answers):
        vars(self).update(answers)

    def detect(self, view):
        k = view.n_tasks
        pairs, dominated = torch.zeros(k, k, dtype=torch.bool), torch.zeros(k, dtype=torch.bool)
        return Conflict(**{"conflicting": False, "severity": 0.0, "pairs": pairs, "dominated": dominated, **vars(self)})


VERDICTS = {
    "tensor": ({"conflicting": torch.tensor(True)}, r"conflicting as True or False; found tensor\(True\)"),
    "pairs": ({"pairs": torch.zeros(3, dtype=torch.bool)}, r"pairs as a bool tensor of shape \(3, 3\); found"),
    "floats": ({"pairs": torch.zeros(3, 3)}, r"pairs as a bool tensor of shape \(3, 3\); found torch.float32"),
    "asymmetric": ({"pairs": torch.ones(3, 3).triu(1).bool()}, "symmetric pairs"),
    "diagonal": ({"pairs": torch.eye(3).bool()}, "False on the diagonal"),
    "dominated": ({"dominated": [False] * 3}, r"dominated as a bool tensor of shape \(3,\); found list"),
    "nan": ({"severity": float("nan")}, "severity as a number; found nan"),
    "word": ({"severity": "high"}, "severity as a number; found 'high'"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_detector_that_breaks_its_contract(work, case):
    answers, message = VERDICTS[case]
    losses, z = work.evaluate()
    mt = MultiTask(work.trunk, aggregator=Fixed((1.0,) * 3), detector=Says(**answers))
    with pytest.raises(PluginError, match=f"detector .*Says.*{message}"):
        mt.backward(losses, features=z)


def test_a_step_that_fails_was_no_look(work):
    mt = MultiTask(work.trunk, aggregator=Fixed((float("nan"),) * 3), detector=Says())
    losses, z = work.evaluate()
    with pytest.raises(PluginError):
        mt.backward(losses, features=z)
    assert mt.state_dict()["detections"] == [0, 0]


@pytest.mark.parametrize("closure", [3, [3], {"a": 1.0}])
def test_a_step_of_something_that_cannot_be_called(work, closure):
    mt = MultiTask(work.trunk, "ls", torch.optim.SGD(work.trunk.parameters(), lr=0.1))
    with pytest.raises(ConfigurationError, match="takes a function that evaluates a batch"):
        mt.step(closure)


@pytest.mark.parametrize("name", [["a"], {}])
def test_a_task_whose_name_cannot_be_looked_up(work, name):
    with pytest.raises(ConfigurationError, match="a task cannot be called"):
        MultiTask(work.trunk, tasks=["a"]).add_task(name)


def test_a_drift_that_is_no_number():
    with pytest.raises(ConfigurationError, match="drift must lie between 0 and 2; found 'x'"):
        Refresh(every=2, drift="x")
