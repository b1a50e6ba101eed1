"""The protocol: pairing of seeds, delta-m, selection on validation, and looking without touching."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from mtlbench import protocol
from mtlbench.protocol import conflict, cost, log, plan, randomness, selection, training
from mtlbench.suite import MethodEntry
from mtlbench.tasks.base import Metric, Network

METRICS = (Metric("a", "accuracy", True, "%"), Metric("b", "error", False))


def test_delta_m_follows_the_direction_of_each_metric():
    base = {"a/accuracy": 80.0, "b/error": 0.5}
    # 10 % less accuracy and 10 % more error are both 10 % worse.
    assert protocol.delta_m({"a/accuracy": 72.0, "b/error": 0.55}, base, METRICS) == pytest.approx(10.0)
    assert protocol.delta_m({"a/accuracy": 88.0, "b/error": 0.5}, base, METRICS) == pytest.approx(-5.0)
    assert protocol.delta_m(base, base, METRICS) == 0.0


def test_delta_m_does_not_invent_a_value():
    assert protocol.delta_m({"a/accuracy": 1.0, "b/error": 1.0}, {"a/accuracy": 0.0, "b/error": 1.0}, METRICS) is None
    assert protocol.delta_m({"a/accuracy": 1.0}, {"a/accuracy": 1.0, "b/error": 1.0}, METRICS) is None
    beside = (*METRICS, Metric("a", "calibration error", False, "%", judged=False))  # counts as little as if absent
    ours, alone = {"a/accuracy": 72.0, "b/error": 0.55}, {"a/accuracy": 80.0, "b/error": 0.5}
    assert protocol.delta_m(ours, alone, beside) == protocol.delta_m(ours, alone, METRICS)
    fine = {"a/accuracy": 1.0, "b/error": 1.0}
    for bad in (math.nan, math.inf):
        assert protocol.delta_m({**fine, "b/error": bad}, fine, METRICS) is None
        assert protocol.delta_m(fine, {**fine, "b/error": bad}, METRICS) is None


def _train(tiny, method="tiny-equal", seed=0, **options):
    entry = MethodEntry(name=method, aggregator=method, **options)
    task = tiny.Tiny()
    base = {"a/MAE": 1.0, "b/MAE": 1.0}
    return protocol.train("tiny", task, entry, seed, task.budget, base)


def test_runs_are_reproducible_and_seeds_differ(tiny):
    one, again, other = _train(tiny), _train(tiny), _train(tiny, seed=1)
    assert one.metrics == again.metrics
    assert one.curves["loss"] == again.curves["loss"]
    assert one.metrics != other.metrics


def test_the_callers_random_state_is_left_alone(tiny):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    _train(tiny)
    assert torch.equal(before, torch.random.get_rng_state())


def test_methods_start_from_the_same_weights_and_see_the_same_batches(tiny):
    # Equal and Slow are the same mathematics under different names: identical runs mean nothing depends on the name.
    one, two = _train(tiny, "tiny-equal"), _train(tiny, "tiny-slow")
    assert one.metrics == two.metrics
    assert one.curves["conflict"] == two.curves["conflict"]
    # Two truly different methods still share the first loss (weights, batch, dropout mask).
    ls = _train(tiny, "mgda")
    first = {k: v[0] for k, v in ls.curves["loss"]["by_task"].items()}
    assert first == {k: v[0] for k, v in one.curves["loss"]["by_task"].items()}
    assert ls.metrics != one.metrics


def test_seed_axes_are_independent_of_one_another():
    drawn = {
        randomness.seed_for(axis, task, s) for axis in ("weights", "order") for task in ("x", "y") for s in (0, 1, -1)
    }
    assert len(drawn) == 12


def test_single_task_networks_start_from_the_weights_of_the_joint_network(tiny):
    with randomness.own_randomness(3):
        joint = Network(tiny.Tiny())
    with randomness.own_randomness(3):
        alone = Network(tiny.Tiny(), only="b")
    for name, value in alone.state_dict().items():
        assert torch.equal(value, joint.state_dict()[name])
    assert not any(name.startswith("heads.a") for name in alone.state_dict())


def test_looking_changes_nothing(tiny, monkeypatch):
    """Conflict probes and the twin for timing must not influence training."""
    watched = _train(tiny)
    monkeypatch.setattr(conflict.ConflictProbe, "look", lambda self, network, step: None)
    monkeypatch.setattr(cost.PlainTwin, "step", lambda self, inputs, targets: 1.0)
    assert _train(tiny).metrics == watched.metrics


def test_the_test_part_is_evaluated_once_and_at_the_checkpoint_that_validation_chose(tiny, monkeypatch):
    task = tiny.Tiny()
    splits = task.load()
    looked = []
    real = training.evaluate

    def spy(task, network, split, *rest):
        part = next(n for n in ("train", "validation", "test") if getattr(splits, n).sources is split.sources)
        looked.append(part)
        return real(task, network, split, *rest)

    monkeypatch.setattr(tiny.Tiny, "load", lambda self: splits)
    for module in (training, plan):
        monkeypatch.setattr(module, "evaluate", spy)
    outcome = _train(tiny)
    assert looked == ["validation"] * 4 + ["test"]
    scores = {p["step"]: p["score"] for p in outcome.curves["validation"]}
    assert outcome.selected_step == min(scores, key=scores.get)


def test_selection_keeps_the_best_checkpoint_even_if_training_gets_worse(tiny):
    task = tiny.Tiny()
    with randomness.own_randomness(0):
        network = Network(task)
    best = selection.Best(lambda metrics: metrics["score"])
    best.look(0, {"score": 2.0}, network)
    best.look(1, {"score": 1.0}, network)
    kept = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    best.look(2, {"score": 3.0}, network)
    best.test(network, lambda network: {})
    assert best.step == 2
    assert all(torch.equal(v, kept[k]) for k, v in network.state_dict().items())


def test_a_single_task_checkpoint_does_not_depend_on_units():
    def chosen(unit):
        score = selection.OwnScore((Metric("a", "error", False, unit), Metric("a", "accuracy", True, "%")))
        scale = {"m": 1.0, "mm": 1000.0}[unit]
        looks = [(0.0, 0.0), (2.0, 60.0), (1.6, 52.0), (1.2, 45.0)]
        return [score({"a/error": scale * e, "a/accuracy": a}) for e, a in looks]

    assert chosen("m") == pytest.approx(chosen("mm"), nan_ok=True)
    assert chosen("m") == [None, 0.0, pytest.approx(-10 / 3), pytest.approx(-7.5)]


@pytest.mark.parametrize("single", [True, False])
def test_a_metric_that_is_undefined_at_first_does_not_fix_the_checkpoint(tiny, single):
    """A correlation is, while a network predicts a constant."""

    class Undefined(tiny.Tiny):
        looks = 0

        def score(self, task, tally):
            Undefined.looks += 1
            return {"MAE": float("nan")} if Undefined.looks <= 2 else super().score(task, tally)

    if single:
        found = protocol.train_single_tasks("tiny", Undefined(), 0, Undefined().budget)
    else:
        against = dict.fromkeys((m.key for m in Undefined().metrics), 1.0)
        method = MethodEntry(name="tiny-equal")
        found = protocol.train("tiny", Undefined(), method, 0, Undefined().budget, against)
    assert found.selected_step > 5  # the first look is after the fifth step
    assert all(math.isfinite(v) for v in found.validation.values())


def test_conflict_probe_measures_the_cosine_of_the_task_gradients(tiny):
    task = tiny.Tiny()
    with randomness.own_randomness(0):
        network = Network(task)
    probe = conflict.ConflictProbe("tiny", task, task.load().train, 0, 8)
    probe.look(network, 0)
    network.eval()
    rows = []
    for name in task.tasks:  # one big batch has the mean gradient of the probe's batches
        network.zero_grad()
        inputs = torch.cat([b[0] for b in probe._batches])
        target = torch.cat([b[1][name] for b in probe._batches])
        task.loss(name, network(inputs)[0][name], target).backward()
        rows.append(torch.cat([p.grad.flatten() for p in network.trunk.parameters()]))
    expected = torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0)
    assert probe.seen[0]["min_cosine"] == pytest.approx(float(expected), abs=1e-5)
    norms = sorted(float(r.norm()) for r in rows)
    assert probe.seen[0]["norm_ratio"] == pytest.approx(norms[1] / norms[0], rel=1e-4)
    likeness = 2 * norms[0] * norms[1] / (norms[0] ** 2 + norms[1] ** 2)
    assert probe.seen[0]["magnitude_similarity"] == pytest.approx(likeness, rel=1e-4)
    sizes = torch.linalg.svdvals(torch.stack(rows))
    assert probe.seen[0]["condition"] == pytest.approx(float(sizes[0] / sizes[1]), rel=1e-3)


def test_cost_is_the_median_and_spreads_teleports_over_all_steps():
    clock = cost.Clock(None, set())
    clock.calm, clock.calm_cpu, clock.pairs = [1.0, 1.0, 9.0], [1.0, 1.0, 90.0], [(4.0, 2.0), (4.0, 2.0)]
    clock.teleport_wall, clock.teleport_cpu = 5.0, [5.0, 7.0]  # two steps that took 10 beyond two ordinary ones
    per_step, ratio = clock.cost(steps=10)
    assert per_step == 1.5
    assert ratio == 2.5


def test_a_run_without_an_ordinary_step_has_no_cost():
    """It said 0.00 ms a step."""
    clock = cost.Clock(None, {0})
    clock.teleport_wall, clock.teleport_cpu = 5.0, [5.0]
    assert clock.cost(steps=1) == (None, None)


def test_paired_steps_take_turns_in_going_first():
    order = []
    plain = SimpleNamespace(step=lambda inputs, targets: order.append("plain") or 1.0)
    clock = cost.Clock(plain, {1, 2, 4})
    report = SimpleNamespace(teleport=None)
    for step in range(5):
        clock.time(step, (None, None), lambda: order.append("method") or report)
    assert order == ["method", "plain", "method", "method", "plain", "method", "plain", "method"]
    assert len(clock.pairs) == 3
    assert len(clock.calm) == 4  # the first step is not counted


def test_loss_curves_are_means_of_all_steps():
    thin = log.thinned([[float(i)] for i in range(1000)], ("a",))
    assert len(thin["step"]) == log.CURVE_POINTS
    assert thin["step"][-1] == 1000
    assert sum(thin["by_task"]["a"]) / log.CURVE_POINTS == pytest.approx(499.5, rel=0.01)


def test_a_trial_trains_the_same_way_and_never_looks_at_the_test_part(tiny, monkeypatch):
    task, looked = tiny.Tiny(), []
    real = training.evaluate
    for module in (training, plan):
        monkeypatch.setattr(
            module, "evaluate", lambda t, n, split: looked.append(int(split.sources[0])) or real(t, n, split)
        )
    base = {m.key: 1.0 for m in task.metrics}
    arguments = ("tiny", task, MethodEntry(name="tiny-equal"), 0, task.budget, base)
    whole = protocol.train(*arguments)
    assert 200 in looked  # the test part begins with source 200
    looked.clear()
    trial = protocol.train(*arguments, trial=True)
    singles = protocol.train_single_tasks("tiny", task, 0, task.budget, trial=True)
    assert set(looked) == {100}
    assert (trial.metrics, singles.metrics) == ({}, {})
    assert trial.validation == whole.validation
    assert trial.curves["loss"] == whole.curves["loss"]
    assert trial.ratio_to_sum is None


def test_multimnist_is_learnt():
    """The real digits, a tenth of the demo's training: far above the 10 % of guessing."""
    import mtlcore

    task = mtlcore.create("task", "multimnist")
    budget = dataclasses.replace(task.budget, steps=60, evaluations=1)
    base = {m.key: 100.0 for m in task.metrics}
    entry = MethodEntry(name="sum", aggregator="sum")
    outcome = protocol.train("multimnist", task, entry, 0, budget, base)
    assert min(outcome.metrics[m.key] for m in task.metrics if m.judged) > 60.0
    assert outcome.ratio_to_sum is not None
    assert -1.0 <= outcome.conflict["min_cosine"] <= 1.0
