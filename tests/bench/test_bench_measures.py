"""Measures in closed form."""

import pytest
import torch

from mtlbench.measures.calibration import expected_calibration_error
from mtlbench.measures.disentanglement import feature_disentanglement
from mtlbench.measures.ensemble import self_ensembled
from mtlcore.errors import ConfigurationError


def test_calibration_error_by_hand():
    # Two at 0.9, one right: |1 - 1.8|; two at 0.6, both right: |2 - 1.2|. Over four: (0.8 + 0.8) / 4.
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 0, 0])
    assert expected_calibration_error(p, labels) == pytest.approx(0.4, abs=1e-6)
    # In one bin the two gaps cancel.
    assert expected_calibration_error(p, labels, bins=1) == pytest.approx(0.0, abs=1e-6)
    assert expected_calibration_error(torch.eye(3), torch.arange(3)) == 0.0
    assert expected_calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1.0


def test_logits_are_refused():
    with pytest.raises(ConfigurationError, match="softmax"):
        expected_calibration_error(torch.tensor([[3.0, -1.0]]), torch.tensor([0]))


def test_disentanglement_by_hand():
    same = torch.tensor([[[1.0, 3.0]], [[-2.0, 6.0]]])
    assert feature_disentanglement(same) == pytest.approx(0.0, abs=1e-12)
    assert feature_disentanglement(torch.tensor([[[1.0, 0.0]], [[0.0, 5.0]]])) == 1.0
    # (1/4, 3/4) and (3/4, 1/4) share 1/2, whatever the scale, the map's size and the order of channels.
    half = torch.tensor([[[1.0, 3.0]], [[3e-200, 1e-200]]], dtype=torch.float64)
    assert feature_disentanglement(half) == pytest.approx(0.5)
    assert feature_disentanglement(half[..., None, None].expand(2, 1, 2, 3, 3).flip(2, 0)) == pytest.approx(0.5)
    with pytest.raises(ConfigurationError, match="task 1"):
        feature_disentanglement(torch.tensor([[[1.0]], [[0.0]]]))


def test_the_surest_member_answers():
    members = torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.1, 0.9]]])
    assert torch.equal(self_ensembled(members), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    assert torch.equal(self_ensembled(members[:1]), members[0])
    assert torch.equal(self_ensembled(members[[0, 0]]), members[0])
    with pytest.raises(ConfigurationError, match="needs probabilities"):
        self_ensembled(members[0])


@pytest.mark.slow
def test_merging_study_has_every_arm(monkeypatch, tmp_path, capsys):
    from mtlbench.studies import merging

    monkeypatch.setattr(merging, "BASE_STEPS", 2)
    monkeypatch.setattr(merging, "EXPERT_STEPS", 2)
    few = {n: merging.MERGERS[n] for n in ("weight-average", "adamerging, per task")}
    few["adamerging, per task"] = ("adamerging", {"per": "task", "steps": 1})
    monkeypatch.setattr(merging, "MERGERS", few)
    merging.main(["--seeds", "1", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    assert sum(line.startswith("| ") for line in first.splitlines()) == 1 + 2 + 2 * 4
    merging.main(["--seeds", "1", "--out", str(tmp_path)])  # nothing is missing
    assert capsys.readouterr().out == first


def test_calibration_of_a_classification_task_does_not_depend_on_its_batches():
    import mtlcore

    task = mtlcore.create("task", "multimnist")
    draws = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(50, 10, generator=draws), torch.randint(10, (50,), generator=draws)
    whole = task.score("top-left", task.tally("top-left", logits, labels))
    parts = sum(task.tally("top-left", a, b) for a, b in zip(logits.split(7), labels.split(7), strict=True))
    assert task.score("top-left", parts) == pytest.approx(whole)
    assert whole["calibration error"] == pytest.approx(100 * expected_calibration_error(logits.softmax(1), labels))
    assert [m.judged for m in task.metrics if m.task == "top-left"] == [True, False]


@pytest.mark.parametrize(("weights", "expected"), [(((1.0, 0.0), (0.0, 1.0)), 1.0), (((1.0, 2.0), (3.0, 6.0)), 0.0)])
def test_a_run_measures_how_far_its_tasks_share_features(weights, expected):
    from mtlbench.protocol.conflict import ConflictProbe
    from mtlbench.tasks.base import Network
    from support.bench_tiny import Tiny

    class Two(Tiny):
        def trunk(self):
            return torch.nn.Linear(5, 2)

        def head(self, task):
            return torch.nn.Linear(2, 1)

    task = Two()
    network = Network(task)
    with torch.no_grad():
        for head, row in zip(network.heads.values(), weights, strict=True):
            head.weight.copy_(torch.tensor([row]))
    probe = ConflictProbe("two", task, task.load().train, 0, 8)
    probe.look(network, 0)
    probe.look(network, 1)
    assert probe.summary()["disentanglement"] == pytest.approx(expected, abs=1e-6)
