"""The loss-level speed comparison: its steps do the same job, its memory target holds, its files survive a stop."""

from __future__ import annotations

import json

import pytest
import torch

from mtlbench.speed import loss_level
from mtlbench.speed.workloads import build, mlp


def small(k: int):
    return lambda: mlp(k, width=64, batch=16)


def test_reference_and_sum_write_the_same_gradients():
    """Otherwise a ratio of their times would compare different jobs."""
    one, two, three = build(small(3)), build(small(3)), build(small(3))
    loss_level.plain(one)()
    loss_level.method(two, "sum")()
    loss_level.checked(three)()
    assert torch.equal(one.gradients(), two.gradients())
    assert torch.equal(one.gradients(), three.gradients())
    assert float(one.gradients().norm()) > 0


def test_methods_that_look_twice_take_a_whole_step():
    workload = build(small(2))
    before = workload.trunk[0].weight.clone()
    loss_level.method(workload, "famo")()
    assert not torch.equal(before, workload.trunk[0].weight)


@pytest.mark.parametrize("k", [pytest.param(2, marks=pytest.mark.slow), 40])
def test_peak_memory_is_that_of_a_plain_step(k):
    """No second copy of gradients or activations: bytes, which unlike times are the same on every machine."""
    labels = ["bilb4mtl"]
    found = loss_level.compare(lambda: mlp(k, width=256), labels, seconds=0.0)
    for label in labels:
        assert found[label]["memory"] <= loss_level.MEMORY_TARGET, (label, found[label])
        assert found[label]["time"] > 0


def test_command_writes_what_it_found_and_marks_missed_targets(tmp_path, capsys):
    arguments = ["--seconds", "0", "--tasks", "2", "--networks", "MLP", "--methods", "sum"]
    loss_level.main([*arguments, "--out", str(tmp_path)])
    assert "MLP K=2" in capsys.readouterr().out
    stored = json.loads((tmp_path / "loss_level.json").read_text())
    assert set(stored["results"]["MLP K=2"]) == {"plain sum", "plain sum, checked", "sum"}
    plain = {"time": 1.0, "memory": 1.0, "seconds": 1.0}
    slow = {"MLP K=2": {"plain sum": plain, "sum": {**plain, "time": 1.2}}}
    assert [line.endswith("!") for line in loss_level.table(slow).splitlines()] == [False, False, True, False]
