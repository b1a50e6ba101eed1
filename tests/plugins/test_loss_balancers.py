"""The classical loss balancers: each against its defining equation, differentiated or optimised independently."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore import Needs, StepView
from mtlcore.errors import ConfigurationError, LossError

NAMES = ["rlw", "si", "gls", "dwa", "uw", "imtl-l", "famo", "stch"]
LOGARITHMIC = ["si", "gls", "famo", "stch"]


def method(name: str, **options: Any) -> mtlcore.Aggregator:
    return mtlcore.create("aggregator", name, **options)


def draw(seed: int, n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def weights(o: mtlcore.Aggregator, losses: Tensor, **view: Any) -> Tensor:
    w = o.aggregate(StepView(losses=losses, **view), o.init(len(losses))).weights
    assert w is not None
    return w


def run(
    o: mtlcore.Aggregator, steps: int, batch: Any, n: int = 3, state: Any = None, first: int = 0
) -> tuple[Any, list[Tensor]]:
    """Steps with a second look; ``batch(step)`` gives the losses before and after."""
    state, all_weights = o.init(n) if state is None else state, []
    for step in range(first, steps):
        before, after = batch(step)
        answer = o.aggregate(StepView(losses=before, step=step, generator=step), state)
        state = answer.state
        if type(o).looks_twice():
            state = o.observe(StepView(losses=after, step=step, generator=step), state)
        all_weights.append(answer.weights)
    return state, all_weights


# --- what all share -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_needs_losses_only_and_gives_positive_finite_weights(name: str) -> None:
    o = method(name)
    assert o.needs == Needs.LOSSES
    assert "conic-combination" in o.claims
    for n, unit in itertools.product((1, 2, 40, 100), (1e-12, 1.0, 1e12)):
        _, found = run(o, 6, lambda step, n=n, unit=unit: (unit * draw(step, n), 0.9 * unit * draw(step + 9, n)), n)
        for w in found:
            assert w.shape == (n,)
            assert bool(torch.isfinite(w).all())
            assert bool((w >= 0).all())
            assert float(w.sum()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_uninterrupted_and_nothing_is_written_to(name: str, tmp_path: Any) -> None:
    options = {"dwa": {"window": 2}, "stch": {"warmup_steps": 2, "nadir_steps": 2}}.get(name, {})
    o = method(name, **options)
    batch = lambda step: (draw(step, 3), draw(step + 50, 3))
    before = torch.get_rng_state()
    _, straight = run(o, 9, batch)
    state, first = run(o, 4, batch)
    torch.save(state, tmp_path / "state.pt")
    copies = {k: v.clone() for k, v in state.items()}
    _, second = run(o, 9, batch, state=state, first=4)
    assert all(torch.equal(state[k], copies[k]) for k in copies)
    _, third = run(
        method(name, **options), 9, batch, state=torch.load(tmp_path / "state.pt", weights_only=True), first=4
    )
    for want, got, again in zip(straight, first + second, first + third):
        assert torch.equal(want, got)
        assert torch.equal(want, again)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "rlw"])
def test_order_of_tasks_does_not_matter(name: str) -> None:
    o = method(name, **{"dwa": {"window": 2}}.get(name, {}))
    assert "permutation-equivariant" in o.claims
    order = torch.tensor([2, 0, 3, 1])
    _, plain = run(o, 8, lambda step: (draw(step, 4), draw(step + 50, 4)), 4)
    _, shuffled = run(o, 8, lambda step: (draw(step, 4)[order], draw(step + 50, 4)[order]), 4)
    for a, b in zip(plain, shuffled):
        torch.testing.assert_close(a[order], b, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", LOGARITHMIC)
def test_units_turn_nothing(name: str) -> None:
    """Loss i in another unit a_i: w_i a_i is as before up to one common factor, so the direction is the same."""
    o = method(name)
    assert "loss-unit-invariant" in o.claims
    units = torch.tensor([1e-8, 1.0, 1e10], dtype=torch.float64)
    _, plain = run(o, 12, lambda step: (draw(step, 3), draw(step + 50, 3)))
    _, scaled = run(o, 12, lambda step: (units * draw(step, 3), units * draw(step + 50, 3)))
    for a, b in zip(plain, scaled):
        torch.testing.assert_close(b * units / (b * units).sum(), a / a.sum(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", [*LOGARITHMIC, "dwa"])
def test_negative_loss_is_named(name: str) -> None:
    o = method(name)
    view = StepView(losses=torch.tensor([1.0, -2.0]), task_names=["seg", "depth"])
    with pytest.raises(LossError, match=rf"'depth' \(-2\).*{name}"):
        o.aggregate(view, o.init(2))


@pytest.mark.parametrize("name", LOGARITHMIC)
def test_zero_loss_is_left_out_and_said_so(name: str) -> None:
    o = method(name)
    losses = torch.tensor([1.0, 0.0, 2.0])
    answer = o.aggregate(StepView(losses=losses), o.init(3))
    assert answer.weights[1] == 0
    assert "task1" in answer.diagnostics["left_out"]
    part = o.aggregate(StepView(losses=losses).restricted(losses > 0), o.init(3))
    assert torch.equal(answer.weights[[0, 2]], part.weights)
    nothing = o.aggregate(StepView(losses=torch.zeros(3)), answer.state)
    assert "left_out" in nothing.diagnostics
    if name == "famo":  # it promises weights on the simplex: the limit of equal losses that vanish
        assert float(nothing.weights.sum()) == pytest.approx(1.0)
        state = o.observe(StepView(losses=torch.tensor([0.9, 0.5, 0.0])), answer.state)
        assert bool(torch.isfinite(state["logits"]).all())
        assert o.observe(StepView(losses=losses), nothing.state) is nothing.state
    else:
        assert nothing.weights.tolist() == [0.0] * 3


@pytest.mark.parametrize("name", ["uw", "imtl-l", "famo", "dwa", "stch"])
def test_state_of_absent_tasks_stays(name: str) -> None:
    o = method(name, **({"gamma": 0.1} if name == "famo" else {}))
    state, _ = run(o, 3, lambda step: (draw(step, 3), draw(step + 50, 3)))
    here = torch.tensor([True, False, True])
    answer = o.aggregate(StepView(losses=draw(7, 3), step=0 if name == "stch" else 3).restricted(here), state)
    after = answer.state
    if name == "famo":
        after = o.observe(StepView(losses=draw(8, 3), step=3).restricted(here), after)
    assert answer.weights.shape == (2,)
    changed = 0
    for key, value in state.items():
        if value.ndim and key != "before":
            assert torch.equal(after[key][..., 1], value[..., 1]), key
            changed += int(bool((after[key] != value).any()))
    assert changed


# --- one by one ---------------------------------------------------------------------------------------------


def test_rlw_is_a_softmax_of_normal_noise_with_mean_one_over_k() -> None:
    o = method("rlw")
    found = torch.stack([weights(o, torch.ones(3), generator=seed) for seed in range(4000)])
    torch.testing.assert_close(found.sum(1), torch.ones(4000, dtype=torch.float64))
    torch.testing.assert_close(found.mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.012)
    # log w_i - log w_j = z_i - z_j is normal with variance 2.
    difference = found[:, 0].log() - found[:, 1].log()
    assert abs(float(difference.var()) - 2.0) < 0.15
    assert len(set(found[:, 0].tolist())) == 4000
    torch.testing.assert_close(weights(method("rlw", total="n-tasks"), torch.ones(3), generator=3), 3 * found[3])
    assert "simplex-weights" not in method("rlw", total="n-tasks").claims


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("si", lambda losses: losses.log().sum()),
        ("gls", lambda losses: losses.prod() ** (1 / len(losses))),
        ("uw", lambda losses: (torch.exp(-torch.zeros(4)) * losses).sum() / 2),
        ("imtl-l", lambda losses: losses.sum()),
    ],
)
def test_weights_are_the_gradient_of_the_objective(name: str, objective: Any) -> None:
    losses = draw(1, 4).requires_grad_()
    expected = torch.autograd.grad(objective(losses), losses)[0]
    torch.testing.assert_close(weights(method(name), losses.detach()), expected)


def test_gls_of_many_tiny_losses_does_not_underflow() -> None:
    losses = torch.full((100,), 1e-12, dtype=torch.float64)
    torch.testing.assert_close(weights(method("gls"), losses), torch.full((100,), 0.01, dtype=torch.float64))


@pytest.mark.parametrize(("name", "factor"), [("uw", 0.5), ("imtl-l", 1.0)])
def test_learned_scales_settle_where_their_optimum_is(name: str, factor: float) -> None:
    """UW: exp(s_i) = L_i, w_i = 1 / (2 L_i). IMTL-L: exp(s_i) L_i = 1, w_i = 1 / L_i."""
    losses = torch.tensor([0.05, 1.0, 30.0], dtype=torch.float64)
    _, found = run(method(name), 2500, lambda step: (losses, losses))
    torch.testing.assert_close(found[-1] * losses, torch.full((3,), factor, dtype=torch.float64), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["uw", "imtl-l"])
def test_learned_scales_take_the_steps_of_torch_adam_on_their_objective(name: str) -> None:
    s = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam = torch.optim.Adam([s], lr=0.025)
    batch = lambda step: (draw(step, 3), draw(step, 3))
    o = method(name)
    state, _ = run(o, 15, batch)
    for step in range(15):
        losses = batch(step)[0]
        objective = (torch.exp(-s) * losses + s).sum() / 2 if name == "uw" else (torch.exp(s) * losses - s).sum()
        adam.zero_grad()
        objective.backward()
        adam.step()
    torch.testing.assert_close(state["log_variance" if name == "uw" else "log_scale"], s.data)


def test_uw_starts_where_it_is_told() -> None:
    torch.testing.assert_close(
        weights(method("uw", start=-0.5), torch.ones(2)), 0.5 * torch.exp(torch.tensor([0.5, 0.5]).double())
    )


def test_dwa_compares_the_last_two_windows() -> None:
    o = method("dwa", window=3, temperature=2.0)
    batch = lambda step: (draw(step, 4), draw(step, 4))
    _, found = run(o, 12, batch, 4)
    for w in found[:6]:
        torch.testing.assert_close(w, torch.ones(4, dtype=torch.float64))
    means = [torch.stack([batch(3 * i + j)[0] for j in range(3)]).mean(0) for i in range(4)]
    for step in range(6, 12):
        i = step // 3
        expected = 4 * torch.softmax(means[i - 1] / means[i - 2] / 2.0, 0)
        torch.testing.assert_close(found[step], expected)


def test_dwa_favours_the_task_that_falls_slower_and_forgets_units() -> None:
    fast = lambda step: torch.tensor([0.5**step, 0.9**step], dtype=torch.float64)
    o = method("dwa", window=1)
    _, found = run(o, 4, lambda step: (fast(step), fast(step)), 2)
    assert float(found[-1][1]) > float(found[-1][0])
    units = torch.tensor([1e6, 1e-6])
    _, scaled = run(o, 4, lambda step: (fast(step) * units, fast(step)), 2)
    torch.testing.assert_close(scaled[-1], found[-1])


def test_dwa_of_a_task_that_missed_a_window() -> None:
    o = method("dwa", window=1)
    state = o.init(2)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    for step, here in enumerate([both, first, both, both]):
        answer = o.aggregate(StepView(losses=torch.tensor([2.0**-step, 3.0]), step=step).restricted(here), state)
        state = answer.state
    # Task 1's last two windows are steps 0 and 2, with equal losses: ratio 1.
    torch.testing.assert_close(answer.diagnostics["ratio"], torch.tensor([0.5, 1.0], dtype=torch.float64))


def test_dwa_of_a_ratio_beyond_the_floats() -> None:
    o = method("dwa", window=1)
    fall = [[1e-200, 1.0], [1e200, 1.0], [1.0, 1.0]]
    _, found = run(o, 3, lambda step: (torch.tensor(fall[step], dtype=torch.float64), None), 2)
    assert found[2].tolist() == [2.0, 0.0]


def test_dwa_keeps_what_it_knows_of_a_task_that_misses_later_windows() -> None:
    """As documented: the windows of a task are those in which it was met."""
    o = method("dwa", window=1)
    state = o.init(2)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    ratios = []
    for step, here in enumerate([both, both, both, first, both, both]):
        losses = torch.tensor([1.0, 0.5**step], dtype=torch.float64)
        answer = o.aggregate(StepView(losses=losses, step=step).restricted(here), state)
        state = answer.state
        ratios.append(answer.diagnostics["ratio"].tolist())
    # Steps 2 and 4 are its last two at step 5.
    assert [r[-1] for r in ratios] == [1.0, 1.0, 0.5, 1.0, 0.5, 0.25]


def test_famo_follows_its_published_update() -> None:
    """Weights: the gradient of sum z log L / c. Logits: Adam on the softmax Jacobian applied to the fall of log L."""
    o = method("famo", gamma=0.01)
    u = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam = torch.optim.Adam([u], lr=0.025, weight_decay=0.01)
    batch = lambda step: (draw(step, 3), draw(step + 50, 3))
    state, found = run(o, 10, batch)
    for step in range(10):
        before, after = batch(step)
        losses = before.clone().requires_grad_()
        z = torch.softmax(u, -1)
        c = (z / losses).sum().detach()
        expected = torch.autograd.grad((losses.log() * z.detach() / c).sum(), losses)[0]
        torch.testing.assert_close(found[step], expected)
        delta = before.log() - after.log()
        with torch.enable_grad():
            gradient = torch.autograd.grad(torch.softmax(u, -1), u, grad_outputs=delta)[0]
        adam.zero_grad()
        u.grad = gradient
        adam.step()
    torch.testing.assert_close(state["logits"], u.data)


def test_famo_lowers_the_weight_of_the_task_that_improved_most_and_ignores_equal_improvement() -> None:
    o = method("famo", gamma=0.0)
    before = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    state = o.aggregate(StepView(losses=before), o.init(3)).state
    uneven = o.observe(StepView(losses=before * torch.tensor([0.5, 0.9, 0.9])), state)
    assert uneven["logits"].argmin() == 0
    even = o.observe(StepView(losses=before * 0.5), state)
    assert float(even["logits"].abs().max()) < 1e-6
    assert type(o).looks_twice()


def test_stch_log_form_is_the_gradient_of_its_smooth_maximum() -> None:
    mu = 0.4
    o = method("stch", mu=mu, warmup_steps=2, nadir_steps=3)
    batch = lambda step: (draw(step, 4), draw(step, 4))
    _, found = run(o, 8, batch, 4)
    for step in range(5):
        torch.testing.assert_close(found[step], 1 / batch(step)[0])
    nadir = torch.stack([batch(step)[0] for step in (2, 3, 4)]).mean(0)
    for step in range(5, 8):
        losses = batch(step)[0].clone().requires_grad_()
        value = 4 * mu * torch.logsumexp(torch.log(losses / nadir) / mu, 0)
        torch.testing.assert_close(found[step], torch.autograd.grad(value, losses)[0])
        torch.testing.assert_close((found[step] * losses.detach()).sum(), torch.tensor(4.0, dtype=torch.float64))


def test_stch_plain_form_is_the_gradient_of_the_papers_function() -> None:
    preferences, ideal = (0.2, 0.5, 0.3), (0.0, 0.1, -1.0)
    o = method("stch", form="plain", mu=0.3, preferences=preferences, ideal=ideal)
    losses = draw(3, 3).requires_grad_()
    value = 0.3 * torch.logsumexp(torch.tensor(preferences) * (losses - torch.tensor(ideal)) / 0.3, 0)
    expected = torch.autograd.grad(value, losses)[0]
    torch.testing.assert_close(weights(o, losses.detach()), expected, rtol=1e-6, atol=0)
    assert bool(torch.isfinite(weights(o, torch.tensor([-3.0, 0.0, 1.0]))).all())
    part = StepView(losses=losses.detach()).restricted(torch.tensor([False, True, True]))
    assert o.aggregate(part, o.init(3)).weights.shape == (2,)
    assert "permutation-equivariant" not in o.claims


@pytest.mark.parametrize("option", ["preferences", "ideal"])
def test_stch_log_form_refuses_what_only_the_plain_form_reads(option) -> None:
    """They used to be taken in silence."""
    with pytest.raises(ConfigurationError, match=f"stch: {option} has no place in form='log', only in form='plain'"):
        method("stch", **{option: (0.5, 0.5)})
    assert "preferences-belong-to-tasks" not in method("stch").claims


def test_stch_smoothing_goes_from_the_maximum_to_equal_shares() -> None:
    losses = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    sharp = weights(method("stch", form="plain", mu=1e-3), losses)
    torch.testing.assert_close(sharp, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(weights(method("stch", form="plain", mu=1e9), losses), torch.full((3,), 1 / 3).double())
    with pytest.raises(ConfigurationError, match=r"preferences must be .* each in \(0, inf\)"):
        method("stch", form="plain", preferences=(0.0, 0.0))
    with pytest.raises(ConfigurationError, match="preferences has 2 entries for 3 tasks"):
        method("stch", form="plain", preferences=(1.0, 1.0)).init(3)


def test_stch_nadir_of_a_task_that_was_absent_is_its_first_loss() -> None:
    o = method("stch")
    state = o.aggregate(
        StepView(losses=torch.tensor([2.0, 9.0])).restricted(torch.tensor([True, False])), o.init(2)
    ).state
    answer = o.aggregate(StepView(losses=torch.tensor([2.0, 5.0]), step=1), state)
    assert answer.diagnostics["x"].tolist() == [0.0, 0.0]
    assert answer.state["nadir_sum"].tolist() == [2.0, 5.0]
