"""The report over synthetic records: right numbers, self-contained, readable when little is there."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mtlbench import jobs, progress, protocols, records, runner
from mtlbench.report import curves, figure_files, figures, linked, overall
from mtlbench.report.page import write
from mtlbench.report.summary import report, summarise
from mtlbench.speed import report as speed
from mtlbench.suite import Suite
from mtlcore.errors import ConfigurationError

KEYS = ("top-left/accuracy", "bottom-right/accuracy")


def _record(method, seed, delta, task="multimnist", **changes):
    single = method == "single-task"
    curve = {"step": [10, 20], "by_task": {k.partition("/")[0]: [1.0, 0.5 + 0.01 * seed] for k in KEYS}}
    point = {"min_cosine": -0.2, "mean_cosine": 0.1, "norm_ratio": 2.0, "min_cosine_minibatch": -0.3}
    conflict = [] if single else [{"step": s, **point} for s in (0, 20)]
    return {
        "suite": "s", "task": task, "method": method, "seed": seed, "status": "ok", "config_hash": f"h-{method}",
        "metrics": dict.fromkeys(KEYS, 90.0 - delta), "validation": dict.fromkeys(KEYS, 90.0), "delta_m": delta,
        "seconds_per_step": 0.01, "ratio_to_sum": None if single else 1.5, "peak_memory_mb": 300.0,
        "memory_above_start_mb": 20.0, "environment": {"torch": "2", "cores": 2}, "certificate": None,
        "hyperparameters": {"budget": {"steps": 20, "batch_size": 8, "learning_rate": 0.001, "evaluations": 2},
                            "method": None if single else {"aggregator": method, "options": {}, "detector": None,
                                                           "detector_options": {}, "teleport": None,
                                                           "teleport_options": {}, "brakes": {}}},
        "curves": {"loss": curve, "validation": [], "conflict": conflict},
        "conflict": {} if single else point, "teleports": None, "gradient_source": "sequential",
        "splits": {"train": "ab"},
        **changes,
    }  # fmt: skip


TELEPORTS = {
    "detector_fired": 4, "tried": 2, "accepted": 1, "steps": [3, 9], "seconds": 0.5, "share_of_time": 0.1,
    "refused_because": {"at scale 1 no; at scale 0.5 the loss of a2 changes by +9e-2": 1},
    "conflict_before": 0.8, "conflict_after": 0.3,
    "largest_relative_loss_change": 0.013,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    for seed in range(3):
        for method, delta in (
            ("single-task", 0.0),
            ("sum", 5.0 + 0.1 * seed),
            ("mgda", 1.0 + 0.1 * seed + 0.02 * seed**2),
        ):
            records.append(out / "records.jsonl", _record(method, seed, delta))
        records.append(out / "records.jsonl", _record("cost", seed, 5.0 - seed + 0.5, teleports=TELEPORTS))
    return out


def _page(folder):
    return write(folder, folder / "report.html").read_text()


def test_numbers(folder):
    (task,) = summarise(folder)["tasks"]
    rows = {m["name"]: m for m in task["methods"]}
    assert rows["sum"]["delta_m"]["estimate"] == pytest.approx(5.1)
    versus = rows["mgda"]["versus_reference"]
    assert versus["verdict"] == "better"
    assert versus["difference"]["estimate"] == pytest.approx(-3.9667, abs=1e-3)
    assert versus["probability_of_improvement"] == 1.0
    assert versus["p_holm"] > versus["p"]
    assert rows["cost"]["versus_reference"]["verdict"] == "no significant difference"
    assert rows["cost"]["teleports"]["tried"] == 6
    assert rows["cost"]["teleports"]["refused_because"] == {"the loss of a2 changes by …": 3}
    assert rows["sum"]["versus_single_task"]["verdict"] == "worse"
    assert rows["single-task"]["metrics"][KEYS[0]]["estimate"] == 90.0


def test_the_page_shows_what_the_steps_did_beside_what_the_gradients_do(tmp_path):
    point = {"min_cosine": -0.2, "mean_cosine": 0.1, "norm_ratio": 2.0, "min_cosine_minibatch": -0.3}
    taken = {**point, "steps_in_conflict": 0.375, "step_cosine": -0.125, "step_share_momentum": 0.625}
    rows = [("single-task", {}), ("sum", point), ("mgda", taken)]
    found = _folder_of(tmp_path, [_record(m, s, 0.5 * s, conflict=c) for s in range(2) for m, c in rows])
    table = _page(found).split("steps in<br>conflict")[1].split("</table>")[0]
    rows = {m: next(r for r in table.split("<tr>") if f">{m}<" in r) for m in ("sum", "mgda")}
    assert "38 %" in rows["mgda"]
    assert "62 %" in rows["mgda"]
    assert "38 %" not in rows["sum"]
    rows = [("single-task", {}), ("sum", point), ("mgda", point)]
    unseen = _folder_of(tmp_path / "unseen", [_record(m, s, 0.5 * s, conflict=c) for s in range(2) for m, c in rows])
    assert "smallest in a<br>mini-batch" in _page(unseen)
    assert "steps in<br>conflict" not in _page(unseen), "nobody looked: columns of dashes leave the page"


def test_the_report_says_which_identifier_orders_the_methods_as_the_results_do(tmp_path):
    """More disentangled, better; a condition number that is the better the larger it is; a cosine that says nothing."""
    records = [_record("single-task", 0, 0.0, conflict={})]
    for rank, (name, cosine) in enumerate((("sum", 0.1), ("mgda", -0.1), ("pcgrad", 0.0), ("ls", 0.0))):
        point = {"min_cosine": cosine, "disentanglement": 0.9 - 0.1 * rank, "condition": 100.0 / (1 + rank)}
        records.append(_record(name, 0, float(rank), conflict=point))
    (folder := tmp_path / "found").mkdir()
    found = _folder_of(folder, records)
    rows = {i["name"]: i for i in summarise(found)["tasks"][0]["identifiers"]}
    assert list(rows) == ["min_cosine", "condition", "disentanglement"]
    assert (rows["disentanglement"]["similarity"], rows["condition"]["similarity"]) == (1.0, -1.0)
    assert abs(rows["min_cosine"]["similarity"]) < 0.3
    assert rows["disentanglement"]["p"] == pytest.approx(2 / 24)
    assert rows["disentanglement"]["p_holm"] == pytest.approx(6 / 24)
    assert {r["methods"] for r in rows.values()} == {4}
    page = _page(found).split("What tells how well the tasks go together?")[1].split("</table>")
    assert "0.70" in next(r for r in page[0].split("<tr>") if ">pcgrad<" in r)
    assert "disentanglement_cosine" not in page[0], "nobody measured it"
    last = page[1].split("<tr>")[-1]
    assert all(cell in last for cell in ("feature disentanglement, overlap", "+1.00", "0.083", "0.25"))


def test_the_study_of_identifiers_has_a_column_per_task_and_a_star_where_it_is_clear(tmp_path, capsys):
    from mtlbench.studies import identifiers

    records = [_record("single-task", 0, 0.0, conflict={})]
    for rank in range(6):
        point = {"mean_cosine": -float(rank), "norm_ratio": None if rank == 5 else 1.0 + rank % 2}
        records.append(_record(f"m{rank}", 0, float(rank), conflict=point))
    identifiers.main([str(_folder_of(tmp_path, records))])
    head, _, cosine, ratio = capsys.readouterr().out.splitlines()
    assert head == "| identifier | multimnist (6 methods) |"
    assert cosine == "| mean cosine | +1.00* |"
    assert ratio == "| largest / smallest gradient norm | +0.00 (5) |"


def test_the_verdict_says_in_words_what_was_found_and_what_was_not(folder):
    text = " ".join(summarise(folder)["verdict"])
    assert "better than sum: mgda (-4.0)" in text
    assert "the other one shows no significant difference" in text


def test_no_difference_is_a_verdict_with_its_reach(tmp_path):
    for seed in range(3):
        for method, delta in (("single-task", 0.0), ("sum", seed % 2), ("mgda", (seed + 1) % 2)):
            records.append(tmp_path / "records.jsonl", _record(method, seed, float(delta)))
    first = summarise(tmp_path)["verdict"][0]
    assert "no significant difference" in first
    assert "does not show that they are equal" in first
    assert re.search(r"below about \d\.\d points", first)
    assert "Holm" not in first


def test_the_reach_is_that_after_correction(tmp_path):
    """What a p-value beside it had to pass, the difference that would go unseen has to pass, too."""
    rows = [("single-task", lambda s: 0.0), ("sum", lambda s: 0.0)]
    rows += [(f"m{i}", lambda s: float(s % 2)) for i in range(4)]
    folder = _folder_of(tmp_path, [_record(m, s, of(s)) for s in range(3) for m, of in rows])
    first = summarise(folder)["verdict"][0]
    # Differences 0, 1, 0: standard error 1/3; t of 0.05 / 4 / 2 with two degrees of freedom is 8.860.
    assert "below about 3.0 points would typically have gone unseen, with Holm's correction for 4 comparisons" in first


def test_a_test_that_cannot_show_anything_says_so(tmp_path):
    rows = [("single-task", 0.0), ("sum", 0.0), *((f"m{i}", 5.0) for i in range(26))]
    folder = _folder_of(tmp_path, [_record(m, s, d + 0.1 * (s if d else 0)) for s in range(10) for m, d in rows])
    first = summarise(folder)["verdict"][0]
    assert "cannot show any difference, however large, with Holm's correction for 26 comparisons; add seeds" in first
    assert "exact sign flips from 10 on" in _page(folder)


def _three_seeds(*rows, seeds=range(3)):
    """Records of (method, delta-m at seed 0), growing unevenly with the seed."""
    return [
        _record(m, s, delta, delta_m=None if delta is None else delta + 0.1 * s + 0.02 * s * s * (m == "mgda"))
        for s in seeds
        for m, delta in rows
    ]


def _folder_of(tmp_path, *groups):
    for record in (r for group in groups for r in group):
        records.append(tmp_path / "records.jsonl", record)
    return tmp_path


def test_only_seeds_that_both_have_are_called_paired(tmp_path):
    folder = _folder_of(
        tmp_path,
        _three_seeds(("single-task", 0.0), ("sum", 5.0), seeds=range(5)),
        _three_seeds(("mgda", 1.0)),
        _three_seeds(("late", 1.0), seeds=[1]),
    )
    text = " ".join(summarise(folder)["verdict"])
    assert "better than sum: mgda (-4.0) (3 paired seeds" in text
    assert "not enough paired seeds to compare late with sum" in text
    assert "shows no significant difference" not in text
    assert "5 paired seeds where a row does not say otherwise" in _page(folder)
    assert "3 runs</span>" in _page(folder)


def test_seeds_that_differ_are_not_called_one_run(tmp_path):
    folder = _folder_of(
        tmp_path,
        _three_seeds(("single-task", 0.0), ("sum", 5.0)),
        _three_seeds(("mgda", 1.0), seeds=range(3, 6)),
    )
    assert "no method shares two seeds with sum" in " ".join(summarise(folder)["verdict"])


def test_runs_without_delta_m_are_named_and_not_counted(tmp_path):
    rows = _three_seeds(("single-task", 0.0), ("sum", 5.0), ("mgda", 1.0))
    rows[-1]["delta_m"] = None  # its last seed diverged
    found = summarise(_folder_of(tmp_path, rows))
    assert found["state"]["unscored"] == ["mgda on multimnist, seed 2"]
    assert "(2 paired seeds" in " ".join(found["verdict"])
    assert "without delta-m" in _page(tmp_path)
    assert "flatters a method that diverges" in _page(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tasks", [["multimnist"], ["multimnist", "rf1"]])
@pytest.mark.parametrize("unscored", [["mgda"], ["sum", "mgda"]])
def test_a_method_without_any_delta_m_does_not_spoil_the_report(tmp_path, tasks, unscored):
    for task in tasks:
        rows = _three_seeds(("single-task", 0.0), ("sum", 5.0), ("mgda", 1.0))
        changes = {m: {"delta_m": None} for m in unscored}
        _folder_of(tmp_path, [{**r, "task": task, **changes.get(r["method"], {})} for r in rows])
    assert "no runs</span>" in _page(tmp_path) or len(unscored) == 2
    overall = summarise(tmp_path)["overall"]
    assert overall is None or not {m["name"] for m in overall["methods"]} & set(unscored)


def test_equal_methods_share_their_rank(tmp_path):
    for task in ("multimnist", "rf1"):
        rows = _three_seeds(("single-task", 0.0), ("sum", 5.0), ("ls", 5.0), ("pcgrad", 6.0))
        _folder_of(tmp_path, [{**r, "task": task} for r in rows])
    ranks = {m["name"]: m["mean_rank"] for m in summarise(tmp_path)["overall"]["methods"]}
    assert ranks == {"sum": 1.5, "ls": 1.5, "pcgrad": 3.0}


def test_missing_is_what_the_same_command_would_do(tiny, tmp_path):
    suite = tiny.suite("tiny-equal", "tiny-refuted", seeds=3)
    records.append(tmp_path / "records.jsonl", _record("single-task", 0, 0.0, task="tiny", metrics={}))
    manifest = {"suite": suite.model_dump(mode="json"), "seeds": 2, "refused": ["tiny-refuted"]}
    (tmp_path / "suite.json").write_text(json.dumps(manifest))
    assert summarise(tmp_path)["state"]["missing"] == [
        "single-task on tiny, seed 1", "tiny-equal on tiny, seed 0", "tiny-equal on tiny, seed 1",
    ]  # fmt: skip


def test_the_page_is_self_contained(folder):
    html = _page(folder)
    carried = r"data:text/csv;charset=utf-8;base64,[A-Za-z0-9+/=]*\""
    assert not re.search(rf"(?i)\b(?:src|href)\s*=\s*[\"'](?!#|{carried})", html)
    assert "://" not in html
    assert "@import" not in html
    assert "<script" not in html
    assert "url(" not in html


_FILE = re.compile(
    r'</table></div>\n<p class="file"><a download="([^"]*)" href="data:text/csv;charset=utf-8;base64,([^"]*)"'
)


def test_every_table_can_be_taken_away_as_a_file_without_scripts(folder):
    """Rows, names, signs and gaps are those that the page shows."""
    html = _page(folder)
    files = _FILE.findall(html)
    assert len(files) == html.count("<table>") > 8
    assert len({name for name, _ in files}) == len(files)
    tables = [list(csv.reader(io.StringIO(base64.b64decode(content).decode()))) for _, content in files]
    for rows in tables:
        assert len({len(row) for row in rows}) == 1, rows  # as many cells in every row
    first = tables[0]
    assert first[0][:3] == ["Method", "delta-m", "95 % interval"]
    assert [row[0] for row in first[1:]] == ["sum", "mgda", "cost"]
    assert float(first[1][1]) == pytest.approx(5.1)
    (curves,) = [t for t in tables if t[0][:2] == ["Method", "smallest cosine"]]
    assert float(curves[1][1]) == -0.2  # with a sign that programs read


def test_any_text_of_a_table_survives_in_its_file():
    cells = '<tr><td class="n">−1.5</td><td>a, &quot;b&quot; &lt;c&gt;<svg><text>9</text></svg></td><td>–</td></tr>'
    assert linked.as_csv(f"<thead>{cells}</thead><tr><td></td></tr>") == '-1.5,"a, ""b"" <c>",\n'


def test_every_figure_is_well_formed_and_described(folder):
    html = _page(folder)
    drawn = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(drawn) > 10
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.get("aria-label") or root.get("aria-hidden")
        assert "nan" not in svg.lower()
        assert "inf" not in svg.lower()


def test_curves_are_among_the_figures_for_a_paper(tmp_path):
    for seed in range(3):
        record = _record("mgda", seed, 1.0)
        record["curves"]["validation"] = [{"step": n, "score": 0.1 * n} for n in (5, 10)]
        records.append(tmp_path / "records.jsonl", _record("single-task", seed, 0.0))
        records.append(tmp_path / "records.jsonl", record)
    written = figure_files.write_figures(report(tmp_path), tmp_path / "figures")
    assert {"multimnist-validation.svg", "multimnist-validation.pdf"} <= {path.name for path in written}
    assert all(path.stat().st_size for path in written)


def test_a_phone_gets_large_figures_that_fit_it(folder):
    """They were as wide as on a large screen, and looked cut off."""
    narrow = re.findall(r'<svg class="narrow".*?</svg>', _page(folder), flags=re.S)
    assert narrow
    for figure in map(ElementTree.fromstring, narrow):
        width, height = (float(figure.get(side)) for side in ("width", "height"))
        assert width <= 340
        assert f"0 0 {figure.get('width')} {figure.get('height')}" == figure.get("viewBox")
        for text in figure.iter("text"):
            if text.get("y") is not None:
                assert 0 < float(text.get("y")) <= height, text.text
                assert 0 <= float(text.get("x")) <= width, text.text


def test_a_report_needs_no_torch():
    """Its import took more memory than 50,000 records do."""
    code = "import sys, mtlbench.report.page, mtlbench.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_of_lines_that_end_together_stay_in_the_figure():
    """Twelve lines that end at 1 had names above the frame, one over the other."""
    series = {f"method {i}": ([0.0, 1.0], [0.0, 1.0]) for i in range(12)}
    for figure in re.findall(r"<svg.*?</svg>", figures.lines(series, "x", "y", "lines", (0.0, 1.0))):
        names = [t for t in ElementTree.fromstring(figure).iter("text") if (t.text or "").startswith("method")]
        places = sorted(float(t.get("y")) for t in names)
        assert len(places) == 12
        assert places[0] > 0
        assert places[-1] < 320
        assert min(b - a for a, b in itertools.pairwise(places)) >= 13.9


def test_the_page_shows_all_that_it_must(folder):
    html = _page(folder)
    for part in (
        "Verdict", "delta-m", "95 %", "accuracy ↑", "↑", "ratio to a plain", "peak memory", "Training loss",
        "Conflict", "Detections and teleports", "Certificates", "Environment", "mtl bench run", "records.jsonl",
        "prefers-color-scheme", "@media print", "no significant difference",
    ):  # fmt: skip
        assert part in html, part


def test_a_run_that_says_nothing_of_its_gradients_is_no_number(tmp_path):
    """pandas makes NaN of a missing text."""
    rows = _three_seeds(("single-task", 0.0), ("sum", 5.0))
    _folder_of(
        tmp_path, [{**r, "gradient_source": r["gradient_source"] if r["method"] == "sum" else None} for r in rows]
    )
    html = _page(tmp_path)
    assert "one plain network per task" in html
    assert ">nan<" not in html


def test_json_has_the_same_numbers(folder, tmp_path):
    write(folder, folder / "report.html", tmp_path / "numbers.json")
    assert json.loads((tmp_path / "numbers.json").read_text()) == summarise(folder)


def test_names_are_escaped(tmp_path):
    nasty = "<script>alert(1)</script>"
    for seed in range(2):
        for method, delta in (("single-task", 0.0), (nasty, 1.0 + seed)):
            records.append(tmp_path / "records.jsonl", _record(method, seed, delta))
    assert "<script" not in _page(tmp_path)


def test_records_of_another_writer_need_only_what_the_design_promises(tmp_path):
    public = (
        "suite", "task", "method", "seed", "status", "metrics", "delta_m", "seconds_per_step", "peak_memory_mb",
        "environment",
    )  # fmt: skip
    rows = _three_seeds(("single-task", 0.0), ("sum", 5.0), ("mgda", 1.0))
    _folder_of(tmp_path, [{k: r[k] for k in public} for r in rows])
    assert "better than sum: mgda (-4.0)" in " ".join(summarise(tmp_path)["verdict"])
    assert "not recorded" in _page(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "x"}, {"seed": None}, {"task": None}, {"method": 3}, {"metrics": [1]}, {"environment": "mine"},
        {"metrics": {KEYS[0]: "90"}}, {"delta_m": "5"}, {"ratio_to_sum": "1.5"}, {"curves": [1]},
        {"curves": {"loss": 1}}, {"conflict": [0.1]}, {"diagnostics": {"a": "b"}}, {"teleports": {"tried": 1}},
        {"splits": ["a"]}, {"hyperparameters": {"budget": [3]}}, {"hyperparameters": {"method": "sum"}},
        {"config_hash": 7},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_record_is_counted_and_left_out(tmp_path, change):
    _folder_of(tmp_path, _three_seeds(("single-task", 0.0), ("sum", 5.0)), [{**_record("sum", 9, 1.0), **change}])
    found = summarise(tmp_path)
    assert (found["state"]["torn_lines"], found["state"]["finished"]) == (1, 6)
    (where,) = found["state"]["unreadable"]
    assert where.startswith(f"line 7: {next(iter(change))}")
    assert where.partition(". Input")[0][:20] in _page(tmp_path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"current": ["a"]}, "current: "),
        ({"current": {"multimnist": "a"}}, "current.multimnist: "),
        ({"tuned": {"multimnist": {"sum": {"learning_rate": 1.0}}}}, "tuned.multimnist.sum.trial: "),
        ({"seeds": "3"}, "seeds: "),
        ({"left_out": 3}, "left_out: "),
        ({"refused": [3]}, "refused.0: "),
        ({"suite": {"name": "s"}}, "suite.title: "),
        ({"suite": [1]}, "suite: "),
    ],
    ids=repr,
)
def test_a_suite_json_of_another_shape_is_an_error_that_names_the_file_the_key_and_the_way_out(folder, change, place):
    (folder / "suite.json").write_text(json.dumps(change))
    with pytest.raises(ConfigurationError, match=rf"suite.json is damaged \({place}.*\)\. Delete it") as caught:
        _page(folder)
    with pytest.raises(ConfigurationError, match=re.escape(place)):
        runner.run(Suite(name="s", title="t", tasks=["multimnist"], methods=["sum"]), folder)
    assert "no record is lost" in str(caught.value)
    (folder / "suite.json").unlink()
    assert "better than sum: mgda" in _page(folder)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([1], "Input should be an object"),
        ({"a": 1}, "a: "),
        ({"a": {"kind": "aggregator", "name": "sum", "passed": "yes", "summary": ""}}, "a.passed: "),
        ({"a": {"kind": "aggregator", "name": "sum", "passed": True, "summary": "", "rows": [3]}}, "a.rows.0: "),
    ],
    ids=repr,
)
def test_a_certificates_json_of_another_shape_too(folder, content, place):
    (folder / "certificates.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=rf"certificates.json is damaged \(.*{place}"):
        _page(folder)


def test_a_record_need_not_say_everything_about_its_method(folder):
    records.append(folder / "records.jsonl", _record("own", 0, 1.0, hyperparameters={"method": {"options": {"x": 1}}}))
    assert "<code>?</code> {&#39;x&#39;: 1}" in _page(folder)


def test_nan_that_another_writer_wrote_is_a_missing_number(tmp_path):
    row = json.dumps(_record("sum", 1, 0.0, delta_m=float("nan")))
    (tmp_path / "records.jsonl").write_text(row + "\n")
    assert summarise(tmp_path)["state"]["unscored"] == ["sum on multimnist, seed 1"]


def test_any_text_of_an_error_can_be_shown(tmp_path):
    failed = _record("sum", 0, 0.0, status="failed", error="no file 'caf\udce9'")
    assert "no file &#39;caf\\udce9&#39;" in _page(_folder_of(tmp_path, [failed]))


def test_a_page_that_cannot_be_written_is_an_error_of_ours(folder):
    (folder / "report.html").mkdir()
    with pytest.raises(ConfigurationError, match="report.html cannot be written: Is a directory"):
        _page(folder)


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    assert "no finished runs" in _page(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="run `mtl bench run"):
        summarise(tmp_path / "nowhere")


def test_partial_records_baselines_only_one_seed_failures_and_torn_lines(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, _record("single-task", 0, 0.0))
    assert "only the single-task baselines" in _page(tmp_path)
    records.append(path, _record("sum", 0, 1.0))
    records.append(path, _record("mgda", 0, 0.0, status="failed", error="RuntimeError: boom", metrics=None, curves={}))
    with path.open("ab") as file:
        file.write(b'{"torn')
    html = _page(tmp_path)
    assert "RuntimeError: boom" in html
    assert "1 line of the records could not be read" in html
    assert "one run" in html


def test_runs_of_an_earlier_configuration_are_not_mixed_in(tiny, tmp_path):
    runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, console=tiny.quiet())
    runner.run(tiny.suite("tiny-equal", budget={"steps": 24}), tmp_path, seeds=1, console=tiny.quiet())
    summary = summarise(tmp_path)
    assert summary["state"]["outdated"] == 2
    assert summary["tasks"][0]["budget"]["steps"] == 24
    assert "earlier version of the suite" in _page(tmp_path)


def test_runs_that_nobody_was_asked_about_are_named_beside_the_certificates(tiny, tmp_path):
    """Certificates of an earlier run in the folder are not theirs."""
    runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, console=tiny.quiet())
    assert "made without asking" not in _page(tmp_path)
    runner.run(tiny.suite("tiny-equal", "tiny-slow"), tmp_path, seeds=1, certify=False, console=tiny.quiet())
    assert "Runs of tiny-slow in this folder were made without asking" in _page(tmp_path)


def test_without_a_suite_the_newest_of_several_configurations_is_shown(tmp_path):
    rows = _three_seeds(("single-task", 0.0), ("sum", 5.0))
    _folder_of(tmp_path, [{**r, "config_hash": "old"} for r in rows])
    _folder_of(tmp_path, [{**r, "config_hash": "new", "delta_m": r["delta_m"] + 1.0} for r in rows])
    found = summarise(tmp_path)
    assert (found["state"]["finished"], found["state"]["outdated"]) == (6, 6)
    (row,) = [m for m in found["tasks"][0]["methods"] if m["name"] == "sum"]
    assert row["delta_m"]["values"] == pytest.approx({"0": 6.0, "1": 6.1, "2": 6.2})


def test_a_run_in_progress_is_not_outdated(tiny, tmp_path, monkeypatch):
    """The manifest is there before the first record of a task."""
    real = jobs.do_job

    def stops(job, progress):
        if job.method is not None:
            raise KeyboardInterrupt
        return real(job, progress)

    monkeypatch.setattr(progress, "do_job", stops)
    with pytest.raises(KeyboardInterrupt):
        runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, console=tiny.quiet())
    state = summarise(tmp_path)["state"]
    assert (state["finished"], state["outdated"]) == (1, 0)


def _follows(folder, protocol, task, budget):
    """A folder whose suite names a protocol, with records made with this budget."""
    plain = {"steps": 20, "batch_size": 8, "learning_rate": 1e-3, "evaluations": 2, **budget}
    for method in ("single-task", "ls"):
        used = {"budget": plain, "method": None if method == "single-task" else {"aggregator": method}}
        records.append(folder / "records.jsonl", _record(method, 0, 1.0, task=task, hyperparameters=used))
    suite = Suite(name="s", title="S", protocol=protocol, tasks=(task,), methods=("ls",))
    content = {"suite": suite.model_dump(mode="json"), "source": "s", "seeds": 1, "current": {}, "tuned": {}}
    records.replace(folder / "suite.json", content)
    return summarise(folder)["tasks"][0], _page(folder)


def test_rules_of_a_run_stand_under_its_task(tmp_path):
    """What was used, not what the protocol's name promises."""
    budget = {
        "optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "schedule": "constant", "selection": "last",
        "precision": "bf16", "weight_decay": 1e-4,
    }  # fmt: skip
    found, page = _follows(tmp_path / "changed", "validation", "multimnist", budget)
    expected = (
        "SGD (momentum = 0.9, weight_decay = 0.0001), schedule constant, bf16. Judged: the end of training."
    )  # fmt: skip
    assert found["rules"] == expected
    assert expected in page
    assert found["departures"] == ["selection = last (protocol: best-validation)"]
    assert "not the protocol validation as it stands" in page
    assert "that validation chose" not in page
    assert "validation</code> with changes" in page
    found, page = _follows(tmp_path / "plain", "validation", "multimnist", {})
    assert found["rules"] == "Adam, schedule cosine. Judged: the checkpoint with the best validation score."
    assert found["departures"] == []
    assert "as it stands" not in page
    assert "with changes" not in page


