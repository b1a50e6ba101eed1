"""Exploring: the rules around every method, and what single methods do, in closed form."""

from __future__ import annotations

import copy
import dataclasses
import io

import numpy as np
import pytest
import torch
from torch import nn

import mtlcore
from mtlcore import Explorer, Front, simplex
from mtlcore.errors import ConfigurationError, LossError, PluginError, StateError
from mtlcore.exploring import Exploration
from mtlverify import check
from mtlverify.mutants import explorers as mutants
from mtlverify.mutants.score import examine
from mtlverify.runner import chosen
from mtlverify.strategies.tradeoffs import TradeoffExample, work

METHODS = mtlcore.available("explorer")
X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        z = self.trunk(x)
        return [head(z) for head in self.heads]


def losses(model, batch):
    a, b = model(batch)
    return {"a": (a[:, 0] - batch[:, 0]).square().mean(), "b": (b[:, 0] + batch[:, 0]).square().mean()}


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Net()


def explored(net, method, passes=24, **changes):
    how = {"optimizer": lambda p: torch.optim.Adam(p, 1e-2), "trunk": net.trunk, "seed": 3} | changes
    return mtlcore.explore(net, losses, lambda step: X, method, passes=passes, **how)


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("method", METHODS)
def test_a_front_is_a_value_and_nothing_else_moves(net, method):
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    front = explored(net, method)
    assert equal(net.state_dict(), before)
    assert net.training
    assert torch.equal(torch.get_rng_state(), random)
    file = io.BytesIO()
    torch.save(front.state_dict(), file)
    file.seek(0)
    loaded = Front.load(net, torch.load(file, weights_only=True), method)
    for preference in ([1.0, 0.0], {"a": 0.3, "b": 0.7}):
        made = front.model(preference)
        assert isinstance(made, Net)
        assert equal(made.state_dict(), loaded.model(preference).state_dict())
        assert not equal(made.state_dict(), before)
    assert equal(explored(net, method).entries([0.5, 0.5]), front.entries([0.5, 0.5]))


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_that_is_too_small_is_refused(net, method):
    if method in ("cosmos", "phn"):
        assert explored(net, method, passes=1)
    else:
        with pytest.raises(ConfigurationError, match="passes = 1 is too little"):
            explored(net, method, passes=1)


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_statistics_are_learnt_too(net, method):
    made = explored(net, method, passes=40).entries([0.5, 0.5])
    assert not torch.equal(made["trunk.1.running_mean"], net.state_dict()["trunk.1.running_mean"])


@pytest.mark.parametrize(
    ("preference", "why"),
    [
        ([0.5], "shape"),
        ([0.5, 0.6], "sums to 1.1"),
        ([0.0, 0.0], "0 for every task; give a, b a share each"),
        ([-0.5, 1.5], "task 'a' is -0.5"),
        ([float("nan"), 1.0], "task 'a' is nan"),
        ({"a": 0.5, "c": 0.5}, "names 'c'"),
        ("half", "not one number per task"),
    ],
)
def test_what_is_no_preference_is_refused(net, preference, why):
    with pytest.raises(ConfigurationError, match=why):
        explored(net, "cosmos").model(preference)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"passes": 0}, "passes is 0"),
        ({"trunk": nn.Linear(1, 1)}, "no parameter of trunk is in the model"),
        ({"method": 3}, "method is a int"),
    ],
)
def test_bad_arguments_are_named(net, changes, why):
    with pytest.raises(ConfigurationError, match=why):
        explored(net, **({"method": "cosmos"} | changes))


def test_a_task_that_is_missing_in_a_later_batch_is_named(net):
    def some(model, batch):
        return losses(model, X) if batch == 0 else {"a": losses(model, X)["a"]}

    with pytest.raises(ConfigurationError, match="at step 1"):
        mtlcore.explore(net, some, lambda step: step, "cosmos", passes=4, optimizer=lambda p: torch.optim.SGD(p, 0.1))


def test_one_task_is_no_trade_off(net):
    with pytest.raises(ConfigurationError, match="at least two tasks"):
        mtlcore.explore(
            net, lambda m, b: {"a": losses(m, b)["a"]}, lambda step: X, "cosmos", passes=4,
            optimizer=lambda p: torch.optim.SGD(p, 0.1),
        )  # fmt: skip


