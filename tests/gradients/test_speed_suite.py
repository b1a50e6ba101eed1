"""The speed suite measures what it says: contenders do the same job, a wrong one is left out, records are complete."""

from __future__ import annotations

import json

import pytest
import torch

from mtlbench.speed import gradients, measure, workloads
from mtlbench.speed.contenders import (
    CONTENDERS,
    DifferentiationAlone,
    Floor,
    HandWritten,
    LibMtlForm,
    MtlCore,
    PlainSum,
    Rule,
)


@pytest.fixture
def tiny(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(workloads, "WORKLOADS", {"tiny": lambda: workloads.mlp(3, width=64, batch=8)})
    # The peers are an optional matter of the measurement, and slow to import.
    monkeypatch.setattr(gradients, "CONTENDERS", (Floor, PlainSum, HandWritten, LibMtlForm, MtlCore))


@pytest.mark.filterwarnings("ignore")
def test_one_run_writes_json_and_figure(tiny, tmp_path, capsys):
    assert gradients.main(["--out", str(tmp_path), "--seconds", "0.05", "--no-curves"]) == 0
    result = json.loads((tmp_path / "gradients.json").read_text())
    (record,) = result["records"]
    assert record["ratio_to_floor"][Floor.label] == 1.0
    assert {"plain sum", "hand-written", "LibMTL's form", MtlCore.label} <= set(record["ratio_to_floor"])
    assert 1.0 < record["memory_in_rows"]["hand-written"] < 10
    assert result["summary"]["geometric_mean_to_floor"] > 0
    assert (tmp_path / "gradients.png").stat().st_size > 10_000
    assert "tiny" not in record["left_out"]
    assert "/ floor" in capsys.readouterr().out


def test_a_contender_with_wrong_gradients_is_left_out(tiny):
    class Wrong(HandWritten):
        label = "wrong"

        def backward(self, losses, z):
            super().backward(losses, z)
            self.shared[0].grad.mul_(1.01)

    ready, refused = gradients.prepare(workloads.WORKLOADS["tiny"], Rule("upgrad"), [HandWritten, Wrong])
    assert list(ready) == ["hand-written"]
    assert "wrong gradients" in refused["wrong"]


def test_workloads_are_what_their_names_say():
    for make in workloads.WORKLOADS.values():
        work = workloads.build(make)
        losses, z = work.forward()
        assert len(losses) == work.n_tasks
        assert str(work.n_tasks) in work.name
        assert z.requires_grad
        assert all(torch.isfinite(loss) for loss in losses)


def test_large_workloads_are_what_their_names_say():
    for make in workloads.LARGE.values():
        with torch.device("meta"):  # shapes only
            work = make()
            losses, z = work.forward()
        assert len(losses) == work.n_tasks
        assert work.name.startswith("large")
        assert f"K={work.n_tasks}" in work.name
        assert z.requires_grad


def test_peak_memory_counts_what_is_held_at_once():
    def both():
        a = torch.empty(250_000)
        b = torch.empty(500_000)
        del a
        return b

    assert 3_000_000 <= measure.peak_bytes(both) < 3_100_000


def test_every_contender_has_its_own_label():
    labels = [c.label for c in CONTENDERS]
    assert len(set(labels)) == len(labels)


def test_differentiation_alone_still_differentiates():
    """A bound that left out some of the K passes would be no bound: the sum of the task gradients is there."""
    make = workloads.WORKLOADS["mlp3"]
    plain = PlainSum(workloads.build(make), Rule("upgrad"))
    plain.step()
    ready, refused = gradients.prepare(make, Rule("upgrad"), [DifferentiationAlone])
    alone = ready[DifferentiationAlone.label]
    assert not refused
    alone.step()
    torch.testing.assert_close(alone.work.gradients(), plain.work.gradients())


def test_the_bound_is_the_faster_way_of_differentiating():
    """Over workloads: the geometric mean of the smaller of the two."""

    def record(floor, alone):
        ratios = {Floor.label: floor, DifferentiationAlone.label: alone, MtlCore.label: 1.0}
        return {"ratio_to_floor": {MtlCore.label: 1.0}, "ratio_to_torchjd": ratios, "ratio_to_best_torchjd": 1.0}

    found = gradients.summary([record(0.5, 0.8), record(0.9, 0.125)])
    assert found["geometric_mean_of_differentiation_to_torchjd_documented"] == pytest.approx(0.25)
    assert "geometric_mean_of_differentiation_to_torchjd_documented" not in gradients.summary(
        [{**record(1.0, 1.0), "ratio_to_torchjd": {MtlCore.label: 1.0}}]
    )