def test_departures_from_the_protocol_of_a_line_are_named(tmp_path):
    own = protocols.budget_for("nash-mtl", "nyuv2").model_dump(exclude_none=True)
    found, page = _follows(tmp_path / "own", "nash-mtl", "nyuv2", own)
    assert found["departures"] == []
    assert "the mean of the test metrics at the ends of the last 10 epochs, trained on the validation part" in page
    shorter = own | {"epochs": 2, "last_epochs": 1, "optimizer": "SGD"}
    found, page = _follows(tmp_path / "other", "nash-mtl", "nyuv2", shorter)
    assert found["departures"] == [
        "epochs = 2 (protocol: 200.0)", "optimizer = SGD (protocol: Adam)", "last_epochs = 1 (protocol: 10)",
    ]  # fmt: skip
    assert "These numbers do not belong into a table of that protocol" in page


@pytest.mark.parametrize("value", [None, 3, [], {"a": []}, "x", float("nan")])
def test_any_rules_of_another_writer_can_be_shown(tmp_path, value):
    names = ("optimizer", "optimizer_options", "schedule", "schedule_options", "selection", "weight_decay", "epochs")
    found, _ = _follows(tmp_path, "nash-mtl", "celeba", dict.fromkeys(names, value))
    assert "Judged" in found["rules"]