# --- explorers that break their contract ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Broken(Explorer):
    found: object = None
    made: object = None
    greedy: bool = False

    def search(self, work):
        for step in range(work.passes + 1 if self.greedy else 1):
            work.losses(work.fresh(), step)
        return self.found

    def read(self, learnt, preference):
        return self.made


ONE = {"x": torch.ones(1)}


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (Broken(), "search must return"),
        (Broken({}), "search must return"),
        (Broken({"x": torch.tensor(float("nan"))}), "NaN or infinity in 'x'"),
        (Broken(ONE), "read returned a NoneType"),
        (Broken(ONE, {"y": torch.ones(1)}), "entry 'y' that the model does not have"),
        (Broken(ONE, {"heads.0.bias": torch.ones(2)}), "something else than a tensor of its shape"),
        (Broken(ONE, {"heads.0.bias": torch.full((1,), torch.inf)}), "NaN or infinity for 'heads.0.bias'"),
        (Broken(ONE, {}, greedy=True), "spent 25 passes; its budget is 24"),
    ],
)
def test_a_broken_explorer_is_named(net, broken, why):
    with pytest.raises(PluginError, match=why):
        explored(net, broken)


def test_the_state_of_another_method_is_refused(net):
    state = explored(net, "cosmos").state_dict()
    with pytest.raises(StateError, match="another explorer"):
        Front.load(net, state, "phn")
    with pytest.raises(StateError, match=r"concentration was 1\.2, is 2"):
        Front.load(net, state, mtlcore.create("explorer", "cosmos", concentration=2.0))
    with pytest.raises(StateError, match="not the state of a front"):
        Front.load(net, {"x": 1}, "cosmos")


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_state_is_refused(net, method):
    """With a name less, sweeps compared preferences of other lengths; others raised what torch raises."""
    state = explored(net, method).state_dict()
    old = {name: value for name, value in state.items() if name != "n_tasks"}
    for names in (["a"], ["a", "b", "c"], ["a", "a"], "ab", []):
        with pytest.raises(StateError, match="damaged"):
            Front.load(net, {**state, "tasks": names}, method)
        with pytest.raises(StateError, match="damaged"):
            Front.load(net, {**old, "tasks": names}, method)
    assert equal(Front.load(net, old, method).entries([0.5, 0.5]), Front.load(net, state, method).entries([0.5, 0.5]))


# --- the simplex ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_tasks", "count"), [(2, 2), (2, 5), (3, 3), (3, 9), (8, 12)])
def test_grid_covers_the_simplex(n_tasks, count):
    found = simplex.grid(n_tasks, count)
    assert found.shape == (count, n_tasks)
    assert torch.allclose(found.sum(1), torch.ones(count, dtype=torch.float64))
    assert bool((found >= 0).all())
    assert len({tuple(row) for row in found.tolist()}) == count
    assert {tuple(row) for row in torch.eye(n_tasks).tolist()} <= {tuple(row) for row in found.tolist()}


def test_grid_has_room_for_every_corner():
    with pytest.raises(ConfigurationError, match="corners of 3 tasks"):
        simplex.grid(3, 2)


# --- single methods, in closed form -----------------------------------------------------------------------------------


def test_pamal_corners_are_its_members_and_gradients_follow_the_chain_rule():
    from mtlplugins.explorers.pamal import mixed

    members = {"w": torch.randn(2, 3, dtype=torch.float64, requires_grad=True)}
    assert torch.equal(mixed(members, torch.tensor([0.0, 1.0], dtype=torch.float64))["w"], members["w"][1])
    a = torch.tensor([0.3, 0.7], dtype=torch.float64)
    theta = mixed(members, a)["w"]
    (at_theta,) = torch.autograd.grad(theta.pow(3).sum(), theta, retain_graph=True)
    (at_members,) = torch.autograd.grad(theta.pow(3).sum(), members["w"])
    assert torch.allclose(at_members, a[:, None] * at_theta)


@pytest.mark.parametrize(("sign", "expected"), [(1, 0.0), (-1, 2.0)])
def test_pamal_regularisation_penalises_the_wrong_order_only(sign, expected):
    plugin = mtlcore.create("explorer", "pamal", lamb=1.0, order_sign=sign)
    drawn = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    windows = [{"a": torch.tensor(3.0), "b": torch.tensor(5.0)}, {"a": torch.tensor(5.0), "b": torch.tensor(3.0)}]
    found = plugin._together(drawn, drawn, windows)
    plain = {"a": 0.9 * 3 + 0.1 * 5, "b": 0.1 * 5 + 0.9 * 3}  # the higher preference has the lower loss
    assert {n: float(v) - plain[n] for n, v in found.items()} == pytest.approx({"a": expected, "b": expected}, abs=1e-6)


