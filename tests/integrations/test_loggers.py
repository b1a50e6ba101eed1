"""Every logger writes every number of a step, and none can disturb a run."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from mtlcore import Conflict, MultiTask, StepReport
from mtlcore.errors import ConfigurationError
from mtlcore.integrations.csv import CSVLogger
from mtlcore.report import TeleportResult


def report(step: int = 0, run: str = "", **changes) -> StepReport:
    gram = torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)
    conflict = Conflict(conflicting=True, severity=0.5, pairs=gram < 0, dominated=torch.tensor([False, True]))
    values = {
        "losses": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "weights": torch.tensor([0.25, 0.75], dtype=torch.float64),
        "teleport": None,
        "diagnostics": {"residual": 1e-9, "status": "solved", "rows": torch.ones(2)},
        **changes,
    }
    return StepReport(
        step=step, task_names=("a", "b"), gramian=gram, conflict=conflict, gradient_source="x", method="upgrad",
        run=run, **values,
    )  # fmt: skip


def test_scalars_are_flat_floats_that_json_can_hold():
    scalars = report().scalars()
    assert scalars == {
        "loss/a": 1.0, "loss/b": 2.0, "weight/a": 0.25, "weight/b": 0.75, "conflict/min_cosine": -0.5,
        "conflict/severity": 0.5, "conflict/conflicting": 1.0, "diagnostics/residual": 1e-9,
        "cosine/a": pytest.approx(-0.3592, abs=1e-4), "cosine/b": pytest.approx(0.9878, abs=1e-4),
    }  # fmt: skip
    assert all(type(v) is float for v in scalars.values())
    assert json.loads(json.dumps(scalars, allow_nan=False)) == scalars


def test_scalars_of_a_missing_task_and_of_a_direction_are_left_out():
    scalars = report(losses=torch.tensor([math.nan, 2.0]), weights=None).scalars()
    assert "loss/a" not in scalars
    assert scalars["loss/b"] == 2.0
    assert not any(name.startswith("weight/") for name in scalars)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def jump():
    return TeleportResult("t", True, "", {}, True, 0.0, 0.0, 0.0)


def test_csv_has_one_line_for_every_number_and_goes_on(tmp_path):
    path = tmp_path / "run.csv"
    CSVLogger(path).mtlcore_step_finished(report(0, run='first, "quoted"'))
    CSVLogger(path).mtlcore_step_finished(report(1, teleport=jump()))
    read = rows(path)
    first = {r["name"]: float(r["value"]) for r in read if r["step"] == "0"}
    assert first == report().scalars()
    assert {r["run"] for r in read} == {'first, "quoted"', ""}
    assert {r["method"] for r in read} == {"upgrad"}
    assert [r["value"] for r in read if r["name"] == "teleport/accepted"] == ["1.0"]


def test_every_leaves_out_steps_but_no_teleport(tmp_path):
    logger = CSVLogger(tmp_path / "run.csv", every=10)
    for step in range(21):
        logger.mtlcore_step_finished(report(step, teleport=jump() if step == 13 else None))
    assert {int(r["step"]) for r in rows(logger.path)} == {0, 10, 13, 20}


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_must_be_a_whole_number(tmp_path, every):
    with pytest.raises(ConfigurationError, match="whole number"):
        CSVLogger(tmp_path / "run.csv", every=every)


def test_csv_refuses_what_is_not_its_file(tmp_path):
    other = tmp_path / "data.csv"
    other.write_text("x,y\n1,2\n")
    with pytest.raises(ConfigurationError, match="not a log of steps"):
        CSVLogger(other)
    assert other.read_text() == "x,y\n1,2\n"
    with pytest.raises(ConfigurationError, match="cannot be used"):
        CSVLogger(tmp_path / "missing" / "run.csv")


def test_a_training_run_is_logged_by_the_event(tmp_path, monkeypatch):
    """Through the registry, as a user adds it."""
    import mtlcore.registry as reg

    registry = reg.Registry([])
    monkeypatch.setattr("mtlcore.multitask.registry", lambda: registry)
    logger = CSVLogger(tmp_path / "run.csv")
    registry.add(logger, "csv")
    trunk, heads = nn.Linear(3, 4), nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
    from mtlplugins.aggregators.ls import LS

    mt = MultiTask(trunk, aggregator=LS())
    for _ in range(3):
        z = trunk(torch.randn(5, 3))
        last = mt.backward([head(z).square().mean() for head in heads], features=z)
    read = [r for r in rows(logger.path) if r["step"] == "2"]
    assert {r["name"]: float(r["value"]) for r in read} == last.scalars()


def test_tensorboard_holds_every_number_by_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from mtlcore.integrations.tensorboard import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path)
    for step in range(3):
        logger.mtlcore_step_finished(report(step, run="one"))
    logger.mtlcore_step_finished(report(0, run="two"))
    logger.close()
    for run, points in (("one", 3), ("two", 1)):
        events = EventAccumulator(str(tmp_path / run)).Reload()
        for name, value in report().scalars().items():
            found = events.Scalars(name)
            assert [e.step for e in found] == list(range(points))
            assert found[0].value == pytest.approx(value)
    assert "custom_scalars__config__" in events.Tags()["tensors"]


WANDB = """
import json, sys, torch, wandb
sys.path.insert(0, {here!r})
from test_loggers import report
from mtlcore.integrations.wandb import WandbLogger
logger = WandbLogger()
try:
    logger.mtlcore_step_finished(report(0))
except RuntimeError as error:
    print("no run:", "wandb.init" in str(error))
run = wandb.init(project="test", mode="offline", dir={folder!r}, settings=wandb.Settings(silent=True))
for step in range(3):
    logger.mtlcore_step_finished(report(step))
logger.mtlcore_step_finished(report(7, run="named"))
print(json.dumps(dict(run.summary)))
run.finish()
"""


@pytest.mark.slow
def test_wandb_offline_holds_every_number(tmp_path):
    """In a process of its own: wandb starts a service."""
    pytest.importorskip("wandb")
    from pathlib import Path

    program = WANDB.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no run: True" in done.stdout
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    for name, value in report().scalars().items():
        assert summary[name] == summary[f"named/{name}"] == value
    assert (summary["step"], summary["named/step"]) == (2, 7)
    assert list(tmp_path.rglob("*.wandb"))