def test_several_tasks_are_pooled_by_stratified_bootstrap(folder):
    for seed in range(3):
        for method, delta in (("single-task", 0.0), ("sum", 7.0 + seed), ("mgda", 2.0 + 0.5 * seed)):
            records.append(folder / "records.jsonl", _record(method, seed, delta, task="another"))
    overall = summarise(folder)["overall"]
    rows = {m["name"]: m for m in overall["methods"]}
    assert set(rows) == {"sum", "mgda"}  # cost has no runs on the second task
    assert rows["sum"]["n"] == 6
    assert rows["mgda"]["mean_rank"] == 1.0
    assert rows["mgda"]["probability_of_improvement"] == 1.0
    assert "Performance profile" in _page(folder)


def test_methods_of_a_front_are_joined_in_a_figure(tiny, tmp_path):
    line = [{"name": n, "aggregator": "tiny-equal", "front": "g"} for n in ("one", "two")]
    suite = tiny.suite("tiny-slow", *line, reference="one")
    runner.run(suite, tmp_path, seeds=1, certify=False, console=tiny.quiet())
    html = _page(tmp_path)
    assert "Trade-off between tasks" in html
    assert "a: MAE in m (lower is better)" in html


def _front(tmp_path, points, task="multimnist", seeds=2):
    """A folder in which methods of one front have these accuracies, and the single-task networks 80 and 50."""
    methods = [{"name": m, "aggregator": "sum", "front": "g"} for m in points]
    suite = Suite(name="s", title="t", tasks=[task], reference="sum", methods=[{"name": "sum"}, *methods])
    (tmp_path / "suite.json").write_text(json.dumps({"suite": suite.model_dump(mode="json")}))
    for m, metrics in {"single-task": (80.0, 50.0), "sum": (80.0, 50.0), **points}.items():
        for seed in range(seeds):
            given = dict(zip(KEYS, metrics(seed) if callable(metrics) else metrics))
            records.append(tmp_path / "records.jsonl", _record(m, seed, 0.0, task=task, metrics=given))
    return tmp_path


