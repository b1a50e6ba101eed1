"""Gradient methods leave in ``.grad`` what ``backward()`` would, whatever surrounds the trunk: leaves outside of it,
hooks, parameters that are added up, gradients from before, and errors on the way."""

from __future__ import annotations

import contextlib
import functools
import weakref

import pytest
import torch
from torch import nn

from mtlcore import Aggregation, MultiTask, Needs
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.gradients import graph
from mtlcore.gradients.plan import PLANS
from support.methods import Fixed, FixedOnLosses, FixedOnRows

ONES = (1.0, 1.0, 1.0)
ON_GRADIENTS = ["auto", *(s for s in PLANS if s != "losses")]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def heads(width, k=3):
    return nn.ModuleList(nn.Linear(width, 2) for _ in range(k))


def squares(outputs):
    return {f"t{i}": y.square().mean() for i, y in enumerate(outputs)}


def run(trunk, losses, z, source, method=None):
    MultiTask(trunk, aggregator=method or Fixed(ONES), gradients=source).backward(losses, features=z)


def stem_outside_the_trunk(parameter_of):
    """(trunk, parameters outside, losses, z): a leaf feeds the trunk and, past it, the heads."""
    outside = parameter_of()
    trunk, hs = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), heads(14)
    e = outside(torch.randn(5, 6))
    z = trunk(e)
    return trunk, list(outside.parameters()), squares(h(torch.cat([z, e], 1)) for h in hs), z


class _Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        return x * self.t


@pytest.mark.parametrize("source", ON_GRADIENTS)
@pytest.mark.parametrize("outside", [lambda: nn.Linear(6, 6), _Temperature], ids=["stem", "temperature"])
def test_a_leaf_on_both_sides_of_the_features_is_counted_once(outside, source):
    trunk, leaves, losses, z = stem_outside_the_trunk(outside)
    expected = torch.autograd.grad(sum(losses.values()), leaves, retain_graph=True)
    if source in ("batched", "streaming-together"):
        with pytest.raises(ConfigurationError, match="no leaf behind them used again by a head"):
            run(trunk, losses, z, source)
        return
    run(trunk, losses, z, source)
    for p, g in zip(leaves, expected):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize("source", ON_GRADIENTS)
