"""The speed suite measures what it says: contenders do the same job, a wrong one is left out, records are complete."""

from __future__ import annotations

import json

import pytest
import torch

from mtlbench.speed import gradients, measure, workloads
from mtlbench.speed.contenders import CONTENDERS, Floor, HandWritten, LibMtlForm, MtlCore, PlainSum, Rule


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