def test_a_front_has_its_hypervolume_and_spread_against_the_single_task_networks(tmp_path):
    # Relative worsenings: (0.1, 0), (0, 0.2), and (0.2, 0.3), which is dominated.
    folder = _front(tmp_path, {"one": (72.0, 50.0), "two": (80.0, 40.0), "three": (64.0, 35.0)})
    (front,) = summarise(folder)["tasks"][0]["fronts"]
    assert (front["name"], front["methods"]) == ("g", ["one", "two", "three"])
    assert front["hypervolume"]["estimate"] == pytest.approx(100 * (0.9 * 1.0 + 1.0 * 0.8 - 0.9 * 0.8))
    assert (front["hypervolume"]["n"], front["not_dominated"]) == (2, 2.0)
    assert front["best"]["name"] == "one"
    assert front["best"]["hypervolume"]["estimate"] == pytest.approx(90.0)
    assert front["spread"]["estimate"] == pytest.approx((10.0 + 20.0) / 2)
    assert re.search(r"<td class=.n.>98\.0</td>.*<td class=.n.>90\.0 .*one.*<td class=.n.>15\.0</td>", _page(folder))


def test_fronts_are_made_seed_by_seed_of_seeds_in_which_all_points_are_there(tmp_path):
    folder = _front(tmp_path, {"one": lambda s: (72.0 + 4.0 * s, 50.0), "two": lambda s: (80.0, 40.0 if s else None)})
    (front,) = summarise(folder)["tasks"][0]["fronts"]
    assert front["hypervolume"]["n"] == 1
    assert front["hypervolume"]["estimate"] == pytest.approx(100 * (0.95 + 0.8 - 0.95 * 0.8))


