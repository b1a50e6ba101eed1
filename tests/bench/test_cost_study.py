"""The study of COST: every arm runs, a run that was stopped goes on, and "the same" is a statement with a test."""

from __future__ import annotations

import json

import pytest
import torch

import mtlcore
from mtlbench.studies import cost
from mtlbench.studies.cost_arms import ARMS, Persistent
from mtlcore import StepView
from support.bench_tiny import Tiny


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_every_arm_runs_and_pairs_with_the_base_alone(arm):
    first, again = (cost.Run(Tiny(), "ls", ARMS[arm], seed=1, steps=12).go() for _ in range(2))
    assert first["metrics"] == again["metrics"], "the same seed is the same run"
    assert first["notes"]["accepted"] <= first["notes"]["tried"] <= first["notes"]["fired"]
    if ARMS[arm].strategy is None and not ARMS[arm].extra_steps:
        assert first["notes"]["fired"] == 0


def test_a_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    create = mtlcore.create
    monkeypatch.setattr(mtlcore, "create", lambda k, n, **o: Tiny() if k == "task" else create(k, n, **o))
    jobs = lambda: cost.wanted(["tiny"], ["ls"], ["default", "random"], 2)
    assert cost.run_all(tmp_path, jobs(), 6) == 6
    file = tmp_path / "runs.jsonl"
    text = file.read_text()
    file.write_text(text[: text.rstrip().rindex("\n") + 20])  # killed while it wrote the last line
    assert cost.run_all(tmp_path, jobs(), 6) == 1
    assert cost.run_all(tmp_path, jobs(), 6) == 0
    rows = cost.finished(file)
    assert len(rows) == 6
    assert json.dumps(rows[("tiny", "ls", "alone", 0, 6)])
    assert {arm for arms in cost.scores(file).values() for arm in arms} == {"default", "random"}
    assert "### tiny, ls, 6 steps" in cost.report(tmp_path)


def test_the_same_is_shown_and_not_merely_not_refuted():
    assert cost.equivalence([0.01, -0.02, 0.03, 0.0, 0.01]) < 0.001
    assert cost.equivalence([3.0, -3.0, 2.0, -2.0, 0.1]) > 0.1, "no difference in the mean, and nothing shown"
    assert cost.equivalence([2.0, 2.1, 1.9]) > 0.9
    assert cost.equivalence([0.1]) is None
    assert cost.equivalence([0.0, 0.0]) == 0.0


def test_a_conflict_of_single_batches_is_not_persistent():
    detector = Persistent(batches=8)
    opposed, agreed = (torch.tensor([[1.0, c], [c, 4.0]], dtype=torch.float64) for c in (-1.5, 1.5))
    view = lambda gram: StepView(losses=torch.ones(2), gramian=gram)
    mixed = [detector.detect(view(g)).conflicting for g in (opposed, agreed) * 8]
    assert not any(mixed)
    steady = [detector.detect(view(opposed)).conflicting for _ in range(8)]
    assert steady[-1]
