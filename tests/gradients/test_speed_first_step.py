"""The measurement of the first step: both shapes train, and a missed target is marked."""

from __future__ import annotations

import json

import pytest

from mtlbench.speed import first_step


@pytest.mark.parametrize("shape", first_step.SHAPES)
def test_every_parameter_of_the_trunk_is_reached(shape):
    network = first_step.made(shape, 20)
    losses, _ = network.forward()
    sum(losses).backward()
    assert len(list(network.trunk.parameters())) == 20
    assert all(float(p.grad.norm()) > 0 for p in network.trunk.parameters())


def test_the_command_writes_what_it_found(tmp_path, capsys):
    first_step.main(["--sizes", "30", "--methods", "mgda", "--repeats", "1", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "first_step.json").read_text(encoding="utf-8"))
    assert [(r["shape"], r["size"], r["method"]) for r in rows] == [("deep", 30, "mgda"), ("wide", 30, "mgda")]
    assert all(r["first"] > 0 and r["later"] > 0 for r in rows)
    assert "deep, 30" in capsys.readouterr().out
    slow = first_step.Row("deep", 10, "mgda", 1.0, 11.0, 1.0)
    assert "!" in first_step.table([slow])