def test_a_front_with_a_point_that_has_no_metrics_is_drawn_without_it(tmp_path):
    folder = _front(tmp_path, {"one": (72.0, 50.0), "two": (80.0, 40.0), "gone": (None, 40.0)})
    assert summarise(folder)["tasks"][0]["fronts"][0]["hypervolume"]["n"] == 0
    drawn = re.findall(r'<svg class="(\w+)"([^>]*aria-label="front: .*?</svg>)', _page(folder))
    assert [kind for kind, _ in drawn] == ["wide", "narrow"]
    for _, figure in drawn:
        assert re.search(r'class="own own-0" d="M[^L"]*L[^L"]*"', figure), "a line through two points"


def test_without_the_task_directions_are_unknown_and_nothing_is_said_of_fronts(tmp_path):
    folder = _front(tmp_path, {"one": (72.0, 50.0), "two": (80.0, 40.0)}, task="not-installed")
    (task,) = summarise(folder)["tasks"]
    assert task["fronts"] == []
    page = _page(folder)
    assert "directions and units of its metrics are unknown" in page
    assert "Trade-off" not in page
    assert not re.search("accuracy [↑↓]", page)


def test_teleporting_is_compared_with_the_same_method_without(tmp_path):
    path = tmp_path / "records.jsonl"
    for seed in range(3):
        records.append(path, _record("single-task", seed, 0.0))
        records.append(path, _record("mgda", seed, 2.0 + 0.1 * seed))
        moving = _record("mgda + COST", seed, 1.0 + 0.1 * seed, teleports=TELEPORTS, ratio_to_sum=1.8)
        moving["hyperparameters"]["method"] |= {"aggregator": "mgda", "teleport": "lora"}
        records.append(path, moving)
    (row,) = summarise(tmp_path)["tasks"][0]["teleporting"]
    assert (row["name"], row["without"], row["verdict"]) == ("mgda + COST", "mgda", "better")
    assert row["difference"]["estimate"] == pytest.approx(-1.0)
    assert row["extra_time"] == pytest.approx(0.2)
    assert "With and without teleports" in _page(tmp_path)


