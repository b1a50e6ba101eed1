"""The suite of everyday training: contenders do the same job, records are complete, a missed target is marked."""

from __future__ import annotations

import json

import pytest
import torch

from mtlbench.speed import everyday
from mtlbench.speed.workloads import build, mlp


def gradients(work) -> torch.Tensor:
    parameters = [*work.trunk.parameters(), *work.head.parameters()]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


@pytest.mark.parametrize("make", everyday.NETWORKS)
def test_both_ways_with_per_sample_losses_do_the_same_job(make):
    weights = torch.linspace(0.5, 1.5, 12, dtype=torch.float64)
    one, two = everyday.made(make, 12), everyday.made(make, 12)
    by_hand, ours = everyday.by_hand(one, weights)(), everyday.through_mtlcore(two, weights)()
    torch.testing.assert_close(ours, by_hand.double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients(two), gradients(one), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sum", "graddrop"])
def test_a_step_of_micro_batches_is_the_plain_step(name):
    one, two = (build(lambda: mlp(2, width=16, batch=8)) for _ in range(2))
    everyday.accumulated(one, "")()
    everyday.accumulated(two, name)()
    same = torch.allclose(one.gradients(), two.gradients(), rtol=1e-4, atol=1e-7)
    assert same is (name == "sum"), "the second method drops signs, so it cannot give the sum"


@pytest.mark.parametrize("name", ["", "upgrad"])
def test_the_table_stays_sparse(name, monkeypatch):
    made = []
    original = everyday.recommender
    monkeypatch.setattr(everyday, "recommender", lambda *a: made.append(original(*a)) or made[-1])
    everyday.training(50, True, name)()
    ((work, optimizers),) = made
    assert work.trunk[0].weight.grad.is_sparse
    assert isinstance(optimizers[0], torch.optim.SparseAdam)


def test_a_step_that_looks_at_the_optimizer_says_what_it_did():
    work = build(lambda: mlp(2, width=16, batch=8))
    assert everyday.looking(work)() is None
    assert everyday.looking(work, **everyday.LOOKS["taken=True"])() is not None
    tiny = lambda: mlp(2, width=16, batch=8)
    *rows, larger = everyday.metrics(0.0, tiny, {"again": tiny})
    assert larger.what == "upgrad, taken=True, again"
    assert [row.what.partition(", ")[2] for row in rows] == list(everyday.LOOKS)
    assert all(row.value > 0 for row in rows)


def test_gradients_have_the_rank_that_is_said():
    assert torch.linalg.matrix_rank(everyday.gradients_of_rank(30, 7)) == 7


def test_command_writes_what_it_found_and_marks_missed_targets(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(everyday.SECTIONS, "dependent", lambda s: everyday.dependent(s, k=12, ranks=(4,)))
    assert everyday.main(["--seconds", "0", "--only", "dependent", "--out", str(tmp_path)]) == 0
    assert "12 gradients of rank 4" in capsys.readouterr().out
    stored = json.loads((tmp_path / "everyday.json").read_text())
    assert {r["what"].split(",")[0] for r in stored["rows"]} == {"gradops", "upgrad"}
    slow = everyday.Row("sparse", "uw", everyday.PLAIN, 2.5, 2.0)
    assert [line.endswith("missed !)") for line in everyday.table([slow, slow._replace(value=1.5)]).splitlines()] == [
        True,
        False,
    ]
