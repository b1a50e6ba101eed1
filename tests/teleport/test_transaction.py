"""A refused or interrupted teleport leaves no trace; an accepted one moves only what it should."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import mtlcore
from mtlcore import Brakes, Conflict, ConflictDetector, Displacement, Needs, TeleportStrategy
from mtlcore.errors import ConfigurationError, PluginError, TeleportError
from mtlcore.teleporting import Teleporter, relative_changes
from mtlcore.trajectory import reuse, similarity
from support.teleport_nets import TASKS, Falling, Rising, problem, teleport, view
from support.traces import assert_unchanged, bits, everything, same


class Double(nn.Module):
    def forward(self, w):
        return 2 * w


@dataclass(frozen=True)
class Vandal(TeleportStrategy):
    """Does everything to the network that a search could do, then ``end``s."""

    end: str = "propose"

    def propose(self, problem, generator):
        problem.evaluate()
        trunk = problem.trunk
        far = {n: torch.full_like(p, 3.0) for n, p in problem.parameters().items()}
        with torch.no_grad():
            for p in (*trunk.parameters(), *problem.heads.parameters()):
                p.add_(torch.randn(p.shape, dtype=p.dtype))
                p.grad = torch.ones_like(p)
            for b in trunk.buffers():
                b.add_(1)
        for module in list(trunk.modules()):
            module.register_forward_hook(lambda *a: None)
            module.train(not module.training)
            module.note = "was here"
            if isinstance(module, nn.Linear):
                nn.utils.parametrize.register_parametrization(module, "weight", Double())
        trunk.add_module("adapter", nn.Linear(2, 2))
        trunk.requires_grad_(False)
        random.random()
        np.random.rand()
        torch.manual_seed(5)
        if self.end == "raise":
            raise RuntimeError("lost")
        if self.end == "interrupt":
            raise KeyboardInterrupt
        return Displacement(far)


KINDS = ["conv", "residual", "lstm", "attention", "plain"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["propose", "raise", "interrupt"])
def test_roll_back_is_bit_for_bit(kind, end):
    made = problem(kind)
    optimizer = made.optimizer(torch.optim.Adam, amsgrad=True)
    made.train(optimizer, 2)
    sum(made.batch(5)()[0].values()).backward()  # .grad is there, and must stay
    next(made.trunk.parameters()).requires_grad_(False)
    torch.manual_seed(1)
    before = everything(made, optimizer)
    if end == "propose":
        result = teleport(made, Vandal(), optimizer=optimizer, detector=Rising())
        assert not result.accepted
        assert "loss of" in result.reason
    else:
        with pytest.raises(RuntimeError if end == "raise" else KeyboardInterrupt):
            teleport(made, Vandal(end), optimizer=optimizer)
    assert_unchanged(before, everything(made, optimizer))


@pytest.mark.parametrize("name", ["lora", "relu-rescaling", "linear-boundary"])
def test_refused_for_want_of_improvement(name):
    made = problem("conv")
    optimizer = made.optimizer()
    made.train(optimizer, 2)

    before = everything(made, optimizer)
    result = teleport(made, name, optimizer=optimizer, detector=Rising())
    assert not result.accepted
    assert "not an improvement" in result.reason
    assert_unchanged(before, everything(made, optimizer))


@pytest.mark.parametrize("when", [1, 2, 5, 8, 12])
def test_ctrl_c_at_any_evaluation(when):
    made = problem("residual")
    optimizer = made.optimizer()
    made.train(optimizer, 2)
    calls = [0]
    inner = made.batch(0)

    def closure():
        calls[0] += 1
        if calls[0] == when:
            raise KeyboardInterrupt
        return inner()

    before = everything(made, optimizer)
    with pytest.raises(KeyboardInterrupt):
        teleport(made, "lora", {"steps": 3}, optimizer=optimizer, closure=closure, probe=closure)
    assert_unchanged(before, everything(made, optimizer))


def test_failure_while_carrying_the_history_rolls_back():
    made = problem("mlp")
    optimizer = made.optimizer()
    made.train(optimizer, 2)
    last = list(made.trunk.parameters())[-1]
    optimizer.state[last]["mystery"] = torch.ones_like(last)
    before = everything(made, optimizer)
    with pytest.raises(TeleportError, match="mystery"):
        teleport(made, "linear-boundary", optimizer=optimizer, detector=Falling())
    assert_unchanged(before, everything(made, optimizer))


def test_a_jump_that_is_taken_back_leaves_no_blending_behind(monkeypatch):
    """Interrupted after the reuse of the history was ordered, which the optimizer's next step would carry out."""
    made = problem("plain")
    optimizer = made.optimizer()
    made.train(optimizer, 3)
    before = everything(made, optimizer)

    def interrupted(*anything):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mtlcore.teleporting.transaction.Transaction.commit", interrupted)
        patch.setattr("mtlcore.trajectory.similarity", lambda *anything: 0.5)
        with pytest.raises(KeyboardInterrupt):
            teleport(made, "lora", optimizer=optimizer, detector=Falling())
    assert_unchanged(before, everything(made, optimizer))
    other = problem("plain")
    other_optimizer = other.optimizer()
    other.train(other_optimizer, 3)
    for each, its in ((made, optimizer), (other, other_optimizer)):
        each.train(its, 1, first_seed=77)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), other.parameters()))