def test_tuning_each_for_itself_does_not_part_a_method_from_itself_without_teleports(tmp_path):
    """Tuning may choose other options with teleports than without: they are still one comparison."""
    base = {"name": "cagrad", "search": {"c": [0.2, 0.8]}}
    suite = Suite(
        name="s", title="t", tasks=["multimnist"], reference="cagrad", tuning={"trials": 3},
        methods=[base, {**base, "name": "cagrad + COST", "aggregator": "cagrad", "teleport": "lora"}],
    )  # fmt: skip
    manifest = {
        "suite": suite.model_dump(mode="json"),
        "current": {"multimnist": [f"h-{m.name}" for m in suite.methods]},
    }
    (tmp_path / "suite.json").write_text(json.dumps(manifest))
    for seed in range(3):
        for method, c, teleport in (("cagrad", 0.2, None), ("cagrad + COST", 0.8, "lora")):
            record = _record(method, seed, 2.0 - 0.5 * (teleport is not None) + 0.1 * seed)
            record["hyperparameters"]["method"] |= {"aggregator": "cagrad", "teleport": teleport, "options": {"c": c}}
            records.append(tmp_path / "records.jsonl", record)
    (row,) = summarise(tmp_path)["tasks"][0]["teleporting"]
    assert (row["name"], row["without"]) == ("cagrad + COST", "cagrad")
    assert row["difference"]["estimate"] == pytest.approx(-0.5)


