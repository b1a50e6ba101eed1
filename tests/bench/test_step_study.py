"""The study of steps: what its table says follows from the theorem, and from momentum without it."""

from __future__ import annotations

from mtlbench import suite
from mtlbench.studies import steps


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
