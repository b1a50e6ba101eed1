"""`mtl bench run fronts`: what a front is worth, resuming, the verdict, the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mtlbench import command, records
from mtlbench.fronts import plan, report, run
from mtlbench.fronts.plan import Subject
from mtlcore.errors import ConfigurationError
from support import bench_tiny

PROBLEM = Subject("pareto-mtl-toy", "problem", 2, passes=40, points=3, dense=5)


def test_worth_of_a_front_in_closed_form():
    best = np.array([[0.0, 0.5], [0.5, 0.0]])
    found = run.worth([[0.0, 0.5], [0.5, 0.0]], [[0.0, 0.0]], best)
    assert found["hypervolume"] == pytest.approx(0.75)
    assert found["dense_hypervolume"] == pytest.approx(1.0)
    assert found["spread"] == pytest.approx(0.5)
    assert found["share"] == pytest.approx(1.0)
    assert found["igd_plus"] == pytest.approx(0.0)
    assert run.worth([[0.5, 0.5]], [[0.5, 0.5]], best)["igd_plus"] == pytest.approx(0.5)
    assert run.worth([None], [[0.0, 0.0]], None)["hypervolume"] is None


def test_a_declared_front_spans_its_ranges(tmp_path):
    best = run.on_problem(PROBLEM, 0, tmp_path).best
    assert np.allclose(best[0], [1.0, 0.0])
    assert np.allclose(best[-1], [0.0, 1.0])
    assert len(best) == run.FRONTIER


def test_it_goes_on_where_it_stopped_and_a_torn_line_harms_only_itself(tmp_path):
    file, said = tmp_path / "records.jsonl", []
    assert run.run([PROBLEM], ["ls-sweep", "cosmos"], 1, file, said.append).finished == len(said) == 2
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[1][:50])
    again = []
    summary = run.run([PROBLEM], ["ls-sweep", "cosmos"], 1, file, again.append)
    assert (summary.finished, summary.already, summary.failed) == (1, 1, [])
    assert [text.split(":")[0] for text in again] == ["pareto-mtl-toy, cosmos, seed 0"]
    found = list(records.lines(file))
    assert [x["method"] for x in found] == ["ls-sweep", "cosmos"]
    assert found[1]["points"] == json.loads(lines[1])["points"]


def test_real_data_are_judged_against_networks_that_are_trained_alone(tiny, tmp_path):
    file = tmp_path / "records.jsonl"
    n_tasks = len(bench_tiny.Tiny().tasks)
    subject = Subject("tiny", "task", n_tasks, passes=8 * (n_tasks + 1), points=n_tasks + 1, dense=n_tasks + 2)
    assert run.run([subject], ["ls-sweep", "pamal"], 1, file).ok
    alone, *others = records.lines(file)
    assert alone["method"] == f"single-task:{subject.points}"
    assert [len(x["points"]) for x in others] == [subject.points] * 2
    task = bench_tiny.Tiny()
    assert run.worsenings(task, alone["metrics"], alone["metrics"]) == [0.0] * n_tasks
    # A corner of the sweep is trained like the network of its task: same data, weights and number of steps.
    assert others[0]["points"][0][0] == pytest.approx(0.0, abs=0.2)


def test_a_search_that_fails_is_a_record_and_tried_again(tmp_path):
    file = tmp_path / "records.jsonl"
    small = Subject("pareto-mtl-toy", "problem", 2, passes=1, points=3, dense=5)
    for _ in range(2):
        (failure,) = run.run([small], ["ls-sweep"], 1, file).failed
        assert failure.startswith("pareto-mtl-toy, ls-sweep, seed 0: passes = 1 is too little")
    assert ["too little" in x["error"] for x in records.lines(file)] == [True, True]


def lines(differences, method="pamal"):
    for seed, d in enumerate(differences):
        for name, value in (("ls-sweep", 0.5 + 0.01 * seed), (method, 0.5 + 0.01 * seed + d)):
            yield {
                "subject": "pareto-mtl-toy", "method": name, "seed": seed, "passes": plan.SUBJECTS[1].passes,
                "status": "ok", "hypervolume": value, "dense_hypervolume": value, "spread": 0.1, "share": 0.5,
                "igd_plus": 0.1, "training_seconds": 1.0, "points": [[0.0, 1.0], [1.0, 0.0]],
                "preferences": [[1.0, 0.0], [0.0, 1.0]],
            }  # fmt: skip


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.1, 0.11, 0.09, 0.1], "better"),
        ([-0.1, -0.11, -0.09, -0.1], "worse"),
        ([0.1, -0.1, 0.2, -0.2], "no significant difference"),
        ([0.1], "not enough runs"),
    ],
)
def test_verdict_is_that_of_paired_seeds_and_more_volume_is_better(differences, verdict):
    reference, row = report.rows(lines(differences), plan.SUBJECTS[1])
    assert reference.verdict == "reference"
    assert row.verdict == verdict


def test_report_and_figure(tmp_path):
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, lines([0.1, 0.11, 0.12]))))
    text, figure = report.write(tmp_path)
    assert "better: `pamal`" in text.read_text()
    drawn = figure.read_text()
    assert "declared front" in drawn
    assert "ls-sweep (2 of 2 not dominated)" in drawn
    assert report.write(tmp_path)[1].read_text() == drawn  # the same records give the same file


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    """`mtl bench` in an empty folder, with a small comparison."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "SUBJECTS", (PROBLEM,))
    monkeypatch.setattr(report, "SUBJECTS", (PROBLEM,))
    monkeypatch.setattr(plan, "METHODS", ("ls-sweep", "cosmos"))
    return lambda *arguments: CliRunner().invoke(command.app, list(arguments))