@pytest.mark.parametrize(("looked", "shown"), [({"detector_looked": 40}, 120), ({}, None)])
def test_how_often_a_detector_fired_is_shown_against_how_often_it_looked(tmp_path, looked, shown):
    for seed in range(3):
        records.append(tmp_path / "records.jsonl", _record("cost", seed, 1.0, teleports={**TELEPORTS, **looked}))
    (row,) = summarise(tmp_path)["tasks"][0]["methods"]
    assert (row["teleports"]["detector_fired"], row["teleports"]["detector_looked"]) == (12, shown)
    assert "of looks" in _page(tmp_path)


def test_names_in_a_scatter_do_not_cover_one_another():
    points = {f"method number {i}": (1.0 + 0.001 * i, 2.0) for i in range(6)}
    for svg in re.findall(r"<svg.*?</svg>", figures.scatter(points, "x", "y", "many at one place")):
        places = re.findall(r'class="name" x="([-\d.]+)" y="([-\d.]+)"', svg)
        assert len({y for _, y in places}) >= 3
        assert len(set(places)) == 6


def test_ticks_are_round_and_inside():
    assert figures.nice_ticks(-0.13, 1.02, 5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert figures.Axis(0.01, 2.0, 0, 100, log=True).ticks() == pytest.approx([0.01, 0.1, 1.0])
    assert figures.Axis(0.0, 10.0, 0.0, 100.0)(5.0) == 50.0
    assert figures.Axis(1.0, 100.0, 0.0, 100.0, log=True)(10.0) == pytest.approx(50.0)


def test_only_the_reference_is_called_so(tmp_path):
    """The others have no comparison where the reference has no runs, and are no reference for that."""
    for seed in range(3):
        for method, delta in (("single-task", 0.0), ("mgda", 1.0 + seed), ("upgrad", 2.0 + seed)):
            records.append(tmp_path / "records.jsonl", _record(method, seed, delta))
    assert '<span class="chip">reference</span>' not in _page(tmp_path)
    assert "no finished run of the reference sum" in summarise(tmp_path)["verdict"][0]
    for seed in range(3):
        records.append(tmp_path / "records.jsonl", _record("sum", seed, 3.0 + seed))
    assert _page(tmp_path).count('<span class="chip">reference</span>') == 1


def test_an_interval_that_goes_on_beyond_the_axis_has_an_arrowhead_there():
    strip = figures.strip
    inside = str(strip((-1.0, 1.0), 0.0, -0.5, 0.5, [], "inside"))
    left, both = (str(strip((-1.0, 1.0), 0.0, -5.0, high, [], "clipped")) for high in (0.5, 5.0))
    assert [svg.count('class="interval clipped"') for svg in (inside, left, both)] == [0, 1, 2]
    assert [svg.count('<line class="interval"') for svg in (inside, left, both)] == [3, 2, 1]
    assert 'd="M13.0 9.0L8.0 13.0L13.0 17.0"' in left, "it points outwards, at the edge"


def test_the_caption_explains_the_arrowheads(folder):
    assert "an arrowhead where it goes on beyond the axis" in _page(folder)


# --- what anybody may put into a folder -----------------------------------------------------------------------------


DEEP = b"[" * 100_000
CURVES = {
    "unequal loss": {"loss": {"step": [1, 2, 3], "by_task": {"a": [1.0], "b": []}}, "conflict": [], "validation": []},
    "no steps": {"loss": {"step": [], "by_task": {"a": []}}, "conflict": [], "validation": []},
    "no tasks": {"loss": {"step": [1, 2], "by_task": {}}, "conflict": [{}], "validation": []},
    "gaps": {"loss": {"step": [1, 1], "by_task": {"a": [None, 2.0]}}, "conflict": [{"step": None}, {"step": 3}],
             "validation": [{"step": 1, "score": None}]},
    "huge": {"loss": {"step": [1, 2], "by_task": {"a": [1e308, -1e308]}},
             "conflict": [{"step": 1, "min_cosine": 1e308}], "validation": [{"step": 1e308, "score": 1e308}]},
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES)
def test_curves_of_any_shape_are_drawn_as_far_as_they_go(folder, curves):
    records.append(folder / "records.jsonl", _record("sum", 7, 5.0, curves=curves))
    records.append(folder / "records.jsonl", _record("odd", 0, 5.0, curves=curves))
    assert "nan" not in "".join(re.findall(r"<path.*?/>", _page(folder)))
    assert summarise(folder)["state"]["finished"] == 14


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "line",
    [DEEP, b'{"task": ' + DEEP, b'{"a":' * 50_000, b"\xff\xfe\x00", b"1" * 5000, b"null", b'{"seed": 1e999}',
     b'{"task": "t", "method": "m", "status": "ok", "seed": ' + b"9" * 5000 + b"}"],
    ids=["deep list", "deep task", "deep object", "binary", "long number", "null", "infinite", "huge seed"],
)  # fmt: skip
def test_a_hostile_line_harms_only_itself(folder, line):
    with (folder / "records.jsonl").open("ab") as file:
        file.write(line + b"\n")
    found = summarise(folder)
    assert (found["state"]["torn_lines"], found["state"]["finished"]) == (1, 12)
    assert found["state"]["unreadable"][0].startswith("line 13: ")
    assert len(found["state"]["unreadable"][0]) < 1000


