"""Merging: the rules around every method, and the built-in methods in closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mtlcore
from mtlcore.errors import ConfigurationError, NonFiniteError, PluginError
from mtlverify import check
from mtlverify.mutants import mergers as mutants
from mtlverify.mutants.score import examine
from mtlverify.runner import chosen

METHODS = ["doge", "task-arithmetic", "ties", "weight-average"]  # those that need no data


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def base() -> nn.Module:
    return network(0)


def moved(base: nn.Module, seed: int) -> nn.Module:
    expert, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*expert.parameters(), expert[1].running_mean]:
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
        expert[1].running_var.mul_(seed)
        expert[1].num_batches_tracked.add_(seed)
    return expert


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_stay_bit_for_bit_and_nothing_is_shared(base, method):
    models = [base, moved(base, 1), moved(base, 2)]
    before = [copy.deepcopy(m.state_dict()) for m in models]
    made = mtlcore.merge(base, models[1:], method)
    assert isinstance(made, nn.Sequential)
    with torch.no_grad():
        for value in made.state_dict().values():
            value.zero_()
    assert all(equal(m.state_dict(), b) for m, b in zip(models, before, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_experts_that_have_not_moved_return_the_base_bit_for_bit(base, method):
    state = base.state_dict()
    assert equal(mtlcore.merge(state, [copy.deepcopy(base), state], method), state)


def test_one_expert_comes_back_with_its_statistics_and_counts(base):
    expert = moved(base, 2).state_dict()
    for method in ("task-arithmetic", "weight-average"):
        merged = mtlcore.merge(base, [expert], method).state_dict()
        assert all(torch.allclose(merged[n], expert[n], rtol=1e-6, atol=1e-7) for n in expert)
        assert merged["1.num_batches_tracked"] == 2


def test_statistics_are_averaged_and_counts_that_differ_stay_those_of_the_base(base):
    merged = mtlcore.merge(
        base, [moved(base, 1), moved(base, 3)], mtlcore.create("merger", "task-arithmetic", coefficient=1.0)
    )
    assert torch.allclose(merged[1].running_var, torch.full((6,), 2.0))
    assert merged[1].num_batches_tracked == 0


def test_what_does_not_fit_is_refused_by_expert_and_entry(base):
    good = base.state_dict()

    def refused(error, state, *words):
        with pytest.raises(error) as caught:
            mtlcore.merge(base, [good, state])
        assert all(w in str(caught.value) for w in words), caught.value

    refused(ConfigurationError, {n: v for n, v in good.items() if n != "0.bias"}, "experts[1]", "'0.bias'")
    refused(ConfigurationError, {**good, "head.weight": torch.ones(2)}, "experts[1]", "'head.weight'", "heads")
    refused(ConfigurationError, {**good, "0.bias": torch.ones(5)}, "experts[1]", "'0.bias'", "(5,)")
    refused(ConfigurationError, {**good, "0.bias": torch.ones(6).double()}, "experts[1]", "'0.bias'", "float64")
    refused(NonFiniteError, {**good, "0.bias": torch.full((6,), torch.nan)}, "experts[1]", "'0.bias'")
    for experts in ([], good, base):
        with pytest.raises(ConfigurationError):
            mtlcore.merge(base, experts)


def test_a_plugin_that_answers_nonsense_is_named(base):
    with pytest.raises(PluginError, match="SinglePrecision"):
        mtlcore.merge(base, [moved(base, 1)], mutants.SinglePrecision())
    with pytest.raises(PluginError, match="DividesByAnEntry"):
        mtlcore.merge(base, [base], mutants.DividesByAnEntry())
    # It writes into what it was given; what comes out rests on the user's base all the same.
    state = base.state_dict()
    honest, broken = (mtlcore.merge(state, [state], m()) for m in (mutants.Average, mutants.AddsInPlace))
    assert equal(honest, broken)


def test_lora_experts_are_their_weights_with_adapters_added():
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    experts = []
    for seed in (1, 2):
        expert = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["0"]))
        with torch.no_grad():
            for name, value in expert.named_parameters():
                if "lora_" in name:
                    value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)))
        experts.append(expert)
    before = copy.deepcopy([e.state_dict() for e in experts])
    merged = mtlcore.merge(base, experts, "weight-average")
    deltas = [e.base_model.model[0].get_delta_weight("default") for e in experts]
    assert torch.allclose(merged[0].weight, base[0].weight + (deltas[0] + deltas[1]) / 2, atol=1e-6)
    assert torch.equal(merged[2].weight, base[2].weight)
    assert all(equal(e.state_dict(), b) for e, b in zip(experts, before, strict=True))
    with torch.no_grad():
        base[2].bias.add_(1.0)
    with pytest.raises(ConfigurationError, match=r"experts\[0\] sit on another base: entry '2.bias'"):
        mtlcore.merge(base, experts)
    with pytest.raises(ConfigurationError, match="the base has LoRA adapters"):
        mtlcore.merge(experts[0].get_base_model(), [base])


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_what_moves_beside_the_adapters_is_no_other_base(base, bias):
    """The statistics of batch norms move in any training: experts that had been trained were refused."""
    peft = pytest.importorskip("peft")
    experts = []
    for seed in (1, 2):
        config = peft.LoraConfig(r=2, target_modules=["0", "3"], bias=bias)
        expert = peft.get_peft_model(copy.deepcopy(base), config)
        expert.train()
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        optimizer = torch.optim.SGD([p for p in expert.parameters() if p.requires_grad], 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            expert(x).square().mean().backward()
            optimizer.step()
        experts.append(expert)
    before = copy.deepcopy([e.state_dict() for e in experts])
    plain = [copy.deepcopy(e).merge_and_unload() for e in experts]
    assert not torch.equal(plain[0][1].running_mean, base[1].running_mean)
    assert torch.equal(plain[0][3].bias, base[3].bias) == (bias == "none")
    merged = mtlcore.merge(base, experts, "weight-average").state_dict()
    expected = mtlcore.merge(base, plain, "weight-average").state_dict()
    assert equal(merged, expected)
    for name in ("3.weight", "3.bias", "1.running_var"):
        assert torch.allclose(merged[name], (plain[0].state_dict()[name] + plain[1].state_dict()[name]) / 2, atol=1e-6)
    assert equal(mtlcore.merge(base, experts[:1], "weight-average").state_dict(), plain[0].state_dict())
    assert all(equal(e.state_dict(), b) for e, b in zip(experts, before, strict=True))
    with torch.no_grad():
        base[3].weight.add_(1.0)
    with pytest.raises(ConfigurationError, match="sit on another base: entry '3.weight'"):
        mtlcore.merge(base, experts)


def one(method, values, **options):
    """The merged task vector of vectors given as lists."""
    vectors = [{"w": torch.tensor(v, dtype=torch.float64)} for v in values]
    base = {"w": torch.zeros_like(vectors[0]["w"])}
    return mtlcore.create("merger", method, **options).merge(base, vectors, torch.Generator())["w"]


def test_ties_trims_elects_and_averages_what_agrees():
    # Trimmed to two of four: [3, 0, 0, -2] and [-1, 4, 0, 0]; [5, 0, -1, 0] keeps both.
    found = one("ties", [[3.0, 0.1, 0.5, -2.0], [-1.0, 4.0, 0.2, 0.3], [5.0, 0.0, -1.0, 0.4]], density=0.5)
    assert found.tolist() == [4.0, 4.0, -1.0, -2.0]


def test_doge_moves_outside_of_the_shared_subspace_and_lowers_its_loss():
    generator = torch.Generator().manual_seed(0)
    taus = torch.randn(2, 8, 9, generator=generator, dtype=torch.float64)
    for reduce in ("row", "full"):
        plugin = mtlcore.create("merger", "doge", reduce=reduce, optimizer="sgd", lr=1e-3, steps=50, subspace=2)
        basis = plugin.basis(taus)
        assert basis.shape == (8, 4)
        assert torch.allclose(basis.T @ basis, torch.eye(4, dtype=torch.float64))
        delta = plugin.delta(taus)
        assert delta.norm() > 1e-3
        assert float((basis.T @ delta).abs().max()) < 1e-12

        def loss(delta, plugin=plugin, over=2 if reduce == "row" else (1, 2)):
            merged = (plugin.lambdas(taus)[:, None, None] * (taus + delta)).sum(0)
            return (taus * (taus - merged)).sum(over).square().sum()

        assert loss(delta) < loss(torch.zeros_like(delta))
        # The first step is that of autograd, without its part in the basis.
        at = torch.zeros(8, 9, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(at), at)
        first = mtlcore.create("merger", "doge", reduce=reduce, optimizer="sgd", lr=1e-3, steps=1, subspace=2).delta(
            taus
        )
        assert torch.allclose(first, -1e-3 * (gradient - basis @ basis.T @ gradient))
    assert torch.allclose(plugin.lambdas(1e3 * taus) * 1e3, plugin.lambdas(taus))


@pytest.mark.parametrize(("subspace", "columns"), [(5, 0), (1, 4)])
def test_doge_reaches_the_least_squares_solution_of_its_full_loss(subspace, columns):
    """sum_j (c_j - s <tau_j, Delta>)^2 is quadratic; from 0, descent within B'Delta = 0 ends at its smallest minimum,
    Delta = sum_k b_k (I - BB') tau_k, M b = c / s with M_jk = <tau_j, (I - BB') tau_k>."""
    taus = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plugin = mtlcore.create(
        "merger", "doge", reduce="full", optimizer="sgd", coefficients="equal", lr=1e-2, steps=1000, subspace=subspace
    )
    basis = plugin.basis(taus)
    assert basis.shape == (6, columns)
    outside = taus - basis @ basis.T @ taus
    wanted = (taus * (taus - taus.mean(0))).sum((1, 2))  # c, and s = 1
    factors = torch.linalg.solve(torch.einsum("jab,kab->jk", taus, outside), wanted)
    expected = torch.einsum("k,kab->ab", factors, outside)
    assert expected.norm() > 0.1
    assert torch.allclose(plugin.delta(taus), expected, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_laws(method):
    options = {"steps": 5} if method == "doge" else {}
    results = list(check(mtlcore.create("merger", method, **options), max_examples=28))
    assert not [r for r in results if r.failed]
    assert len([r for r in results if r.claimed]) >= 6


def test_options_decide_what_is_promised():
    for method, options in (
        ("ties", {"density": 1.0}),
        ("doge", {"steps": 0, "keep": 1.0, "coefficients": "equal"}),
    ):
        plugin = mtlcore.create("merger", method, **options)
        assert {"one-expert", "identical-experts"} <= plugin.claims
        assert not [r for r in check(plugin, max_examples=14) if r.failed]
    assert "one-expert" not in mtlcore.create("merger", "task-arithmetic", coefficient=0.3).claims


def test_every_mutant_is_caught():
    for mutant, laws in mutants.KILLED_BY.items():
        for law in chosen("merger", laws):
            found = examine(mutant(), law, 60, 0, shrink=False)
            assert found.status in ("refuted", "error"), (mutant.__name__, law.id)
            assert found.counterexample is not None


# --- adamerging -------------------------------------------------------------------------------------------------------


def entropy(model, step):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step % 2))
    log = torch.log_softmax(model(x), 1)
    return -(log.exp() * log).sum(1).mean()


def test_adamerging_lowers_what_it_is_given_and_writes_to_nothing(base):
    experts = [moved(base, 1), moved(base, 2)]
    before = [copy.deepcopy(m.state_dict()) for m in (base, *experts)]
    plugin = mtlcore.create("merger", "adamerging", steps=40, lr=0.05)
    made = mtlcore.merge(base, experts, plugin, objective=entropy)
    assert all(equal(m.state_dict(), b) for m, b in zip((base, *experts), before, strict=True))
    start = mtlcore.merge(base, experts, mtlcore.create("merger", "task-arithmetic", coefficient=0.3))
    values = [min(float(entropy(m.eval(), step).detach()) for step in (0, 1)) for m in (made, start)]
    assert values[0] < values[1]
    assert equal(made.state_dict(), mtlcore.merge(base, experts, plugin, objective=entropy).state_dict())


def test_adamerging_without_steps_is_task_arithmetic(base):
    experts = [moved(base, 1), moved(base, 2)]
    plugin = mtlcore.create("merger", "adamerging", steps=0)
    made = mtlcore.merge(base, experts, plugin, objective=entropy).state_dict()
    plain = mtlcore.merge(base, experts, mtlcore.create("merger", "task-arithmetic", coefficient=0.3)).state_dict()
    assert all(torch.allclose(made[n], plain[n]) for n in plain)


@pytest.mark.parametrize(("per", "expected"), [("task", [0.5, 0.5]), ("layer", [1.0, 0.0])])
def test_adamerging_finds_its_coefficients(per, expected):
    # One entry wants the first expert whole, the other one the second: one coefficient per task can only be in between.
    base = {"a": torch.zeros(1), "b": torch.zeros(1)}
    experts = [{"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}]
    wanted = {"a": torch.ones(1), "b": torch.zeros(1)}
    plugin = mtlcore.create("merger", "adamerging", per=per, steps=300, lr=0.02)
    made = mtlcore.merge(
        base, experts, plugin, objective=lambda e, step: sum((e[n] - wanted[n]).square().sum() for n in e)
    )
    assert [float(made["a"]), float(made["b"])] == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(
    ("method", "objective", "why"),
    [
        ("adamerging", None, "give objective="),
        ("ties", entropy, "leave objective= out"),
        ("adamerging", lambda model, step: torch.tensor(float("nan")), "finite scalar"),
        ("adamerging", lambda model, step: 1.0, "finite scalar"),
    ],
)
def test_an_objective_is_for_methods_that_look_at_data(base, method, objective, why):
    with pytest.raises(ConfigurationError, match=why):
        mtlcore.merge(base, [moved(base, 1)], method, objective=objective)


def test_adamerging_keeps_its_laws():
    results = list(check(mtlcore.create("merger", "adamerging", steps=5, lr=0.02), max_examples=14))
    assert {r.law for r in results if r.claimed} >= {"lowers-objective", "order-free", "zero-vectors"}
    assert not [r for r in results if r.failed]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "x"}, "seed must be a whole number"),
        ({"method": "adamerging", "objective": 3}, "objective must be a function"),
        ({"method": "adamerging", "objective": lambda model, step: torch.ones(())}, "does not depend on the model"),
    ],
)
def test_an_argument_that_is_something_else_is_named(options, message):
    """Each used to raise the error of what stumbled over it."""
    base = nn.Linear(3, 2)
    with pytest.raises(ConfigurationError, match=message):
        mtlcore.merge(base, [copy.deepcopy(base), copy.deepcopy(base)], **options)


def test_a_state_dict_of_numbered_entries_is_refused():
    with pytest.raises(ConfigurationError, match="entry 0 of the base must have a string for a name"):
        mtlcore.merge({0: torch.ones(2)}, [{0: torch.ones(2)}])


@pytest.mark.parametrize("wrapped", ["base", "expert", "both", "inside", "entries"])
def test_a_compiled_or_parallel_model_is_the_network_inside(wrapped):
    """Its entries have other names, and the error said that one was missing."""

    def compiled(model):
        if wrapped == "inside":
            model[0] = torch.compile(model[0])
            return model
        return torch.compile(model) if wrapped != "both" else nn.DataParallel(torch.compile(model))

    torch.manual_seed(0)
    base, expert = (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2))
    wanted = mtlcore.merge(base, [expert], "task-arithmetic").state_dict()
    a = compiled(copy.deepcopy(base)) if wrapped in ("base", "both") else base
    b = expert if wrapped == "base" else compiled(copy.deepcopy(expert))
    found = mtlcore.merge(a, [b.state_dict() if wrapped == "entries" else b], "task-arithmetic")
    assert type(found) is nn.Sequential
    assert found.state_dict().keys() == wanted.keys()
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, wanted[name])