def test_acceptance_touches_nothing_but_values_and_history():
    made = problem("attention")
    optimizer = made.optimizer()
    made.train(optimizer, 2)
    before = everything(made, optimizer)
    result = teleport(made, "lora", optimizer=optimizer, detector=Falling())
    assert result.accepted, result.reason
    after = everything(made, optimizer)
    changed = {k for k in before if not same(before[k], after[k])}
    assert before.keys() == after.keys()
    assert all(
        k.startswith("trunk ") and k.endswith(("weight", "in_proj_weight")) for k in changed if "optimizer" not in k
    )
    n_trunk = len(list(made.trunk.parameters()))
    assert all(int(k.split()[1]) < n_trunk for k in changed if k.startswith("optimizer")), "head history moved"


def test_modules_that_only_the_closure_knows_are_not_disturbed():
    made = problem("mlp")
    secret = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5)).double()
    inner, modes = made.batch(0), []

    def closure():
        losses, (z,) = inner()
        extra = secret(z).square().mean()
        modes.append([m.training for m in secret])
        return {t: v + 0.1 * extra for t, v in losses.items()}, (z,)

    stats = [bits(b) for b in secret.buffers()]
    state = torch.get_rng_state()
    for name in ("lora", Vandal()):
        teleport(made, name, closure=closure, probe=closure)
        assert modes.pop(0) == [False, False], "frozen from its first call on"
        modes.clear()
        assert all(torch.equal(a, b) for a, b in zip(stats, secret.buffers()))
        assert all(m.training for m in secret.modules())
        assert torch.equal(state, torch.get_rng_state())
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_graph_from_before_survives_refusal_and_not_acceptance():
    made = problem("conv")
    losses, _ = made.batch(0)()
    expected = torch.autograd.grad(sum(losses.values()), made.parameters(), retain_graph=True)
    for name in ("lora", "relu-rescaling", "linear-boundary"):
        assert not teleport(made, name, probe=made.batch(0), detector=Rising()).accepted
    again = torch.autograd.grad(sum(losses.values()), made.parameters(), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(expected, again))
    assert teleport(made, "lora", detector=Falling()).accepted
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(sum(losses.values()), made.parameters())


