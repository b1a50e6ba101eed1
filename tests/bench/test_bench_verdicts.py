"""Compact records carry on a suite and its report; the page of verdicts says what they say; a number repeats."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import mtlcore
from mtlbench import records, runner
from mtlbench import statistics as stats
from mtlbench.command import app
from mtlbench.compact import compact
from mtlbench.formats import Record
from mtlbench.repeat import planned, repeat
from mtlbench.report.comparisons import against
from mtlbench.report.summary import report, summarise
from mtlbench.verdicts import default
from mtlbench.verdicts import page as pages
from mtlbench.verdicts.claims import Claim, judged
from mtlbench.verdicts.page import _named, page
from mtlcore.errors import ConfigurationError
from mtlcore.registry import registry
from support import bench_tiny

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SUITES = sorted(p.parent for p in RESULTS.glob("*/suite.json"))
PAGES = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which a tuned suite has run, and the suite."""
    folder, plugin = tmp_path_factory.mktemp("trained"), bench_tiny.Plugin()
    registry().add(plugin, "tiny")
    suite = bench_tiny.suite(tuning={"trials": 3}, reference="tiny-equal")
    runner.run(suite, folder, console=bench_tiny.quiet(), certify=False)
    registry().remove(plugin)
    return folder, suite


@pytest.fixture
def finished(trained, tiny, tmp_path):
    """A copy of it, while the tiny task is registered."""
    folder, suite = trained
    shutil.copytree(folder, tmp_path / "full")
    return tmp_path / "full", suite


def test_compact_records_give_the_same_report_in_a_tenth_of_the_space(finished, tmp_path):
    full, _ = finished
    written = compact(full, tmp_path / "small")
    assert {p.name for p in written} == {"suite.json", "certificates.json", "records.jsonl", "trials.jsonl"}
    sizes = [(folder / "records.jsonl").stat().st_size for folder in (full, tmp_path / "small")]
    assert sizes[1] < sizes[0] / 3
    before, after = summarise(full), summarise(tmp_path / "small")
    assert before["state"] == after["state"]
    assert before["environment"] == after["environment"]
    assert before["tuned"] == after["tuned"]
    for one, other in zip(before["tasks"], after["tasks"], strict=True):
        for ours, theirs in zip(one["methods"], other["methods"], strict=True):
            assert ours["name"] == theirs["name"]
            if ours["delta_m"] is not None:
                assert theirs["delta_m"]["values"] == pytest.approx(ours["delta_m"]["values"], rel=1e-6)
            assert theirs["conflict"] == pytest.approx(ours["conflict"], rel=1e-6)


def test_a_run_goes_on_from_compact_records(finished, tiny, tmp_path):
    full, suite = finished
    compact(full, tmp_path / "small")
    shutil.copytree(tmp_path / "small", tmp_path / "later")
    lines = (tmp_path / "later" / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "later" / "records.jsonl").write_text("".join(lines[:-1]))
    summary = runner.run(suite, tmp_path / "later", console=tiny.quiet(), certify=False)
    assert (summary.finished, summary.ok) == (1, True)
    again, known = (records.finished(f / "records.jsonl") for f in (tmp_path / "later", full))
    assert again.keys() == known.keys()
    assert {k: r.delta_m for k, r in again.items()} == pytest.approx({k: r.delta_m for k, r in known.items()}, rel=1e-5)