def test_pamal_has_two_signs_and_none_between_them():
    """0 was allowed, and left the regularisation out without a word."""
    with pytest.raises(ConfigurationError, match="order_sign"):
        mtlcore.create("explorer", "pamal", order_sign=0)


VARIANTS = [("pamal", kind) for kind in ("gradnorm", "rwa", "full")] + [("phn", "epo")]


@pytest.mark.parametrize(("method", "balance"), VARIANTS)
def test_a_balanced_search_keeps_the_budget_and_is_another_search(net, method, balance):
    made = mtlcore.create("explorer", method, balance=balance)
    front = explored(net, made, passes=100)
    assert equal(explored(net, made, passes=100).entries([0.5, 0.5]), front.entries([0.5, 0.5]))
    plain = explored(net, method, passes=100)
    assert not equal(plain.entries([0.5, 0.5]), front.entries([0.5, 0.5]))
    with pytest.raises(ConfigurationError, match="too little"):
        explored(net, made, passes=1)


def test_pamal_divides_by_the_gradient_of_all_members():
    """At theta(a) = sum_k a_k theta_k the gradient of the members is a_k times that of theta: |a| times its length."""
    from mtlplugins.explorers.pamal import Balance, mixed

    members = {"w": torch.randn(2, 3, dtype=torch.float64, requires_grad=True)}
    a = torch.tensor([0.3, 0.7], dtype=torch.float64)
    theta = mixed(members, a)["w"]
    losses = [5.0 * theta.square().sum(), theta[0]]
    lengths = torch.stack([10.0 * theta.detach().norm(), torch.ones(()).double()]) * a.norm()
    torch.testing.assert_close(Balance("gradnorm", [members["w"]]).factors(losses), 1.0 / (lengths + 1e-3))
    assert Balance("gradnorm", []).price == pytest.approx(2 / 3)
    assert Balance("ls", []).factors(losses).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["rwa", "full"])
def test_pamal_running_average_counts_what_is_large_less(kind):
    from mtlplugins.explorers.pamal import Balance

    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    balance = Balance(kind, [x])
    for number in range(60):
        sizes = [3.0, 1.0] if number < 40 else [1.0, 1.0]
        found = balance.factors([sizes[0] * x.sum(), sizes[1] * x.sum()])
        share = torch.tensor([1.0, 1.0]).double() if number < 26 else torch.tensor([0.25, 0.75]).double()
        if number < 40:
            lengths = share * torch.tensor(sizes).double()
            torch.testing.assert_close(found, share if kind == "rwa" else share / (lengths + 1e-3))
    average = [(5 * 3.0 + 20 * 1.0) / 25, 1.0]  # of the last 25
    share = torch.tensor([average[1], average[0]]).double() / sum(average)
    torch.testing.assert_close(found, share if kind == "rwa" else share / (share + 1e-3))


def test_phn_on_rays_comes_nearer_to_them_than_phn_with_weights():
    """On a front that is not convex a weighted sum has no model in the middle; the ray p L_1 = (1 - p) L_2 has one."""
    problem = mtlcore.create("problem", "pareto-mtl-toy")

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            start = problem.start(torch.Generator().manual_seed(0))
            self.layer = nn.utils.skip_init(nn.Linear, 1, len(start), dtype=torch.float64)
            with torch.no_grad():
                self.layer.weight.zero_()
                self.layer.bias.copy_(start)

        def forward(self) -> torch.Tensor:
            return self.layer(torch.ones(1, dtype=torch.float64))

    def both(model, batch):
        return dict(zip("ab", problem.losses(model()), strict=True))

    away = {}
    for balance in ("ls", "epo"):
        front = mtlcore.explore(
            Point(), both, lambda step: None, mtlcore.create("explorer", "phn", balance=balance, concentration=1.0),
            passes=600, optimizer=lambda p: torch.optim.Adam(p, 0.02), seed=1,
        )  # fmt: skip
        gaps = []
        for p in (0.35, 0.5, 0.65):
            a, b = (float(v.detach()) for v in both(front.model([p, 1 - p]), None).values())
            gaps.append(abs(p * a - (1 - p) * b))
        away[balance] = max(gaps)
    assert away["epo"] < 0.15
    assert away["epo"] < 0.5 * away["ls"]


