"""The studies: what they measure is what they say."""

from __future__ import annotations

import json

import pytest

from mtlbench.studies import progress


def test_the_mean_of_the_losses_makes_all_of_its_progress_on_itself(tiny):
    """Its direction is the gradient that the others are held against."""
    found = progress.measure(tiny.Tiny(), "ls", steps=10, learning_rate=1e-3)
    assert found["direction"] == pytest.approx(1.0, abs=1e-6)
    assert 0.0 < found["step"] < 1.0
    assert -1.0 < found["next direction"] < 1.0


def test_command_prints_and_keeps_what_it_found(tiny, tmp_path, capsys):
    progress.main(
        ["--task", "tiny", "--steps", "6", "--methods", "ls", "gradops", "--json", str(tmp_path / "found.json")]
    )
    assert "gradops" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["gradops"]["direction"] < found["ls"]["direction"]


def test_fewer_steps_than_can_be_compared_are_refused(capsys):
    with pytest.raises(SystemExit):
        progress.main(["--steps", "2"])
    assert "at least 3" in capsys.readouterr().err
