"""Budgets: any optimizer, schedule, precision and selection; protocols of the literature; devices; time limits."""

from __future__ import annotations

import contextlib
import dataclasses
import time

import pytest
import torch

from mtlbench import devices, jobs, protocol, protocols, records, runner
from mtlbench.protocol import optimizer, plan, precision, selection, training
from mtlbench.suite import MethodEntry, Suite
from mtlbench.tasks.base import Budget, LazySplit, MultiSplit, Network, Split, joined
from mtlcore import hookimpl
from mtlcore.errors import ConfigurationError
from mtlcore.registry import registry

BASE = Budget(steps=12, batch_size=8, learning_rate=1e-2, evaluations=2)
AGAINST = {"a/MAE": 1.0, "b/MAE": 1.0}


@contextlib.contextmanager
def registered(name, task):
    """A second task, for one test."""

    class Plugin:
        @hookimpl
        def mtlcore_register_tasks(self, register):
            register(name, task)

    plugin = Plugin()
    registry().add(plugin, name)
    try:
        yield
    finally:
        registry().remove(plugin)


def _train(tiny, **changes):
    budget = dataclasses.replace(BASE, **changes)
    return protocol.train("tiny", tiny.Tiny(), MethodEntry(name="tiny-equal"), 0, budget, AGAINST)


def test_any_optimizer_of_torch_with_its_options_and_two_rates(tiny):
    network = Network(tiny.Tiny())
    budget = dataclasses.replace(
        BASE, optimizer="SGD", optimizer_options={"momentum": 0.9}, weight_decay=0.1, head_learning_rate=1e-3
    )
    made = optimizer.optimizer_of(network, budget)
    assert isinstance(made, torch.optim.SGD)
    assert [g["lr"] for g in made.param_groups] == [1e-2, 1e-3]
    assert all((g["momentum"], g["weight_decay"]) == (0.9, 0.1) for g in made.param_groups)
    betas = optimizer.optimizer_of(network, dataclasses.replace(BASE, optimizer_options={"betas": [0.5, 0.9]}))
    assert betas.param_groups[0]["betas"] == (0.5, 0.9)
    assert budget.at_rate(3e-2).head_learning_rate == pytest.approx(3e-3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"optimizer": "Adm"}, "no optimizer 'Adm' in torch. Did you mean 'Adam'"),
        ({"optimizer": "Optimizer"}, "no optimizer 'Optimizer'"),
        ({"optimizer": "LBFGS"}, "several times a step"),
        ({"optimizer_options": {"beta": 1}}, "Adam cannot be made with"),
        ({"optimizer": "adamw"}, "no optimizer 'adamw' in torch. Did you mean 'AdamW'"),
        ({"schedule": "cosin"}, "no schedule 'cosin' in torch. Did you mean 'cosine'"),
        ({"schedule": "StepLR"}, "StepLR cannot be made with"),
    ],
)
def test_what_torch_does_not_have_is_named(tiny, changes, complaint):
    budget = dataclasses.replace(BASE, **changes)
    with pytest.raises(ConfigurationError, match=complaint):
        optimizer.Schedule(optimizer.optimizer_of(Network(tiny.Tiny()), budget), budget, 3)


@pytest.mark.parametrize("wrong", [{"optimizer": "Adm"}, {"schedule": "StepLR"}, {"optimizer_options": {"beta": 1}}])
def test_a_budget_that_cannot_be_made_is_refused_before_anything_is_trained(tiny, tmp_path, wrong):
    """Also one of the last task: the first ones may take hours."""
    suite = tiny.suite("tiny-equal", tasks=["tiny", {"name": "tiny-2", "budget": wrong}])
    with registered("tiny-2", tiny.Tiny), pytest.raises(ConfigurationError, match=r"no optimizer|cannot be made with"):
        runner.run(suite, tmp_path, certify=False, console=tiny.quiet())
    assert not (tmp_path / "records.jsonl").exists()


_NEWER = [name for name in ("Muon",) if hasattr(torch.optim, name)]  # takes matrices only


@pytest.mark.parametrize("name", ["SGD", "Adafactor", "ASGD", "Rprop", *_NEWER])
def test_the_check_of_a_budget_refuses_no_optimizer_that_can_be_made(name):
    optimizer.check(dataclasses.replace(BASE, optimizer=name, head_learning_rate=1e-3))


def _rates(tiny, looks=(), **changes):
    budget = dataclasses.replace(BASE, **changes)
    made = optimizer.optimizer_of(Network(tiny.Tiny()), budget)
    schedule, seen = optimizer.Schedule(made, budget, steps_per_epoch=4), []
    for step in range(budget.steps):
        seen.append(made.param_groups[0]["lr"])
        made.step()
        schedule.after_step(step)
        if step in looks:
            schedule.after_look(1.0)
    return seen


