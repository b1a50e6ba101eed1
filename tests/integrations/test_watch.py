"""`mtl watch` shows what the CSV logger wrote, whatever state the file is in."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from mtlcore import watching
from mtlcore.cli import app
from mtlcore.errors import ConfigurationError

HEADER = "run,method,step,name,value\n"


def lines(step: int, run: str = "", **numbers: float) -> str:
    return "".join(f"{run},upgrad,{step},{name.replace('__', '/')},{value!r}\n" for name, value in numbers.items())


def step(i: int, run: str = "") -> str:
    cosine = -0.5 if i % 4 == 0 else 0.5
    return lines(i, run, loss__a=10.0 - i, loss__b=1.0, weight__a=0.25, cosine__a=cosine, conflict__min_cosine=-0.2)


def shown(path, *options: str) -> str:
    done = CliRunner().invoke(app, ["watch", str(path), "--once", *options], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_every_number_of_the_last_step_and_the_shares_of_the_window(tmp_path):
    file = tmp_path / "run.csv"
    file.write_text(HEADER + "".join(map(step, range(8))) + lines(7, teleport__accepted=1.0, conflict__conflicting=1.0))
    text = shown(file)
    assert "upgrad: step 7, conflict in 100 % of the steps, smallest cosine -0.2, teleports: 1 of 1 accepted" in text
    a, b = ([word for word in line.split("  ") if word] for line in text.splitlines() if line[:3] in ("a  ", "b  "))
    assert [w.strip() for w in a] == ["a", "3", "█▇▆▅▄▃▂▁", "0.25", "0.5", "25 %"]
    assert [w.strip() for w in b] == ["b", "1", "▁▁▁▁▁▁▁▁", "-", "-", "-"]
    assert "100 %" in shown(file, "--last", "2").splitlines()[0]
    row = next(line for line in shown(file, "--last", "2").splitlines() if line.startswith("a "))
    assert row.split()[-2:] == ["0", "%"], "the steps before the window do not count"


def test_runs_stand_below_each_other_and_a_new_start_forgets(tmp_path):
    file = tmp_path / "run.csv"
    file.write_text(HEADER + step(5, "one") + step(3, "two") + step(0, "one"))
    log = watching.Log(file, 100)
    assert [(name, run.step, run.values("loss/a")) for name, run in log.runs.items()] == [
        ("one", 0, [10.0]),
        ("two", 3, [7.0]),
    ]


def test_a_log_that_grows_is_read_once_and_half_a_line_waits(tmp_path):
    file = tmp_path / "run.csv"
    file.write_text("")
    log = watching.Log(file, 100)
    assert log.runs == {}
    whole = (HEADER + step(0) + step(1)).encode()
    for i in range(0, len(whole), 7):
        with file.open("ab") as more:
            more.write(whole[i : i + 7])
        log.refresh()
    assert log.runs[""].values("loss/a") == [10.0, 9.0]
    file.write_text(HEADER + step(0))  # a new run under the old name
    log.refresh()
    assert log.runs[""].values("loss/a") == [10.0]
    file.write_text(HEADER + step(0) + ",upgrad,1,loss/a,9.\n,upg\n\x00\n" + step(2))  # killed in the middle of a line
    log.refresh()
    assert log.runs[""].values("loss/a") == [10.0, 9.0, 8.0]


def test_what_is_no_log_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot be read: No such file.*CSVLogger\(\"none.csv\"\)"):
        watching.Log(tmp_path / "none.csv", 10)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match="its first line is not 'run,method,step,name,value'"):
        watching.Log(tmp_path / "other.csv", 10)


def test_nothing_in_a_log_commands_the_terminal(tmp_path):
    file = tmp_path / "run.csv"
    file.write_text(HEADER + "[red]x[/]\x1b[31m,m,0,loss/[bold]t\x1b]0;t\x07,1.0\n")
    text = shown(file)
    assert "\x1b" not in text
    assert "[red]x[/]" in text
    assert "[bold]t" in text


def test_what_a_real_run_logs_is_shown(tmp_path):
    import torch
    from torch import nn

    import mtlcore
    from mtlcore.integrations.csv import CSVLogger

    logger = CSVLogger(tmp_path / "run.csv")
    trunk, heads = nn.Linear(3, 4), nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
    mt = mtlcore.MultiTask(trunk, "upgrad", name="mine")
    for _ in range(3):
        z = trunk(torch.randn(5, 3))
        last = mt.backward({t: h(z).square().mean() for t, h in heads.items()}, features=z)
        logger.mtlcore_step_finished(last)
    text = shown(logger.path)
    assert "mine upgrad: step 2" in text
    assert f"{last.losses[0]:.3g}" in text


@pytest.mark.parametrize("garbage", ["garbage\n", "run,method\n", "\0\1\2\n", "\n", "\ufeff" + HEADER])
def test_a_file_of_one_line_that_is_no_log_is_refused(tmp_path, garbage):
    file = tmp_path / "run.csv"
    file.write_text(garbage)
    done = CliRunner().invoke(app, ["watch", str(file), "--once"])
    assert done.exit_code != 0
    assert isinstance(done.exception, ConfigurationError)
    assert "is not a log of steps" in str(done.exception)


def test_lines_that_cannot_be_read_are_counted(tmp_path):
    file = tmp_path / "run.csv"
    file.write_text(HEADER + "nonsense\n" + step(0) + "a,b,c,d,e\n")
    assert "2 lines of the file could not be read." in shown(file)
    file.write_text(HEADER + step(0))
    assert "could not be read" not in shown(file)