@pytest.mark.parametrize("many", [True, False])
def test_parameters_that_are_added_up_do_not_share_a_gradient(source, many):
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    trunk, hs = nn.Linear(6, 8), heads(8, 3 if many else 1)
    z = trunk(torch.randn(6))
    losses = squares(h(z) + (a + b) for h in hs)
    losses["t0"] = losses["t0"] + c.sum()  # one number, expanded
    expected = torch.autograd.grad(sum(losses.values()), [a, b, c], retain_graph=True)
    run(trunk, losses, z, source, Fixed(ONES[: len(losses)]))
    for p, g in zip((a, b, c), expected):
        torch.testing.assert_close(p.grad, g)
    nn.utils.clip_grad_norm_([a, b, c], 1e-3)
    torch.testing.assert_close(float(torch.cat([a.grad, b.grad, c.grad]).norm()), 1e-3, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("source", ON_GRADIENTS)
def test_trunk_parameters_that_are_added_up_do_not_either(source):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x * (self.a + self.b)

    trunk, hs = Sum(), heads(4)
    for _ in range(2):
        z = trunk(torch.ones(3, 4))
        losses = squares(h(z) for h in hs)
        (expected,) = torch.autograd.grad(sum(losses.values()), [trunk.a], retain_graph=True)
        run(trunk, losses, z, source)
    torch.testing.assert_close(trunk.a.grad, 2 * expected)
    torch.testing.assert_close(trunk.b.grad, 2 * expected)


@pytest.mark.parametrize("source", ON_GRADIENTS)
def test_a_hook_on_the_features_runs_once(source):
    trunk, hs = nn.Linear(6, 8), heads(8)
    z = trunk(torch.randn(5, 6))
    z.register_hook(lambda g: 3 * g)
    losses = squares(h(z) for h in hs)
    expected = torch.autograd.grad(sum(losses.values()), list(trunk.parameters()), retain_graph=True)
    if source in ("streaming-together", "batched", "features"):
        with pytest.raises(ConfigurationError, match="hook"):
            run(trunk, losses, z, source)
        return
    run(trunk, losses, z, source)
    for p, g in zip(trunk.parameters(), expected):
        torch.testing.assert_close(p.grad, g)


def times_three(gradient):
    return 3 * gradient


def also_on_parameters(trunk, y, z):
    for t in (trunk[0].bias, trunk[2].weight, y):
        t.register_hook(times_three)


HOOKS = {
    "activation": lambda trunk, y, z: y.register_hook(times_three),
    "activation, no Python": lambda trunk, y, z: y.register_hook(torch.neg),
    "activation and parameters": also_on_parameters,
    "parameter, partial": lambda trunk, y, z: trunk[2].weight.register_hook(functools.partial(torch.mul, other=3.0)),
    "before a function": lambda trunk, y, z: z.grad_fn.register_prehook(lambda gs: tuple(3 * g for g in gs)),
    "before the last function": lambda trunk, y, z: y.grad_fn.register_prehook(lambda gs: tuple(3 * g for g in gs)),
    "after a function": lambda trunk, y, z: z.grad_fn.register_hook(tripled),
    "after the last function": lambda trunk, y, z: y.grad_fn.register_hook(tripled),
}


def tripled(returned, given):
    return tuple(None if g is None else 3 * g for g in returned)


@pytest.mark.parametrize("source", ON_GRADIENTS)
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("budget", [None, 1])
def test_a_hook_inside_the_trunk_is_obeyed(source, hook, budget):
    """Cotangents are found between two functions, where autograd hands out what was there before the hooks."""
    first, last, hs = nn.Linear(40, 40), nn.Linear(40, 8), heads(8)
    trunk = nn.Sequential(first, nn.Tanh(), last)
    y = first(torch.randn(5, 40))
    z = last(y.tanh())
    HOOKS[hook](trunk, y, z)
    losses = squares(h(z) for h in hs)
    expected = torch.autograd.grad(sum(losses.values()), list(trunk.parameters()), retain_graph=True)
    MultiTask(trunk, aggregator=Fixed(ONES), gradients=source, gradient_memory=budget).backward(losses, features=z)
    for p, g in zip(trunk.parameters(), expected):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize("source", ["streaming", "batched"])
def test_nothing_of_ours_stays_in_the_graph(source):
    layer, hs = nn.Linear(40, 8), heads(8)
    z = layer(torch.randn(5, 40))
    losses = squares(h(z) for h in hs)
    z.grad_fn.metadata["lives as long as the function"] = witness = {None}
    witness = weakref.ref(witness)
    run(layer, losses, z, source)
    assert len(z.grad_fn.register_hook(tripled).hooks_dict_ref()) == 1
    del z, losses
    assert witness() is None


@pytest.mark.parametrize("source", ["streaming", "batched"])
def test_a_hook_that_only_looks_is_welcome(source):
    seen = []
    layer, hs = nn.Linear(40, 8), heads(8)
    y = layer(torch.randn(5, 40))
    y.register_hook(lambda g: seen.append(1))
    z = y.tanh()
    losses = squares(h(z) for h in hs)
    expected = torch.autograd.grad(sum(losses.values()), layer.weight, retain_graph=True)[0]
    seen.clear()
    run(layer, losses, z, source)
    assert seen
    torch.testing.assert_close(layer.weight.grad, expected)


@pytest.mark.parametrize("source", ON_GRADIENTS)
@pytest.mark.parametrize("before", ["sparse", "dense"])
def test_gradients_from_before_are_added_to(source, before):
    table, hs = nn.Embedding(10, 8, sparse=before == "sparse"), heads(8)
    index = torch.tensor([1, 2, 2])
    table(index).sum().backward()
    expected = table.weight.grad.to_dense().clone()
    z = table(index)
    losses = squares(h(z) for h in hs)
    expected += torch.autograd.grad(sum(losses.values()), table.weight, retain_graph=True)[0].to_dense()
    run(table, losses, z, source)
    torch.testing.assert_close(table.weight.grad.to_dense(), expected)


@pytest.mark.parametrize("source", [*ON_GRADIENTS, "losses"])
def test_the_tensor_that_held_the_gradient_still_does(source):
    trunk, hs = nn.Linear(6, 8), heads(8)
    held = []
    for _ in range(2):
        z = trunk(torch.ones(3, 6))
        losses = squares(h(z) for h in hs)
        run(trunk, losses, z, source, (FixedOnLosses if source == "losses" else Fixed)(ONES))
        held.append([p.grad for p in (*trunk.parameters(), *hs.parameters())])
    assert all(a is b for a, b in zip(*held))


class Broken(torch.autograd.Function):
    """A function whose backward pass yields infinity, or raises."""

    @staticmethod
    def forward(ctx, x, how):
        ctx.how = how
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if ctx.how == "raises":
            raise ArithmeticError("on purpose")
        return g * float("inf"), None


@pytest.mark.parametrize("how", ["infinite", "raises"])
@pytest.mark.parametrize("gradients_before", [True, False])
@pytest.mark.parametrize("source", ["auto", "sequential", "streaming", "features", "losses"])
def test_a_pass_that_fails_leaves_no_trace(source, gradients_before, how):
    trunk, hs = nn.Linear(6, 8), heads(8)
    parameters = [*trunk.parameters(), *hs.parameters()]
    if gradients_before:
        sum(squares(h(trunk(torch.ones(2, 6))) for h in hs).values()).backward()
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    z = Broken.apply(trunk(torch.ones(2, 6)), how)
    method = (FixedOnLosses if source == "losses" else Fixed)(ONES)
    with pytest.raises((NonFiniteError, ArithmeticError)):
        run(trunk, squares(h(z) for h in hs), z, source, method)
    for p, g in zip(parameters, before):
        assert (p.grad is None) == (g is None)
        assert g is None or torch.equal(p.grad, g)


@pytest.mark.parametrize("source", ["losses", "features", "sequential", "streaming"])
def test_infinity_in_a_sparse_gradient_is_named_as_in_any_other(source):
    trunk, own, hs = nn.Embedding(9, 8, sparse=True), nn.Embedding(9, 8, sparse=True), heads(8)
    index = torch.tensor([1, 2, 1])
    z = trunk(index)
    if source == "features":  # behind them, where one pass serves all tasks
        z = Broken.apply(z, "infinite")
    outputs = [h(z) for h in hs]
    if source != "features":
        outputs[1] = hs[1](Broken.apply(z + own(index), "infinite"))
    method = (FixedOnLosses if source == "losses" else Fixed)(ONES)
    with pytest.raises(NonFiniteError, match="the trunk's weighted" if source == "features" else "of task 't1' is"):
        run(trunk, squares(outputs), z, source, method)
    assert trunk.weight.grad is None
    assert own.weight.grad is None


def test_features_only_refuses_complex_features():
    """Half of a cotangent was dropped, with torch's warning of a cast only."""
    trunk, hs = nn.Linear(6, 8), heads(8)
    for options in ({"gradients": "features"}, {"refresh": 2}):
        mt = MultiTask(trunk, aggregator="upgrad", **options)
        for step in range(2):
            z = torch.fft.fft(trunk(torch.randn(2, 6)))
            losses = squares(h(z.real) + h(z.imag) for h in hs)
            if "refresh" in options and not step:
                mt.backward(losses, features=z)
                continue
            with pytest.raises(ConfigurationError, match="view_as_real"):
                mt.backward(losses, features=z)
            real = torch.view_as_real(z)
            mt.backward(squares(h(real[..., 0]) + h(real[..., 1]) for h in hs), features=real)


def test_kept_weights_are_checked_too():
    trunk, hs = nn.Linear(6, 8), heads(8)
    mt = MultiTask(trunk, aggregator="upgrad", refresh=3)
    for how in (None, "infinite"):
        z = trunk(torch.randn(2, 6))
        z = z if how is None else Broken.apply(z, how)
        losses = squares(h(z) for h in hs)
        if how is None:
            mt.backward(losses, features=z)
            trunk.zero_grad()
            continue
        age = mt.state_dict()["refresh"]["age"]
        with pytest.raises(NonFiniteError, match="trunk"):
            mt.backward(losses, features=z)
        assert torch.equal(mt.state_dict()["refresh"]["age"], age)
    assert all(p.grad is None for p in trunk.parameters())


@pytest.mark.parametrize("source", ON_GRADIENTS)
def test_what_heads_share_is_freed(source):
    """A decoder above the features, which no task alone could free."""
    trunk, decoder, hs = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), heads(8)
    z = trunk(torch.randn(5, 6))
    y = decoder(z)
    losses = squares(h(y) for h in hs)
    run(trunk, losses, z, source)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), decoder[0].weight)