def test_schedules(tiny):
    cosine = _rates(tiny)
    assert cosine[0] == 1e-2
    assert cosine == sorted(cosine, reverse=True)
    assert set(_rates(tiny, schedule="constant")) == {1e-2}
    halved = _rates(tiny, schedule="StepLR", schedule_options={"step_size": 1, "gamma": 0.5})
    assert halved == pytest.approx([1e-2] * 4 + [5e-3] * 4 + [2.5e-3] * 4)
    plateau = _rates(tiny, schedule="ReduceLROnPlateau", schedule_options={"factor": 0.1, "patience": 0}, looks={3, 7})
    assert plateau == pytest.approx([1e-2] * 8 + [1e-3] * 4)


def test_epochs_are_passes_through_the_training_part():
    budget = Budget(steps=1, batch_size=8, learning_rate=1.0, epochs=2.5)
    assert budget.resolved(50).steps == 15  # six batches of eight in fifty
    assert "steps" not in budget.differences()
    merged = runner.merged_budget(budget, runner.BudgetChanges(steps=7))
    assert (merged.steps, merged.epochs) == (7, None)


def test_the_hash_of_a_default_budget_has_no_new_fields():
    """Records of before these fields existed stay what they are."""
    assert BASE.differences() == {"steps": 12, "batch_size": 8, "learning_rate": 1e-2, "evaluations": 2}
    assert dataclasses.replace(BASE, precision="bf16").differences()["precision"] == "bf16"


def test_the_last_checkpoint_and_the_mean_of_the_last_epochs(tiny, monkeypatch):
    values = iter(range(100))
    monkeypatch.setattr(training, "evaluate", lambda task, network, split: {"a/MAE": float(next(values)), "b/MAE": 1.0})
    last = _train(tiny, selection="last")
    assert (last.selected_step, last.metrics["a/MAE"]) == (12, 0.0)
    mean = _train(tiny, selection="mean-of-last-epochs", last_epochs=2)  # an epoch has six steps
    assert mean.metrics["a/MAE"] == pytest.approx((1 + 2) / 2)
    assert mean.selected_step == 12


def test_a_protocol_without_a_validation_part_trains_on_it_but_no_trial_does(tiny, monkeypatch):
    sizes = []
    real = plan.batches
    monkeypatch.setattr(plan, "batches", lambda n, *rest: sizes.append(n) or real(n, *rest))
    budget = dataclasses.replace(BASE, selection="mean-of-last-epochs", train_on_validation=True)
    arguments = ("tiny", tiny.Tiny(), MethodEntry(name="tiny-equal"), 0, budget, AGAINST)
    whole = protocol.train(*arguments)
    assert (set(sizes), whole.validation) == ({96}, {})
    sizes.clear()
    trial = protocol.train(*arguments, trial=True)
    assert (set(sizes), trial.metrics) == ({48}, {})
    assert set(trial.validation) == {"a/MAE", "b/MAE"}
    with pytest.raises(ConfigurationError, match="leaves nothing to select by"):
        dataclasses.replace(BASE, train_on_validation=True)


def test_parts_are_joined_whatever_they_are():
    def split(first):
        x = torch.arange(first, first + 3.0)
        return Split(x, {"a": x}, x.long().numpy())

    def lazy(first):
        return LazySplit(torch.empty(0), {}, split(first).sources, read=lambda i: (torch.tensor(first + i), {}))

    assert joined(split(0), split(3)).batch(torch.tensor([4]))[0].tolist() == [4.0]
    assert joined(lazy(0), lazy(10)).batch(torch.tensor([2, 3]))[0].tolist() == [2, 10]
    multi = joined(MultiSplit.of({"a": split(0)}), MultiSplit.of({"a": split(3)}))
    assert multi.batch(torch.tensor([7]))[0]["a"].tolist() == [1.0]
    assert [len(x["a"]) for x, _ in multi.chunks(4)] == [4, 2]


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_half_precision_trains_close_to_float32(tiny, kind):
    budget = dataclasses.replace(BASE, precision=kind)
    whole = protocol.train_single_tasks("tiny", tiny.Tiny(), 0, BASE)
    half = protocol.train_single_tasks("tiny", tiny.Tiny(), 0, budget)
    assert half.metrics != whole.metrics
    assert half.metrics == pytest.approx(whole.metrics, rel=0.05)
    if kind == "bf16":
        assert _train(tiny, precision=kind).metrics == pytest.approx(_train(tiny).metrics, rel=0.05)
    else:
        assert isinstance(precision.scaler_of(budget, devices.Device()), torch.amp.GradScaler)


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_a_protocol_says_where_from_and_makes_valid_budgets(name):
    followed = protocols.PROTOCOLS[name]
    assert followed.source.startswith("[")
    assert (name == "validation") == (not followed.budgets)
    for changes in followed.budgets.values():
        budget = runner.merged_budget(BASE, changes)
        assert budget.differences()


def test_a_protocol_that_says_nothing_of_a_task_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigurationError, match="protocol 'nash-mtl' has no rules for task 'tiny', only for nyuv2"):
        runner.run(tiny.suite("tiny-equal", protocol="nash-mtl"), tmp_path, certify=False, console=tiny.quiet())
    with pytest.raises(ValueError, match="no protocol 'nash'. Did you mean 'nash-mtl'"):
        tiny.suite("tiny-equal", protocol="nash")
    celeba_first = tiny.suite("tiny-equal", protocol="nash-mtl", tasks=["celeba", "tiny"])
    with pytest.raises(ConfigurationError, match="has no rules for task 'tiny'"):  # before celeba is looked for
        runner.run(celeba_first, tmp_path, certify=False, console=tiny.quiet())
    assert protocols.budget_for("ldc-mtl", "cityscapes").learning_rate == 3e-4