@pytest.mark.parametrize("name", ["suite.json", "certificates.json"])
@pytest.mark.parametrize("content", [DEEP, b"\x00\xff", b""], ids=["deep", "binary", "empty"])
def test_a_hostile_file_beside_the_records_is_an_error_of_ours(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{name} is damaged"):
        summarise(folder)


@pytest.mark.filterwarnings("error")
def test_numbers_of_any_size_and_names_of_any_kind(tmp_path):
    for seed in range(3):
        for method, delta in (
            ("single-task", 0.0),
            ("sum", 1e308),
            ("x" * 3000, -1e308),
            ("\u202e\x1b[31m$a_b", 5e-324),
        ):
            given = _record(method, seed, 0.0, delta_m=delta, metrics=dict.fromkeys(KEYS, delta))
            records.append(tmp_path / "records.jsonl", given)
    assert "<html" in _page(tmp_path)


def test_the_command_measures_a_report_and_says_of_how_many_records(capsys):
    assert speed.main(["--tasks", "1", "--methods", "2", "--seeds", "3"]) == 0
    said = capsys.readouterr().out
    assert re.match(r"6 records \(0 MB\): \d+\.\d s of the processor, \d{2,3} MB at most", said)


def test_the_critical_difference_has_the_values_of_nemenyis_table():
    table = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}  # Demsar, 5 (a)
    for methods, quantile in table.items():
        found = overall.critical_difference(methods, 14)
        assert found == pytest.approx(quantile * math.sqrt(methods * (methods + 1) / (6 * 14)), rel=3e-4)
    assert overall.critical_difference(1, 14) is None


def test_mean_curves_of_runs_with_and_without_the_same_steps():
    same = curves._mean([([0, 10], [1.0, None]), ([0, 10], [3.0, float("inf")])])
    assert same[0] == [0.0, 10.0]
    assert same[1][0] == 2.0
    assert np.isnan(same[1][1])
    others = curves._mean([([10, 0], [4.0, 1.0]), ([0, 20], [3.0, 5.0])])
    assert others == ([0.0, 10.0, 20.0], [2.0, 4.0, 5.0])
    step, lines = curves._drawn({"a": ([0.0, 1.0], [1.0, 2.0]), "b": ([1.0], [7.0])})
    assert step == [0.0, 1.0]
    assert lines == {"a": [1.0, 2.0], "b": [None, 7.0]}


def test_a_large_folder_is_reported_within_bounds(tmp_path):
    """A twentieth of the one below. Before, outdated records were looked up in a list: hours for 50,000."""
    runs = speed.write_records(tmp_path, tasks=2, methods=10, seeds=125)
    seconds, megabytes = speed.cost(tmp_path)
    assert runs == 2500
    assert megabytes < 500
    assert seconds < 10


@pytest.mark.slow
def test_50_000_runs_are_reported_within_10_s_and_500_mb(tmp_path):
    runs = speed.write_records(tmp_path, tasks=10, methods=25, seeds=200)
    seconds, megabytes = speed.cost(tmp_path)
    assert runs == 50_000
    assert megabytes < 500
    assert seconds < 10