def test_compacting_a_compact_folder_changes_nothing(finished, tmp_path):
    compact(finished[0], tmp_path / "one")
    compact(tmp_path / "one", tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_text() == (tmp_path / "two" / path.name).read_text()


def test_a_folder_is_not_compacted_into_itself_nor_an_empty_one(finished, tmp_path):
    with pytest.raises(ConfigurationError, match="give another folder"):
        compact(finished[0], finished[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no finished runs"):
        compact(tmp_path / "empty", tmp_path / "other")


@pytest.mark.parametrize("method", ["tiny-slow", "single-task"])
def test_a_recorded_run_repeats_to_the_last_digit_that_is_kept(finished, tmp_path, method):
    compact(finished[0], tmp_path / "small")
    _, rows = repeat(tmp_path / "small", "tiny", method, 1)
    assert [r.name for r in rows] == ["delta-m", "a/MAE", "b/MAE"]
    assert all(r.equal for r in rows)


def test_repeat_says_when_the_configuration_or_the_number_is_another(finished, tmp_path):
    compact(finished[0], tmp_path / "small")
    path = tmp_path / "small" / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if (line["method"], line["seed"]) == ("tiny-equal", 0):
            line["delta_m"] += 1.0
        if (line["method"], line["seed"]) == ("tiny-equal", 1):
            line["config_hash"] = "another"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ask = ["repeat", str(tmp_path / "small"), "--task", "tiny", "--method", "tiny-equal"]
    wrong = CliRunner().invoke(app, [*ask, "--seed", "0"])
    assert wrong.exit_code == 1
    assert "differs" in wrong.output
    with pytest.raises(ConfigurationError, match="have changed since"):
        repeat(tmp_path / "small", "tiny", "tiny-equal", 1)
    with pytest.raises(ConfigurationError, match="Did you mean 'tiny-equal'"):
        repeat(tmp_path / "small", "tiny", "tiny-eqal", 1)
    with pytest.raises(ConfigurationError, match="Seeds: 0, 1"):
        repeat(tmp_path / "small", "tiny", "tiny-equal", 7)


def test_the_page_says_what_is_missing(finished, tmp_path):
    full, _ = finished
    text = page(full, "the-folder")
    assert "6 of 6 runs" in text
    assert "Complete: tiny." in text
    lines = (full / "records.jsonl").read_text().splitlines(keepends=True)
    (full / "records.jsonl").write_text("".join(lines[:-1]))
    text = page(full, "the-folder")
    assert "5 of 6 runs" in text
    assert "In part, and not in the means over tasks: tiny (5 of 6)." in text
    assert "mtl bench repeat the-folder --task tiny" in text


def test_the_page_names_what_beats_fixed_weights_and_what_one_task_makes():
    values = {
        "ls": [5.0, 5.1, 4.9],
        "tuned weights": [5.2, 5.0, 5.1],
        "good": [1.0, 1.1, 0.8],
        "so-so": [5.0, 4.9, 5.2],
    }
    table = pd.DataFrame(values)
    for name in ("ls", "tuned weights"):
        named = _named(against(table, name), "better")
        assert named.startswith("good (−4.")
        assert "so-so" not in named
        assert _named(against(table, name), "worse") == "none"


def _runs(**deltas):
    """{(task, method): {seed: run}} from {method: delta-m of each seed}."""
    return {
        ("t", name): {
            seed: Record(task="t", method=name, seed=seed, status="ok", delta_m=v, ratio_to_sum=v)
            for seed, v in enumerate(values)
        }
        for name, values in deltas.items()
    }


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        ([1.0, 1.1, 0.9, 1.05], "supported"),
        ([5.0, 5.2, 4.9, 5.1], "not supported"),
        ([3.0, 1.0, 4.5, 2.5], "undecided"),
        ([1.0], "not enough runs"),
        ([], "no runs"),
    ],
)
def test_a_claim_is_supported_refuted_or_left_open(ours, word):
    runs = _runs(ours=ours, theirs=[3.0, 3.0, 3.1, 2.9])
    (found,) = judged(runs, ["t"], [Claim("S", "ends better than theirs", "ours", "theirs")])
    assert found.word == word


@pytest.mark.parametrize(("ratio", "word"), [(1.1, "supported"), (1.4, "not supported")])
def test_a_claim_about_time_is_held_against_its_bound(ratio, word):
    runs = _runs(ours=[2 * ratio + 0.001 * i for i in range(4)], theirs=[2.0] * 4)
    (found,) = judged(runs, ["t"], [Claim("S", "is cheap", "ours", "theirs", "time", 1.25)])
    assert found.word == word


def candidate(name, delta_m, against, time):
    found = stats.paired([against]) if against else None
    return default.Candidate(name, 1.0, stats.interval([delta_m]), found, time)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([candidate("worse", [0.0, 0.1, 0.2], [2.0, 2.1, 2.2, 2.0, 2.1, 2.3], 0.5)], "first"),
        ([candidate("tied", [0.0, 0.1, 0.2], [-2.0, 1.0, -0.5, 0.7, 1.2, -1.0], 1.02)], "tied"),
        ([candidate("tied, dearer", [0.0, 0.1, 0.2], [-2.0, 1.0, -0.5, 0.7, 1.2, -1.0], 1.2)], "first"),
        ([candidate("tied, cheaper", [9.0, 9.1, 9.2], [-2.0, 1.0, -0.5, 0.7, 1.2, -1.0], 0.9)], "tied, cheaper"),
    ],
    ids=["worse", "tied and better", "tied and dearer", "tied and cheaper"],
)
def test_the_default_is_the_best_by_rank_and_ties_go_to_the_cheaper(others, chosen):
    assert default.choice([candidate("first", [1.0, 1.1, 1.2], [], 1.0), *others]).name == chosen


def test_the_default_of_multitask_is_what_the_committed_records_choose():
    folder = RESULTS / "standard"
    found = default.candidates(report(folder).tasks, pages._runs(folder, records.manifest(folder / records.MANIFEST)))
    assert {"nash-mtl", "fairgrad", "upgrad", "mgda", "gradops"} <= {c.name for c in found}
    assert default.choice(found).name == inspect.signature(mtlcore.MultiTask).parameters["aggregator"].default


@pytest.mark.parametrize("folder", SUITES, ids=lambda p: p.name)
def test_the_committed_records_are_of_configurations_that_this_code_still_makes(folder):
    """Otherwise nobody could repeat them, and a run that goes on from them would begin anew."""
    manifest = records.manifest(folder / records.MANIFEST)
    found = records.finished(folder / records.RECORDS).values()
    assert len(found) >= 90  # a suite of which three tasks are there
    for record in {(r.task, r.method): r for r in found}.values():
        assert planned(manifest, manifest.suite, record).config_hash == record.config_hash, (record.task, record.method)


@pytest.mark.parametrize("folder", SUITES, ids=lambda p: p.name)
def test_the_committed_page_is_what_the_committed_records_say(folder):
    written = PAGES / f"{folder.name}.md"
    assert written.read_text() == page(folder, f"benchmarks/results/{folder.name}"), (
        f"run `mtl bench verdicts benchmarks/results/{folder.name} --out docs/results/{folder.name}.md`"
    )