def test_phn_on_rays_takes_no_aggregator_beside_it_and_no_negative_loss(net):
    with pytest.raises(ConfigurationError, match="leave out 'mgda'"):
        mtlcore.create("explorer", "phn", balance="epo", aggregator="mgda")
    with pytest.raises(LossError, match="loss of task 'a' is -"):
        mtlcore.explore(
            net, lambda m, x: {n: v - 100.0 for n, v in losses(m, x).items()}, lambda step: X,
            mtlcore.create("explorer", "phn", balance="epo"), passes=9, optimizer=lambda p: torch.optim.SGD(p, 0.1),
        )  # fmt: skip


def test_cosmos_weights_are_the_derivative_of_its_objective():
    plugin = mtlcore.create("explorer", "cosmos", lamb=0.7)
    a = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    at = torch.tensor([1.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    value = a @ at - 0.7 * torch.nn.functional.cosine_similarity(a, at, dim=0)
    (expected,) = torch.autograd.grad(value, at)
    assert torch.allclose(torch.tensor(plugin._weights(a, at.detach()), dtype=torch.float64), expected)


def test_cosmos_refuses_a_first_layer_without_bias(net):
    net.trunk[0] = nn.Linear(3, 6, bias=False)
    with pytest.raises(ConfigurationError, match=r"'trunk\.0' has none"):
        explored(net, "cosmos")


def test_cosmos_is_a_network_with_the_preference_as_input():
    from mtlplugins.explorers.cosmos import SHIFT

    torch.manual_seed(0)
    net, shift = nn.Linear(3, 2), torch.randn(2, 2)
    learnt = {**{f"model.{n}": v for n, v in net.state_dict().items()}, SHIFT + "bias": shift}
    a = torch.tensor([0.25, 0.75], dtype=torch.float64)
    made = mtlcore.create("explorer", "cosmos").read(learnt, a)
    joined = torch.cat([net.weight, shift.T], dim=1) @ torch.cat([X[0], a.float()]) + net.bias
    assert torch.allclose(X[0] @ made["weight"].T + made["bias"], joined)


@pytest.mark.parametrize("losses_now", [(1.0, 0.2, 0.3), (0.1, 2.0, 0.3), (1.0, 0.9, 1.1)])
def test_pareto_mtl_agrees_with_its_reference(losses_now):
    from mtlplugins.explorers.pareto_mtl import Sector
    from mtlverify.references.pareto_mtl import pareto_mtl

    rows = np.random.default_rng(0).normal(size=(3, 6))
    rays = torch.nn.functional.normalize(1.0 - torch.eye(3, dtype=torch.float64), dim=1)
    plugin = Sector(tuple(map(tuple, rays.tolist())), 1, 0, rescale=False)
    got = mtlcore.aggregate(plugin, torch.from_numpy(rows), losses=torch.tensor(losses_now, dtype=torch.float64))
    expected = pareto_mtl(rows, plugin, np.array(losses_now)).direction
    assert np.allclose(got.numpy(), expected, atol=1e-9)


def test_pareto_mtl_reaches_its_sector_first():
    from mtlplugins.explorers.pareto_mtl import Sector

    rays = ((0.0, 1.0), (1.0, 0.0))
    rows, losses_now = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([2.0, 1.0])
    found = mtlcore.aggregate(Sector(rays, 0, 5), rows, losses=losses_now)
    assert torch.allclose(found, torch.tensor([1.0, -1.0]))  # h = g_1 - g_2: only the ratio of the losses counts


def test_epo_balances_then_descends():
    from mtlplugins.explorers.epo import ExactRay

    rows = torch.eye(2, dtype=torch.float64)
    away = mtlcore.aggregate(ExactRay((0.5, 0.5)), rows, losses=torch.tensor([3.0, 1.0]))
    assert torch.allclose(away, torch.tensor([2.0, 0.0], dtype=torch.float64))
    on_the_ray = mtlcore.aggregate(ExactRay((0.25, 0.75)), rows + 0.5, losses=torch.tensor([3.0, 1.0]))
    assert bool(((rows + 0.5) @ on_the_ray > 0).all())
    with pytest.raises(LossError, match="task 'task0' is -1"):
        mtlcore.aggregate(ExactRay((0.5, 0.5)), rows, losses=torch.tensor([-1.0, 1.0]))


def test_gradops_sweep_chooses_by_preference():
    learnt = {
        "losses": torch.tensor([[0.0, 3.0], [1.0, 1.0], [3.0, 0.0]], dtype=torch.float64),
        "model.w": torch.arange(3.0),
    }
    plugin = mtlcore.create("explorer", "gradops-sweep")
    for first, expected in ((1.0, 0.0), (0.5, 1.0), (0.0, 2.0)):
        preference = torch.tensor([first, 1.0 - first], dtype=torch.float64)
        assert float(plugin.read(learnt, preference)["w"]) == expected


def test_a_step_that_reads_gradients_is_charged_for_its_backward_passes():
    made: Exploration = work(TradeoffExample("three-tasks", 70, 0))
    assert made.price("sum") == 1.0
    assert made.price("upgrad") == pytest.approx(7 / 3)
    assert made.steps(made.price("upgrad"), models=3) == 10
    model = made.fresh()
    made.train(lambda step: made.losses(model, step), *made.split(model), aggregator="upgrad", steps=30)
    assert made.spent == pytest.approx(70)


@pytest.mark.parametrize("aggregator", ["famo", "bilb4mtl-double-loop", "modo"])
@pytest.mark.parametrize("method", ["pamal", "cosmos"])
def test_an_aggregator_that_wants_a_step_twice_is_refused_by_name(net, method, aggregator):
    """The explorer was blamed for a budget that it had not spent, and the second look was at other preferences."""
    made = mtlcore.create("explorer", method, aggregator=aggregator)
    with pytest.raises(ConfigurationError, match=type(mtlcore.create("aggregator", aggregator)).__name__):
        explored(net, made, passes=100)


@pytest.mark.parametrize("method", METHODS)
def test_a_search_spends_its_whole_budget(method):
    """Fronts are compared at equal cost: one that leaves a part of it unused would look worse than it is."""
    made: Exploration = work(TradeoffExample("three-tasks", 150, 0))
    mtlcore.create("explorer", method).search(made)
    assert 135 < made.spent < 150.001


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_form_of_every_method(method):
    form = [law.id for law in chosen("explorer", None) if law.universal]
    results = list(check(method, form, max_examples=12, kind="explorer"))
    assert len(results) == 5
    assert not [r for r in results if r.failed]


def test_every_claim_is_a_law():
    known = {law.id for law in chosen("explorer", None)}
    assert all(mtlcore.create("explorer", m).claims <= known for m in METHODS)


ABOUT_FORM = [m for m, laws in mutants.KILLED_BY.items() if all(law.universal for law in chosen("explorer", laws))]


@pytest.mark.parametrize("mutant", ABOUT_FORM, ids=lambda m: m.__name__)
def test_mutants_are_refuted(mutant):
    for law in chosen("explorer", mutants.KILLED_BY[mutant]):
        assert examine(mutant(), law, 25, 0, shrink=False).status == "refuted"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_promises(method):
    plugin = mtlcore.create("explorer", method)
    assert not [r for r in check(plugin, kind="explorer") if r.failed]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("batches", [1, 2], "batches must be a function, found a list"),
        ("losses", None, "losses must be a function"),
        ("schedule", 3, "schedule must be a function, found a int"),
        ("optimizer", 3, "optimizer must be a function that makes one of parameters"),
        ("optimizer", lambda parameters: None, "must return a torch.optim.Optimizer"),
        ("trunk", 3, "trunk is a int"),
        ("seed", "x", "seed must be a whole number"),
    ],
)
def test_an_argument_that_is_something_else_is_named(argument, value, message):
    """Each used to raise the error of what stumbled over it."""
    x, model = torch.ones(4, 3), nn.Linear(3, 2)
    options = {
        "losses": lambda m, batch: dict(zip("ab", m(x).square().mean(0))),
        "batches": lambda step: step,
        "method": "ls-sweep",
        "passes": 10,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    }
    with pytest.raises(ConfigurationError, match=message):
        mtlcore.explore(model, **{**options, argument: value})


@pytest.mark.parametrize("damage", [{"explorer": 3}, {"explorer": None}, {"tasks": 3}, {"tasks": []}])
def test_a_front_of_a_damaged_state_is_refused(damage):
    state = {"explorer": {"name": "ls-sweep"}, "tasks": ["a", "b"], "learnt": {"w": torch.ones(1)}, **damage}
    with pytest.raises(StateError, match="it is damaged"):
        Front.load(nn.Linear(3, 2), state, "ls-sweep")