class Scaler(nn.Module):
    """Divides by a scale that it learns in training, in its place or in a new tensor."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("scale", torch.ones(10).double())

    def forward(self, x):
        if self.training and self.in_place:
            self.scale.lerp_(x.detach().std(0), 0.5)
        elif self.training:
            self.scale = self.scale.lerp(x.detach().std(0), 0.5)
        return x / self.scale


def can_be_traced(module):
    """torch.fx of torch 2.6 cannot put a new value into a buffer."""
    try:
        torch.fx.symbolic_trace(module)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "in_place"), [("relu-rescaling", True), ("relu-rescaling", False), ("linear-boundary", True)]
)
def test_a_buffer_that_is_learnt_and_used_in_training(name, in_place):
    """Exact teleports are tried in training, too: the scale is put back each time, and the step's graph, which holds
    it, stays good."""
    for detector in (Rising(), Falling()):
        made = problem("mlp")
        made.trunk.insert(1, Scaler(in_place))
        optimizer = made.optimizer(lr=0.0)
        mt = mtlcore.MultiTask(
            made.trunk, "ls", optimizer, heads=made.heads, teleport=name, detector=detector, probe=made.batch(1)
        )
        scale = bits(made.trunk[1].scale)
        result = mt.step(made.batch(0)).teleport
        if name == "relu-rescaling" and not can_be_traced(Scaler(in_place)):
            assert "cannot be traced" in result.reason
        else:
            assert result.accepted is isinstance(detector, Falling), result.reason
            assert result.accepted or "not an improvement" in result.reason
        learnt = bits(made.trunk[1].scale)
        made.trunk[1].scale.copy_(scale)
        made.batch(0)()
        assert torch.equal(learnt, made.trunk[1].scale), "the step learns once"


def test_what_a_forward_leaves_in_containers_is_taken_back():
    made = problem("mlp")
    made.trunk.seen, made.trunk.tables = [1.0], {"nested": [2.0]}
    inner = made.batch(0)

    def closure():
        made.trunk.seen.append(3.0)
        made.trunk.tables["nested"].append(3.0)
        return inner()

    kept = made.trunk.seen, made.trunk.tables["nested"]
    assert teleport(made, "lora", closure=closure, probe=closure, detector=Falling()).accepted
    assert (made.trunk.seen, made.trunk.tables) == ([1.0], {"nested": [2.0]})
    assert made.trunk.seen is kept[0]
    assert made.trunk.tables["nested"] is kept[1]


def test_a_buffer_that_cannot_be_written_to_disturbs_nothing():
    made = problem("mlp")
    made.trunk.register_buffer("wide", torch.tensor([[1.0], [float("nan")]]).expand(2, 4))
    optimizer = made.optimizer()
    before = everything(made, optimizer)
    assert not teleport(made, "lora", optimizer=optimizer, detector=Rising()).accepted
    assert_unchanged(before, everything(made, optimizer))
    assert teleport(made, "lora", optimizer=optimizer, detector=Falling()).accepted


def test_a_tensor_that_cannot_be_restored_does_not_keep_the_others_from_it():
    made = problem("mlp")
    made.trunk.register_buffer("wide", torch.ones(1).expand(4))
    optimizer = made.optimizer()
    made.train(optimizer, 1)
    before = everything(made, optimizer)

    class Breaks(TeleportStrategy):
        def propose(self, problem, generator):
            torch.manual_seed(5)
            problem.trunk.wide.as_strided((1,), (1,)).fill_(2.0)
            for p in (*problem.trunk.parameters(), *problem.heads.parameters()):
                p.data.fill_(3.0)
            return Displacement({})

    with pytest.raises(RuntimeError, match="single memory location"):
        teleport(made, Breaks(), optimizer=optimizer)
    after = everything(made, optimizer)
    assert [k for k in before if not same(before[k], after[k])] == ["trunk wide"]


@pytest.mark.parametrize("name", ["lora", "relu-rescaling", "random", "linear-boundary"])
def test_a_compiled_trunk(name):
    made = problem("mlp")
    made.trunk = torch.compile(made.trunk, backend="eager")
    optimizer = made.optimizer()
    names, before = list(made.trunk.state_dict()), made.losses(50)
    for seed in range(2):
        result = teleport(made, name, optimizer=optimizer, detector=Falling(), seed=seed)
        assert result.accepted, result.reason
    assert list(made.trunk.state_dict()) == names
    if name != "lora":
        made.trunk.eval()
        plain = problem("mlp")
        plain.trunk.eval()
        assert made.losses(50) == pytest.approx(plain.losses(50), rel=1e-9)
    assert before


def test_same_generator_same_teleport_and_it_is_not_advanced():
    found = []
    for _ in range(2):
        made = problem("mlp")
        generator = torch.Generator().manual_seed(4)
        state = generator.get_state()
        rules = {"detector": Falling()}
        Teleporter(mtlcore.create("teleport", "random"), name="random", **rules).attempt(
            trunk=made.trunk,
            heads=None,
            closure=made.batch(0),
            probe=None,
            view=view(3),
            optimizer=None,
            generator=generator,
        )
        assert torch.equal(state, generator.get_state())
        found.append([bits(p) for p in made.trunk.parameters()])
        torch.rand(3)  # the global stream must not matter
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_contract_of_a_displacement():
    made = problem("mlp")

    @dataclass(frozen=True)
    class Says(TeleportStrategy):
        what: object = None

        def propose(self, problem, generator):
            return self.what

    for what, message in [
        ("far", "returned str"),
        (Displacement({"nobody": torch.zeros(1)}), "not a parameter of the trunk"),
        (Displacement({"0.weight": torch.zeros(1)}), "has \\(10, 6\\)"),
        (Displacement({"0.weight": torch.zeros(10, 6).numpy()}), "'0.weight' of the trunk as a ndarray"),
        (Displacement({"0.weight": torch.zeros(10, 6)}, maps={"0.weight": torch.ones(10)}), r"shape \(10,\), which"),
        (Displacement({}, head_parameters={"red.0.weight": torch.zeros(4, 5)}), "may only be reparametrised"),
    ]:
        with pytest.raises(PluginError, match=message):
            teleport(made, Says(what))


# --- what counts as the same loss ------------------------------------------------------------------------------------


def test_relative_changes_have_no_absolute_scale():
    before = {"a": torch.tensor(2e-9), "b": torch.tensor(1e-9)}
    after = {"a": torch.tensor(2e-9), "b": torch.tensor(1.1e-9)}
    assert relative_changes(before, after)["b"] == pytest.approx(0.1, rel=1e-5)


def test_a_loss_that_is_rounding_beside_the_others_does_not_veto():
    before = {"a": torch.tensor(1.0), "fitted": torch.tensor(1e-12)}
    after = {"a": torch.tensor(1.0), "fitted": torch.tensor(2e-12)}
    assert relative_changes(before, after)["fitted"] < 1e-4
    assert relative_changes(before, {**after, "fitted": torch.tensor(1e-3)})["fitted"] > 1.0


def test_all_losses_zero():
    zero = {"a": torch.tensor(0.0)}
    assert relative_changes(zero, zero) == {"a": 0.0}
    assert relative_changes(zero, {"a": torch.tensor(1e-30)})["a"] == float("inf")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_breaks_is_refused(bad):
    made = problem("mlp")
    inner = made.batch(0)
    start = bits(made.trunk[0].weight)

    def probe():
        losses, z = inner()
        moved = not torch.equal(made.trunk[0].weight, start)
        return {t: v * (bad if moved and t == "blue" else 1.0) for t, v in losses.items()}, z

    result = teleport(made, "lora", probe=probe)
    assert not result.accepted
    assert "blue" in result.reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["lora", "random"])
def test_a_loss_that_was_broken_before_the_jump_is_said_to_be(bad, name):
    made = problem("mlp")
    inner = made.batch(1)

    def probe():
        losses, z = inner()
        return {t: v * (bad if t == "blue" else 1.0) for t, v in losses.items()}, z

    result = teleport(made, name, probe=probe)
    assert not result.accepted
    assert result.reason == f"the loss of blue is {bad} before the teleport"


# --- tasks that are not everywhere ------------------------------------------------------------------------------------


def only(closure, *tasks):
    def part():
        losses, z = closure()
        return {t: losses[t] for t in tasks}, z

    return part


def test_a_task_that_the_probe_lacks_is_judged_on_the_batch_of_the_step():
    made = problem("mlp")
    inner = made.batch(0)

    def closure():  # blue alone reads what moves
        losses, z = inner()
        shift = made.trunk[3].weight.sum() - start
        return {**losses, "blue": losses["blue"] * (1.0 + shift)}, z

    start = made.trunk[3].weight.sum().detach()

    @dataclass(frozen=True)
    class Unnoticed(TeleportStrategy):
        improves = False

        def propose(self, problem, generator):
            return Displacement({"3.weight": problem.parameters()["3.weight"].detach() + 1e-6})

    probe = only(made.batch(1), "red", "green")
    result = teleport(made, Unnoticed(), closure=closure, probe=probe, tolerance=1e-5, trials=1)
    assert not result.accepted
    assert "the loss of blue on the own batch changes by" in result.reason
    assert set(result.relative_loss_change) == {"red", "green"}
    assert teleport(made, Unnoticed(), closure=closure, probe=probe, tolerance=0.1).accepted


@pytest.mark.parametrize("name", ["lora", "random"])
@pytest.mark.parametrize("probed", [("red", "green"), TASKS, None])
def test_a_task_that_nobody_sees_forbids_the_teleport(name, probed):
    made = problem("mlp")
    optimizer = made.optimizer(lr=1e-3)
    probe = None if probed is None else only(made.batch(1), *probed)
    mt = mtlcore.MultiTask(made.trunk, "ls", optimizer, detector=Falling(), teleport=name, tasks=TASKS, probe=probe)
    result = mt.step(only(made.batch(0), "red", "green")).teleport
    assert result.accepted == (probed == TASKS), result.reason
    if not result.accepted:
        assert "task blue is neither in this batch nor in the probe" in result.reason


def test_a_detector_of_rows_judges_a_teleport():
    seen = []

    class OfRows(ConflictDetector):
        needs = Needs.JACOBIAN

        def detect(self, view):
            torch.testing.assert_close(view.jacobian @ view.jacobian.T, view.gramian)
            seen.append(view.jacobian.shape)
            k = view.n_tasks
            return Conflict(True, -float(len(seen)), torch.zeros(k, k).bool(), torch.zeros(k).bool())

    made = problem("mlp")
    mt = mtlcore.MultiTask(made.trunk, "ls", made.optimizer(), detector=OfRows(), teleport="lora", probe=made.batch(1))
    assert mt.step(made.batch(0)).teleport.accepted
    assert seen == [(3, sum(p.numel() for p in made.trunk.parameters()))] * len(seen)
    assert len(seen) >= 3


def test_zero_steps_are_the_identity():
    for options in (
        {"steps": 0},
        {"gamma": 0.0},
        {"steps": 0, "search": "penalty"},
        {"gamma": 0.0, "search": "penalty"},
    ):
        made = problem("mlp")
        optimizer = made.optimizer()
        made.train(optimizer, 1)
        before = everything(made, optimizer)
        assert not teleport(made, "lora", options, optimizer=optimizer).accepted
        assert_unchanged(before, everything(made, optimizer))


# --- historical trajectory reuse ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nudge(TeleportStrategy):
    """Moves one weight a little along (or against) a direction."""

    by: float = 1e-4

    def propose(self, problem, generator):
        losses, _ = problem.evaluate()
        weight = problem.parameters()["3.weight"]
        (g,) = torch.autograd.grad(sum(losses.values()) / 3, [weight])
        other = torch.randn(g.shape, generator=torch.Generator().manual_seed(2), dtype=g.dtype)
        return Displacement({"3.weight": weight.detach() + self.by * (g / g.norm() + 0.5 * other / other.norm())})


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
def test_the_first_step_after_a_jump_has_the_papers_decay_rates(make):
    made = problem("mlp")
    made.trunk.eval()
    optimizer = made.optimizer(make)
    made.train(optimizer, 3)
    weight, other = made.trunk[3].weight, made.trunk[0].weight
    m, v, n = (bits(optimizer.state[weight][k]) for k in ("exp_avg", "exp_avg_sq", "step"))
    other_m = bits(optimizer.state[other]["exp_avg"])
    result = teleport(made, Nudge(), optimizer=optimizer, detector=Falling())
    assert result.accepted, result.reason
    sigma = result.diagnostics["sigma"]
    assert 0.5 < sigma < 1.0
    sum(made.batch(7)()[0].values()).backward()
    g, other_g = bits(weight.grad), bits(other.grad)
    optimizer.step()
    state = optimizer.state[weight]
    b1, b2 = 0.9 * sigma, 0.999 * sigma
    torch.testing.assert_close(state["exp_avg"], b1 * m + (1 - b1) * g, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(state["exp_avg_sq"], b2 * v + (1 - b2) * g * g, rtol=1e-12, atol=1e-15)
    assert state["step"] == n + 1
    torch.testing.assert_close(optimizer.state[other]["exp_avg"], 0.9 * other_m + 0.1 * other_g)
    m = bits(state["exp_avg"])
    optimizer.zero_grad()
    sum(made.batch(8)()[0].values()).backward()
    g = bits(weight.grad)
    optimizer.step()
    torch.testing.assert_close(state["exp_avg"], 0.9 * m + 0.1 * g), "ordinary again"


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.NAdam, {"decoupled_weight_decay": True}),
        (torch.optim.RAdam, {}),
        (torch.optim.RAdam, {"decoupled_weight_decay": True}),
        (torch.optim.Adamax, {}),
        (torch.optim.RMSprop, {"centered": True}),
    ],
)
def test_reuse_blends_with_what_the_optimizer_averages(make, options, maximize):
    """The step that the paper describes, taken by the optimizer itself with decay rates times sigma."""
    sigma, seeds = 0.6, torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(5, 6, generator=seeds, dtype=torch.float64)
    # Groups of their own: the options are looked up where the parameter is.
    pairs = []
    for _ in range(2):
        moved, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        groups = [{"params": [other]}, {"params": [moved], "weight_decay": 0.1, "maximize": maximize}]
        optimizer = make(groups, lr=1e-2, **options)
        for g in gradients[:3]:
            moved.grad, other.grad = g.clone(), g.clone()
            optimizer.step()
        pairs.append((optimizer, moved))
    (optimizer, moved), (paper, twin) = pairs
    reuse(optimizer, [moved], sigma)
    for group in paper.param_groups:
        if "alpha" in group:
            group["alpha"] *= sigma
        else:
            group["betas"] = tuple(sigma * beta for beta in group["betas"])
    for o, p in pairs:
        p.grad = gradients[3].clone()
        o.step()
    for key in ("exp_avg", "exp_avg_sq", "square_avg", "grad_avg"):
        if key in optimizer.state[moved]:
            torch.testing.assert_close(optimizer.state[moved][key], paper.state[twin][key], rtol=1e-12, atol=0)


def test_reuse_lives_with_other_hooks_and_further_jumps():
    made = problem("mlp")
    made.trunk.eval()
    optimizer = made.optimizer()
    made.train(optimizer, 3)
    weight = made.trunk[3].weight
    m = bits(optimizer.state[weight]["exp_avg"])
    sigmas, called = [], []
    for _ in range(2):
        result = teleport(made, Nudge(), optimizer=optimizer, detector=Falling())
        sigmas.append(result.diagnostics["sigma"])
        optimizer.register_step_pre_hook(lambda *a: called.append(1))
    sum(made.batch(7)()[0].values()).backward()
    optimizer.step()
    keep = 0.9 * sigmas[0] * sigmas[1]
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], keep * m + (1 - keep) * weight.grad)
    assert len(called) == 2


def test_a_jump_against_the_gradient_forgets():
    made = problem("mlp")
    optimizer = made.optimizer(amsgrad=True)
    made.train(optimizer, 3)
    result = teleport(made, Nudge(-1e-4), optimizer=optimizer, detector=Falling())
    assert result.accepted, result.reason
    assert result.diagnostics["sigma"] == 0.0
    state = optimizer.state[made.trunk[3].weight]
    assert all(not state[k].any() for k in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"))
    assert optimizer.state[made.trunk[0].weight]["step"] == 3
    turned = teleport(problem("mlp"), Nudge(-1e-4), optimizer=None, detector=Falling())
    assert turned.diagnostics["history"] == "kept"


def test_a_sum_of_squares_is_forgotten_down_to_where_it_starts():
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adagrad([p], initial_accumulator_value=0.5)
    start = bits(optimizer.state[p]["sum"])
    for sigma, expected in ((0.25, start + 0.25 * 4.0), (0.0, start)):
        optimizer.state[p]["sum"].copy_(start + 4.0)
        reuse(optimizer, [p], sigma)
        p.grad = torch.zeros(3)
        optimizer.step()
        assert torch.equal(optimizer.state[p]["sum"], expected)


def test_the_sign_is_an_option():
    made = problem("mlp")
    optimizer = made.optimizer()
    made.train(optimizer, 3)
    result = teleport(made, Nudge(-1e-4), optimizer=optimizer, detector=Falling(), reuse_sign=-1)
    assert result.diagnostics["sigma"] > 0.5


def test_similarity_is_a_cosine_over_all_that_moved():
    a, b = [torch.tensor([1.0, 0.0]), torch.tensor([2.0])], [torch.tensor([1.0, 5.0]), torch.tensor([-1.0])]
    expected = torch.nn.functional.cosine_similarity(torch.cat(a), torch.cat(b), dim=0)
    assert similarity(a, b) == pytest.approx(float(expected))
    assert similarity(a, b, -1) == -similarity(a, b)
    assert similarity([torch.zeros(2)], [torch.ones(2)]) == 0.0


def test_schedulers_go_on_working():
    made = problem("mlp")
    optimizer = made.optimizer()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    made.train(optimizer, 1)
    assert teleport(made, "lora", optimizer=optimizer, detector=Falling()).accepted
    weight = bits(made.trunk[0].weight)
    made.train(optimizer, 1)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.005
    assert not torch.equal(weight, made.trunk[0].weight), "the optimizer still holds the trunk's parameters"


def test_unknown_optimizers_are_named_and_can_be_reset():
    class Own(torch.optim.Optimizer):
        def __init__(self, parameters, lr):
            super().__init__(parameters, {"lr": lr})

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                self.state[p]["memory"] = p.grad

    made = problem("mlp")
    optimizer = made.optimizer(Own)
    made.train(optimizer, 1)
    with pytest.raises(TeleportError, match=r"Own.*history='reset'"):
        teleport(made, "lora", optimizer=optimizer)
    assert teleport(made, "lora", optimizer=optimizer, detector=Falling(), history="reset").accepted
    assert "memory" not in optimizer.state[made.trunk[0].weight]
    assert "memory" in optimizer.state[made.heads["red"][0].weight]


# --- brakes ---------------------------------------------------------------------------------------------------------


def allowed(brakes: Brakes, steps: int) -> list[int]:
    """The steps in which a detector that always cries conflict would teleport."""
    history: list[int] = []
    for step in range(steps):
        if brakes.allows(step, history):
            history.append(step)
    return history


def test_brakes():
    assert allowed(Brakes(), 4) == [0, 1, 2, 3]
    assert allowed(Brakes(start_step=2), 4) == [2, 3]
    assert allowed(Brakes(cap=2), 9) == [0, 1]
    assert allowed(Brakes(cap=1, steps_per_epoch=3, start_step=4), 10) == [4, 6, 9]
    assert allowed(Brakes(cooldown=3), 9) == [0, 3, 6]
    assert allowed(Brakes(cap=2, steps_per_epoch=5, cooldown=2), 10) == [0, 2, 5, 7]
    assert allowed(Brakes(cap=0), 3) == []
    with pytest.raises(ConfigurationError, match="steps_per_epoch"):
        Brakes(steps_per_epoch=0)


@pytest.mark.parametrize(
    ("option", "value"),
    [("tolerance", 0.0), ("history", "lose"), ("reuse_sign", 0), ("batch_norm", "off"), ("trials", 0)],
)
def test_options_are_checked(option, value):
    with pytest.raises(ConfigurationError, match=option):
        Teleporter(Vandal(), name="vandal", **{option: value})


def test_deepcopy_of_a_network_after_teleporting_is_ordinary():
    made = problem("conv")
    assert teleport(made, "lora", detector=Falling()).accepted
    again = copy.deepcopy(made.trunk)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), made.trunk.parameters()))
    assert set(again.state_dict()) == set(problem("conv").trunk.state_dict())
    assert set(TASKS) == set(made.losses(0))