def test_the_mean_of_a_protocol_needs_looks_at_the_ends_of_epochs():
    found = selection.LastEpochs(lambda metrics: None, lambda network: {"m": 4.0})
    found.end_of_epoch({"m": 1.0}, None)
    found.end_of_epoch({"m": 3.0}, None)
    assert (found.metrics, found.test(None, lambda network: {"m": 9.0})) == ({"m": 2.0}, {"m": 4.0})


# --- devices --------------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused_before_anything_else(tiny, tmp_path):
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(ConfigurationError, match=f"device {name!r} cannot be used here.*--device cpu"):
            runner.run(tiny.suite("tiny-equal"), tmp_path, devices=(name,), console=tiny.quiet())


def test_devices_take_turns_and_are_in_the_record_and_the_hash(tiny, tmp_path, monkeypatch):
    """A fake one: it computes on the processor."""
    used = []
    monkeypatch.setattr(devices, "check", lambda name: None)

    def fake(job, progress=None):
        used.append(job.device)
        return real(dataclasses.replace(job, device="cpu"))

    real = jobs.do_job
    monkeypatch.setattr("mtlbench.progress.do_job", fake)
    call = {"certify": False, "console": tiny.quiet()}
    runner.run(tiny.suite("tiny-equal"), tmp_path, **call)
    runner.run(tiny.suite("tiny-equal"), tmp_path, devices=("cuda:0", "cuda:1"), **call)
    assert used == ["cpu"] * 4 + ["cuda:0", "cuda:1"] * 2
    found, _ = records.read(tmp_path / "records.jsonl")
    assert len({r.config_hash for r in found if r.method == "tiny-equal"}) == 2
    assert {r.environment["device"] for r in found} == {"cpu"}
    assert {r.environment["dtype"] for r in found} == {"float32"}


# --- time limits ----------------------------------------------------------------------------------------------------


# The alarm that arrives in a callback of a weak reference is dropped by Python itself: the next one counts.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seconds", [0.2, 4.0])  # while the run is prepared, and inside the method
def test_a_run_that_hangs_is_stopped_and_the_others_go_on(tiny, tmp_path, monkeypatch, seconds):
    def hangs(self, view, state):
        while True:
            with contextlib.suppress(Exception):  # whatever it catches, it is stopped
                time.sleep(60)

    monkeypatch.setattr(tiny.Breaks, "aggregate", hangs)
    suite = tiny.suite("tiny-breaks", "tiny-equal", seeds=1)
    summary = runner.run(suite, tmp_path, timeout=20.0, certify=False, methods=("tiny-equal",), console=tiny.quiet())
    assert (summary.finished, summary.failed) == (2, [])
    summary = runner.run(suite, tmp_path, timeout=seconds, certify=False, console=tiny.quiet())
    assert summary.failed == ["tiny-breaks on tiny, seed 0"]
    failed = [r for r in records.read(tmp_path / "records.jsonl")[0] if not r.ok]
    assert f"longer than the {seconds:g} s that --timeout allows" in failed[0].error


# --- parts of a suite -----------------------------------------------------------------------------------------------


def test_some_methods_of_a_suite_leave_the_others_as_they_are(tiny, tmp_path):
    from mtlbench.report.summary import summarise

    suite = tiny.suite("tiny-equal", "tiny-breaks", seeds=1)
    runner.run(suite, tmp_path, console=tiny.quiet())
    assert runner.run(suite, tmp_path, methods=("tiny-equal",), console=tiny.quiet()).finished == 0
    found = summarise(tmp_path)
    assert (found["state"]["finished"], found["state"]["missing"], found["state"]["outdated"]) == (3, [], 0)
    assert {c["name"] for c in found["certificates"]} == {"tiny-equal", "tiny-breaks"}
    with pytest.raises(ConfigurationError, match="has no method 'tiny-eqaul'. Did you mean 'tiny-equal'"):
        runner.run(suite, tmp_path, methods=("tiny-eqaul",), console=tiny.quiet())
    with pytest.raises(ConfigurationError, match="has no task 'x'"):
        runner.run(suite, tmp_path, tasks=("x",), console=tiny.quiet())


def test_what_a_suite_costs():
    from mtlbench.costs import costs

    changes = {
        "tasks": [{"name": "multimnist", "budget": {"steps": 10}}, {"name": "grid-digits", "budget": {"steps": 5}}]
    }
    suite = Suite.model_validate({"name": "s", "title": "s", "methods": ["ls", "mgda"], "seeds": 3, **changes})
    # Single-task networks: two for the digits, nine for the grid.
    assert costs(suite) == f"{3 * 2 * 3} runs, {3 * (10 * (2 + 2) + 5 * (2 + 9))} steps"
