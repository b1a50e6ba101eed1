"""The study of steps: what its table says follows from the theorem, and from momentum without it."""

from __future__ import annotations

import dataclasses
import math

import torch

from mtlbench import records, runner, suite
from mtlbench.protocol.log import Log
from mtlbench.protocol.training import train
from mtlbench.studies import step_pairs, steps
from mtlbench.suite import MethodEntry
from support.bench_tiny import Tiny


def test_momentum_harms_a_task_and_a_step_in_the_cone_does_not(capsys):
    rows = {m: steps.measured("upgrad", "SGD, momentum 0.9, decay 0.01", m, 2, 15) for m in ("euclidean", "step")}
    assert rows["euclidean"].conflicts > 10.0
    assert rows["step"].conflicts == rows["step"].unsafe == 0.0
    steps.main(["--networks", "1", "--steps", "1"])
    assert capsys.readouterr().out.count("\n") == 2 + len(steps.OPTIMIZERS) * len(steps.METRICS)


def test_the_suites_compare_the_same_methods_in_each_metric():
    adam, sgd = suite.read("step"), suite.read("step-sgd")
    by_metric = {m: [e.aggregator for e in adam.methods if e.metric == m] for m in steps.METRICS}
    assert by_metric["euclidean"] == by_metric["optimizer"] == by_metric["step"]
    assert [e.aggregator for e in sgd.methods if e.metric == "step"] == by_metric["step"]
    assert all(e.taken for e in (*adam.methods, *sgd.methods))


def test_a_record_says_how_many_steps_harmed_a_task():
    budget = dataclasses.replace(Tiny().budget, steps=12, optimizer="SGD", optimizer_options={"momentum": 0.95})
    found = {}
    for metric in ("euclidean", "step"):
        entry = MethodEntry.model_validate({"name": "upgrad", "metric": metric, "taken": True})
        found[metric] = train("tiny", Tiny(), entry, 0, budget, {}).conflict
    assert found["step"]["steps_in_conflict"] == 0.0
    assert found["step"]["step_cosine"] >= found["euclidean"]["step_cosine"] - 1e-3
    shares = [found["euclidean"][f"step_share_{part}"] for part in ("gradient", "momentum", "decay")]
    assert math.isclose(sum(shares), 1.0, abs_tol=1e-3)
    assert shares[1] > 0.5  # of 0.95
    assert found["euclidean"]["step_preconditioner"] > 0.999  # SGD only scales
    plain = train("tiny", Tiny(), MethodEntry.model_validate("upgrad"), 0, budget, {}).conflict
    assert not [name for name in plain if name.startswith("step")]


def test_steps_in_conflict_are_counted_beyond_the_rounding_of_parameters():
    log = Log()
    made = steps.Networks(0, "SGD")
    run = steps.MultiTask(made.trunk, "upgrad", made.optimizer, taken=True)
    report = run.step(made.closure())
    for cosine in (-0.5, -1e-5, 0.3, math.nan):
        taken = dataclasses.replace(report.taken, cosines=torch.tensor([cosine, 0.9], dtype=torch.float64))
        log.note(dataclasses.replace(report, taken=taken))
    # A cosine that is not known is left out, and the other task's counts.
    assert log.steps()["steps_in_conflict"] == 0.25


def test_the_pairs_of_a_suite_are_compared_seed_by_seed(tiny, tmp_path):
    """From records on disk: differences, their interval, and whether they are shown to be none."""
    methods = [
        {"name": "upgrad" if metric == "euclidean" else f"upgrad, {metric}", "aggregator": "upgrad", "metric": metric}
        for metric in steps.METRICS
    ]
    made = tiny.suite(*[{**m, "taken": True} for m in methods], reference="upgrad", seeds=3)
    runner.run(made, tmp_path, certify=False, console=tiny.quiet())
    lines = list(step_pairs.table(tmp_path, "tiny"))
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "`upgrad`",
        "`upgrad`, `optimizer`",
        "`upgrad`, `step`",
    ]
    runs = records.finished(tmp_path / records.RECORDS).values()
    by = {(r.method, r.seed): r.delta_m for r in runs}
    mean = sum(by["upgrad, step", s] - by["upgrad", s] for s in range(3)) / 3
    assert f"| {mean:+.2f} [" in lines[-1]
    assert "p = " in lines[-1]
    step_pairs.main([str(tmp_path)])