@pytest.mark.parametrize("know", [True, False])
def test_a_hook_that_cannot_do_with_freeing_is_named_and_breaks_nothing(know):
    """One feature per task: no pass reaches all of the graph."""
    trunk, hs = nn.Linear(6, 8), heads(8)
    y = trunk(torch.randn(5, 6))
    z = [y.exp(), y.sin(), y.cos()]
    z[0].grad_fn.register_prehook(lambda gs: gs if know and gs[0] is None else (3 * gs[0],))
    losses = squares(h(x) for h, x in zip(hs, z))
    expected = torch.autograd.grad(sum(losses.values()), list(trunk.parameters()), retain_graph=True)
    with contextlib.nullcontext() if know else pytest.warns(UserWarning, match=r"cannot handle .* \(TypeError: "):
        run(trunk, losses, z, "streaming")
    for p, g in zip(trunk.parameters(), expected):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize("source", ON_GRADIENTS)
@pytest.mark.parametrize("features", ["one", "several"])
def test_the_graph_is_freed_although_the_last_task_does_not_reach_all_of_it(source, features):
    trunk, hs = nn.Linear(6, 8), heads(8)
    y = trunk(torch.randn(5, 6))
    z = [y.exp(), y.sin(), y.cos()] if features == "several" else [y.exp()] * 2 + [torch.ones(5, 8)]
    losses = squares(h(x) for h, x in zip(hs, z))
    if source == "features" and features == "several":
        with pytest.raises(ConfigurationError, match="'t0' and 't1' have no number of them in common"):
            run(trunk, losses, z, source)
        return
    run(trunk, losses, [x for x in z if x.requires_grad], source)
    for x in z[:2]:
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(x.sum(), trunk.weight)