def test_fronts_is_run_and_reported_like_a_suite(invoke, tmp_path):
    assert {s["name"]: s["costs"] for s in json.loads(invoke("list", "--json").stdout)["suites"]}["fronts"] == (
        "10 runs, 400 passes"
    )
    done = invoke("run", "fronts", "--seeds", "2")
    assert done.exit_code == 0
    assert "4 runs finished, 0 were there already, 0 failed" in done.stdout
    folder = tmp_path / "bench-results" / "fronts"
    assert "| `cosmos` | 2 |" in (folder / "report.md").read_text()
    assert "chosen: 50 % first task" in (folder / "pareto-mtl-toy.svg").read_text()
    assert "0 runs finished, 2 were there already" in invoke("fronts", "--seeds", "1").stdout  # the short form
    assert invoke("report", str(folder), "--prefer", "0.9", "--json", "rows.json").exit_code == 0
    assert "The models for 100 % first task and 0 % second task:" in (folder / "report.md").read_text()
    assert [r["method"] for r in json.loads(Path("rows.json").read_text())["pareto-mtl-toy"]] == ["ls-sweep", "cosmos"]
    assert invoke("fronts", "--report").exit_code == 0
    assert "The models for 50 %" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "fronts", "--method", "cosmo"), "fronts has no method 'cosmo'. Did you mean 'cosmos'?"),
        (("run", "fronts", "--task", "rf2"), "fronts has no task 'rf2'. It has: pareto-mtl-toy"),
        (("run", "fronts", "--jobs", "2"), "fronts has no use for --jobs"),
        (("run", "fronts", "--device", "cuda", "--timeout", "3"), "fronts has no use for --device, --timeout"),
        (("run", "fronts", "--out", "suite"), "suite/records.jsonl has records of another suite"),
        (("run", "demo", "--out", "here"), "the records in 'here' are of fronts"),
        (("show", "fronts"), "'fronts' compares explorers and has no file"),
        (("report", "here", "--html", "page.html"), "has no use for --html"),
        (("report", "suite", "--prefer", "0.5"), "has no use for --prefer"),
        (("export", "here"), "the records in 'here' are of fronts: `mtl bench report here`"),
        (("verdicts", "here"), "the records in 'here' are of fronts"),
    ],
)
def test_what_fronts_cannot_do_is_refused(invoke, tmp_path, arguments, complaint):
    for name, line in (("suite", {"suite": "demo"}), ("here", {"subject": "pareto-mtl-toy"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "records.jsonl").write_text(json.dumps(line) + "\n")
    error = invoke(*arguments).exception
    assert isinstance(error, ConfigurationError)
    assert complaint in str(error)


def test_the_ring_is_around_the_chosen_preference():
    line = {"preferences": [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]}
    assert [report.nearest(line, p) for p in (1.0, 0.6, 0.1)] == [0, 1, 2]
    assert report.names(plan.SUBJECTS[4]) == ("top-left", "bottom-right")


def test_a_user_with_a_preference_gets_a_number_per_task():
    text = report.choice(list(lines([0.1, 0.1])), plan.SUBJECTS[1], 0.0)
    assert text.splitlines()[0] == "The models for 0 % first task and 100 % second task:"
    assert "| `pamal` | 1.000 [1.000, 1.000] | 0.000 [0.000, 0.000] |" in text


def test_the_page_says_what_the_committed_records_say():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "explanation" / "pareto-sets.md").read_text(encoding="utf-8")
    lines = list(records.lines(root / "benchmarks" / "results" / "fronts" / "records.jsonl"))
    for subject in plan.SUBJECTS:
        found = report.rows(lines, subject)
        assert len(found) == len(plan.METHODS)
        assert report.sentence(subject, found) in page
        assert report.table(found) in page
    assert report.choice(lines, plan.SUBJECTS[4], report.CHOSEN) in page
