"""`mtl bench`: what it prints and its exit codes."""

from __future__ import annotations

import html
import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from mtlbench.command import app
from mtlcore.errors import ConfigurationError, MtlError


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture
def suite_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "mine"\ntasks = ["tiny"]\nseeds = 1\nreference = "tiny-equal"\n[[methods]]\nname = "tiny-equal"\n'
    )
    return path


def test_list_shows_suites_tasks_with_data_status_and_methods(invoke):
    result = invoke("list", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert "demo" in {s["name"] for s in found["suites"]}
    assert {t["name"]: t["data"] for t in found["tasks"]}["multimnist"] == "installed"
    assert {"gradops", "sum"} <= {m["name"] for m in found["methods"]}
    assert all(t["data"] for t in found["tasks"]), "wherever data are not needed or are the user's, that is said"
    lines = invoke("list").stdout.splitlines()
    assert not any("…" in line for line in lines)
    for row in (*found["suites"], *found["tasks"]):
        assert any(all(value in line for value in row.values()) for line in lines), "one row, one line in a pipe"


def test_run_and_report(tiny, invoke, suite_file, tmp_path):
    result = invoke("run", suite_file, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "2 runs finished" in result.stdout
    result = invoke("report", tmp_path / "out", "--json", tmp_path / "numbers.json")
    assert result.exit_code == 0
    assert (tmp_path / "out" / "report.html").read_text().startswith("\n<!doctype html>") or (
        "<!doctype html>" in (tmp_path / "out" / "report.html").read_text()[:50]
    )
    assert json.loads((tmp_path / "numbers.json").read_text())["state"]["finished"] == 2


def test_failures_exit_with_1(tiny, invoke, suite_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_BREAKS", "1")
    suite_file.write_text(suite_file.read_text() + '[[methods]]\nname = "tiny-breaks"\n')
    result = invoke("run", suite_file, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "failed" in result.stdout


def test_a_refused_method_exits_with_1(tiny, invoke, suite_file, tmp_path):
    suite_file.write_text(suite_file.read_text() + '[[methods]]\nname = "tiny-refuted"\n')
    result = invoke("run", suite_file, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "refused" in result.stdout
    assert invoke("run", suite_file, "--out", tmp_path / "out", "--allow-refuted").exit_code == 0


def test_ctrl_c_exits_with_130_and_leaves_valid_records(tiny, invoke, suite_file, tmp_path, monkeypatch):
    from mtlbench import jobs, progress, records

    real = jobs.do_job

    def interrupted(job, progress):
        if job.method is not None:
            raise KeyboardInterrupt
        return real(job, progress)

    monkeypatch.setattr(progress, "do_job", interrupted)
    result = invoke("run", suite_file, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert len(records.read(tmp_path / "out" / "records.jsonl")[0]) == 1
    monkeypatch.setattr(progress, "do_job", real)
    assert "1 were there already" in invoke("run", suite_file, "--out", tmp_path / "out").stdout


def test_the_report_says_how_to_run_the_suite_again(tiny, invoke, suite_file, tmp_path):
    """A suite of one's own is found by its path, not by its name."""
    odd = tmp_path / "my suites" / "mine.toml"
    odd.parent.mkdir()
    suite_file.rename(odd)
    assert invoke("run", "my suites/mine.toml", "--out", "out", "--seeds", "2").exit_code == 0
    assert invoke("report", "out").exit_code == 0
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    (command,) = re.findall(r"<pre>mtl bench (run .*)", page)
    assert shlex.split(command) == ["run", "my suites/mine.toml", "--seeds", "2", "--out", "out"]
    assert "4 were there already" in invoke(*shlex.split(command)).stdout


def test_a_folder_that_cannot_be_used_is_named(tiny, invoke, suite_file, tmp_path):
    (tmp_path / "afile").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "suite.json").write_text('{"suite": ')
    for arguments, complaint in (
        (("run", suite_file, "--out", "afile"), "'afile' cannot be the folder of the records: File exists"),
        (("run", suite_file, "--out", "afile/below"), "'afile/below' cannot be the folder of the records: Not a dir"),
        (("report", "empty"), "there is nothing to report in 'empty': it has neither records.jsonl nor suite.json"),
        (("run", suite_file, "--out", "damaged"), "damaged/suite.json is damaged (Invalid JSON"),
        (("report", "damaged"), "damaged/suite.json is damaged (Invalid JSON"),
    ):
        error = invoke(*arguments).exception
        assert isinstance(error, ConfigurationError)
        assert complaint in str(error)


@pytest.mark.parametrize("arguments", [("run", "no-such-suite"), ("report", "no-such-folder")])
def test_mistakes_are_errors_of_ours(invoke, arguments):
    assert isinstance(invoke(*arguments).exception, MtlError)  # `mtl` turns these into one line and exit code 2


def test_bad_usage_exits_with_2(invoke):
    assert invoke("run").exit_code == 2
    assert invoke("run", "demo", "--jobs", "0").exit_code == 2


def test_show_prints_a_suite_to_start_from(invoke, tmp_path):
    (tmp_path / "copy.toml").write_text(invoke("show", "demo").stdout)
    from mtlbench.suite import read

    assert read("copy.toml").methods == read("demo").methods
    assert isinstance(invoke("show", "dmeo").exception, ConfigurationError)


@pytest.mark.parametrize("form", ["csv", "markdown", "latex", "parquet"])
def test_every_table_can_be_exported(invoke, tmp_path, form):
    from mtlbench import records
    from mtlbench.export import export

    for seed in range(3):
        for method, delta in (("single-task", 0.0), ("sum", 5.0 + seed), ("a_b & | 50%\n$x", 1.0 + seed * seed)):
            record = {"task": "multimnist", "method": method, "seed": seed, "status": "ok", "delta_m": delta}
            metrics = {"top-left/accuracy": 90.0 - delta, "bottom-right/accuracy": 80.0}
            records.append(tmp_path / "out" / "records.jsonl", {**record, "metrics": metrics, "ratio_to_sum": 1.5})
    written = export(tmp_path / "out", tmp_path / "out" / "export", form)
    names = {p.stem for p in written}
    assert {"runs", "multimnist-delta-m", "multimnist-metrics", "multimnist-metrics-versus", "multimnist-cost"} <= names
    assert {p.suffix for p in written if p.parent.name == "figures"} == {".svg", ".pdf"}
    assert all(p.stat().st_size for p in written)
    (table,) = [p for p in written if p.stem == "multimnist-delta-m" and p.parent.name != "figures"]
    if form == "parquet":
        import pandas as pd

        assert pd.read_parquet(table)["delta_m"].tolist() == pytest.approx([6.0, 8 / 3])
    else:
        text = table.read_text()
        row = {"csv": '"a_b & | 50%\n$x"', "markdown": "| a_b & \\| 50% $x |", "latex": r"a\_b \& | 50\% \$x &"}[form]
        assert row in text
    with pytest.raises(ConfigurationError, match="no format 'xls'"):
        export(tmp_path / "out", tmp_path, "xls")
    assert isinstance(invoke("export", tmp_path).exception, ConfigurationError)