class Doubled(torch.autograd.Function):
    """Knows no undefined gradients."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@pytest.mark.parametrize("source", ON_GRADIENTS)
@pytest.mark.parametrize("python", ["hook", "function"])
def test_hooks_and_functions_in_what_heads_share_are_obeyed(source, python):
    """And meet nothing but gradients, for its last user frees it."""
    trunk, decoder, hs = nn.Linear(40, 8), nn.Linear(8, 8), heads(8)
    z = trunk(torch.randn(5, 40))
    y = decoder(z)
    calls = []
    if python == "hook":
        y.register_hook(lambda g: (calls.append(g), 3 * g)[1])
    else:
        y = Doubled.apply(y)
    losses = squares(h(y) for h in hs)
    leaves = [*trunk.parameters(), *decoder.parameters()]
    expected = torch.autograd.grad(sum(losses.values()), leaves, retain_graph=True)
    calls.clear()
    run(trunk, losses, z, source)
    assert not any(g is None for g in calls)
    if source != "auto":  # which compares in its first step
        assert len(calls) == (3 if python == "hook" else 0)
    for p, g in zip(leaves, expected):
        torch.testing.assert_close(p.grad, g)


class Keeps(FixedOnRows):
    """Answers with what it keeps."""

    def init(self, n_tasks):
        return {"direction": torch.empty(0)}

    def aggregate(self, view, state):
        direction = view.jacobian[0].clone() if self.values[0] else view.jacobian[0]
        notes = {"kept": direction}
        return Aggregation(direction=direction, state={"direction": direction}, diagnostics=notes)


@pytest.mark.parametrize("own", [1.0, 0.0])
@pytest.mark.parametrize("micro", [True, False])
def test_a_direction_is_copied(own, micro):
    trunk, hs = nn.Linear(6, 8), heads(8)
    mt = MultiTask(trunk, aggregator=Keeps((own,) * 3), gradients="sequential")

    def losses():
        z = trunk(torch.ones(3, 6))
        return squares(h(z) for h in hs), z

    if micro:
        mt.accumulate(*losses())
    report = mt.backward(*losses())
    first = torch.cat([p.grad.flatten() for p in trunk.parameters()])
    mt.backward(*losses()) if not micro else None
    total = torch.cat([p.grad.flatten() for p in trunk.parameters()])
    torch.testing.assert_close(total, first if micro else 2 * first)
    state = mt.state_dict()["state"]["direction"]
    nn.utils.clip_grad_norm_(trunk.parameters(), 1e-6)
    report.diagnostics["kept"].zero_()
    assert torch.equal(mt.state_dict()["state"]["direction"], state)
    assert not torch.equal(state, torch.zeros_like(state))


class RemembersWeights(FixedOnLosses):
    def init(self, n_tasks):
        return {"w": torch.ones(n_tasks, dtype=torch.float64)}

    def aggregate(self, view, state):
        return Aggregation(weights=state["w"], state=dict(state))


def test_the_report_is_safe_to_write_into():
    trunk, hs = nn.Linear(6, 8), heads(8)
    mt = MultiTask(trunk, aggregator=RemembersWeights(ONES))
    mt.backward(squares(h(trunk(torch.ones(3, 6))) for h in hs)).weights.zero_()
    assert torch.equal(mt.state_dict()["state"]["w"], torch.ones(3, dtype=torch.float64))
    assert RemembersWeights.needs == Needs.LOSSES


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_number_is_found_wherever_it_is(bad):
    rows = torch.sparse_coo_tensor([[1, 3]], torch.ones(2, 4), (6, 4), check_invariants=True)
    gradients = [torch.ones(5000), torch.ones(3).half(), torch.ones(2, 6).T, torch.ones(()), rows]
    others = [torch.empty(0), torch.full((4,), 1e38)]  # the sum of these four overflows
    assert graph.finite([*gradients, *others])
    for i, gradient in enumerate(gradients):
        assert not graph.finite([*gradients[:i], gradient * bad, *gradients[i + 1 :], *others])
