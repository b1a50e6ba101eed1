"""The runner: one line per finished run, nothing finished is ever lost, failed runs are retried, theory comes first."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from mtlbench import certification, lock, progress, records, runner, workers
from mtlbench.suite import SINGLE_TASK, BudgetChanges
from mtlcore import hookimpl
from mtlcore.errors import ConfigurationError, PluginWarning, UnknownPluginError
from mtlcore.registry import registry

REQUIRED = {
    "suite", "task", "method", "seed", "status", "metrics", "delta_m", "seconds_per_step", "peak_memory_mb",
    "environment", "curves", "hyperparameters", "config_hash", "certificate", "conflict",
}  # fmt: skip


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def _results(folder: Path) -> dict:
    """What must be equal however often a run was interrupted: not the times."""
    found, _ = records.read(folder / "records.jsonl")
    return {r.key: (r.metrics, r.delta_m, r.curves) for r in found if r.ok}


def test_one_complete_line_per_run(tiny, tmp_path):
    summary = runner.run(tiny.suite(), tmp_path, console=tiny.quiet())
    lines = _lines(tmp_path)
    assert summary.ok
    assert summary.finished == len(lines) == 2 * 3
    for line in lines:
        assert line.keys() >= REQUIRED
        assert line["status"] == "ok"
        assert line["environment"]["torch"]
    assert {(x["method"], x["seed"]) for x in lines} == {
        (m, s) for m in (SINGLE_TASK, "tiny-equal", "tiny-slow") for s in (0, 1)
    }
    # Baselines come first, because delta-m needs them; their own delta-m is 0 by definition.
    assert [x["method"] for x in lines[:2]] == [SINGLE_TASK] * 2
    assert all(x["delta_m"] == 0 for x in lines[:2])
    equal = {x["seed"]: x["delta_m"] for x in lines if x["method"] == "tiny-equal"}
    slow = {x["seed"]: x["delta_m"] for x in lines if x["method"] == "tiny-slow"}
    assert equal == slow  # the same mathematics, paired


def test_off_a_terminal_there_is_one_line_per_event(tiny, tmp_path):
    """Of certificates and runs, and nothing else: what a log file of a cluster's job should hold."""
    out = io.StringIO()
    runner.run(tiny.suite("tiny-equal", seeds=2), tmp_path, console=Console(file=out, width=200))
    events = [line.split(" · seed")[0] for line in out.getvalue().split("\n")]
    assert events == ["verified tiny-equal: 7 examples"] + 2 * ["done tiny · single-task"] + 2 * [
        "done tiny · tiny-equal"
    ] + [""]


def test_a_second_run_does_nothing(tiny, tmp_path):
    runner.run(tiny.suite(), tmp_path, console=tiny.quiet())
    before = (tmp_path / "records.jsonl").read_bytes()
    summary = runner.run(tiny.suite(), tmp_path, console=tiny.quiet())
    assert (summary.finished, summary.already) == (0, 6)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_more_seeds_add_runs_and_another_budget_repeats_them(tiny, tmp_path):
    runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, console=tiny.quiet())
    assert runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=2, console=tiny.quiet()).finished == 2
    longer = tiny.suite("tiny-equal", budget={"steps": 24})
    assert runner.run(longer, tmp_path, seeds=2, console=tiny.quiet()).finished == 4


def test_killed_in_the_middle_and_resumed_equals_uninterrupted(tiny, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runner.run(tiny.suite(), whole, console=tiny.quiet())
    script = Path(tiny.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent.parent)}
    process = subprocess.Popen([sys.executable, "-W", "ignore", str(script), str(killed)], env=environment)
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and process.poll() is None:
            if (killed / "records.jsonl").is_file() and len(records.read(killed / "records.jsonl")[0]) >= 3:
                break
            time.sleep(0.005)
        assert process.poll() is None, "it finished before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    survived = len(records.read(killed / "records.jsonl")[0])
    assert 3 <= survived < 6
    with (killed / "records.jsonl").open("ab") as file:  # and the worst moment: in the middle of a write
        file.write(b'{"suite": "tiny", "task": "ti')
    summary = runner.run(tiny.suite(), killed, console=tiny.quiet())
    assert summary.already == survived
    assert summary.finished == 6 - survived
    assert _results(killed) == _results(whole)
    assert len(records.read(killed / "records.jsonl")[1]) == 1


HOLDER = """
import sys
from pathlib import Path
from rich.console import Console
from mtlbench.lock import alone_in
with alone_in(Path(sys.argv[1]), Console()):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process at work in the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    "damage", [None, b"", b"\xff\x00\x1b[31m", b"[" * 10_000], ids=["ours", "empty", "binary", "deep"]
)
def test_two_runs_at_once_in_one_folder_are_refused(tiny, tmp_path, other_run, damage):
    """Whatever the files say, which is for people only."""
    who = f"{other_run.pid} {platform.node()}"
    if damage is not None:
        (tmp_path / lock.HOLDER).write_bytes(damage)
        who = "process and machine"
    with pytest.raises(ConfigurationError, match=f"another run is at work in .*{who}") as caught:
        runner.run(tiny.suite("tiny-equal"), tmp_path, console=tiny.quiet())
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "records.jsonl").exists()


@pytest.mark.parametrize(
    "left", [b"", b"\xff\x00", b"7 another-machine", b"[" * 10_000], ids=["empty", "binary", "old", "deep"]
)
def test_whatever_a_killed_run_left_is_taken_over(tiny, tmp_path, left):
    """The system lets go of the lock of a process that is no more, and files say nothing of it."""
    for name in (lock.LOCK, lock.HOLDER):
        (tmp_path / name).write_bytes(left)
    console = tiny.quiet()
    assert runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, console=console).ok
    assert not (tmp_path / lock.HOLDER).exists()
    assert "taken over from a run" in console.file.getvalue()
    assert "--jobs 2" in console.file.getvalue()


def test_the_lock_of_a_run_that_is_killed_is_free_at_once(tiny, tmp_path, other_run):
    other_run.kill()
    other_run.wait()
    assert runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, console=tiny.quiet()).ok


def test_a_run_holds_the_lock_until_it_ends_even_badly(tiny, tmp_path, monkeypatch):
    seen = []

    def stops(job, progress):
        seen.append((tmp_path / lock.HOLDER).read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "do_job", stops)
    with pytest.raises(KeyboardInterrupt):
        runner.run(tiny.suite("tiny-equal"), tmp_path, console=tiny.quiet())
    assert seen == [f"{os.getpid()} {platform.node()}"]
    assert not (tmp_path / lock.HOLDER).exists()
    with lock.alone_in(tmp_path, tiny.quiet()):
        pass


def test_several_processes_give_the_same_records(tmp_path):
    """With tasks and methods of the package itself: worker processes know nothing of a test's plugins."""
    from mtlbench.suite import Suite

    suite = Suite.model_validate(
        {
            "name": "small",
            "title": "small",
            "tasks": [{"name": "multimnist", "budget": {"steps": 3, "batch_size": 8, "evaluations": 1}}],
            "methods": ["sum", "mgda"],
            "seeds": 1,
        }
    )
    from support import bench_tiny

    one = runner.run(suite, tmp_path / "one", jobs=1, certify=False, console=bench_tiny.quiet())
    two = runner.run(suite, tmp_path / "two", jobs=2, certify=False, console=bench_tiny.quiet())
    assert one.ok
    assert two.ok
    assert _results(tmp_path / "one") == _results(tmp_path / "two")


def test_a_failed_run_is_a_record_and_is_retried(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_BREAKS", "1")
    summary = runner.run(tiny.suite("tiny-equal", "tiny-breaks"), tmp_path, console=tiny.quiet())
    assert len(summary.failed) == 2
    assert not summary.ok
    failed = [x for x in _lines(tmp_path) if x["status"] == "failed"]
    assert {x["method"] for x in failed} == {"tiny-breaks"}
    assert "broken on purpose" in failed[0]["error"]
    assert failed[0]["metrics"] is None
    monkeypatch.delenv("TINY_BREAKS")
    summary = runner.run(tiny.suite("tiny-equal", "tiny-breaks"), tmp_path, console=tiny.quiet())
    assert (summary.finished, summary.failed) == (2, [])
    assert len(records.finished(tmp_path / "records.jsonl")) == 6


@pytest.mark.parametrize("error", [ValueError("no file [/tmp/x], [bold]"), SystemExit(3)])
def test_whatever_a_method_raises_is_recorded_word_by_word_and_the_others_go_on(tiny, tmp_path, monkeypatch, error):
    def raises(self, view, state):
        raise error

    monkeypatch.setattr(tiny.Breaks, "aggregate", raises)
    console = tiny.quiet()
    console.width = 300
    suite = tiny.suite({"name": "x [red]", "aggregator": "tiny-breaks"}, "tiny-equal", seeds=1)
    summary = runner.run(suite, tmp_path, console=console)
    assert (summary.finished, summary.failed) == (2, ["x [red] on tiny, seed 0"])
    (failed,) = [x for x in _lines(tmp_path) if x["status"] == "failed"]
    assert str(error) in failed["error"]
    assert f"failed tiny · x [red] · seed 0: {failed['error']}" in console.file.getvalue()


def test_a_worker_that_dies_is_a_failure_of_its_own_and_the_others_go_on():
    work = [functools.partial(dict, a=i) for i in range(4)]
    work.insert(1, functools.partial(os._exit, 3))
    results = list(workers.parallel(work, 2, lambda status, *, why: {"died": status, "why": why}))
    assert sorted(r["a"] for r in results if "a" in r) == [0, 1, 2, 3]
    (died,) = [r for r in results if "died" in r]
    assert died["died"] == 3
    assert "EXIT(3)" in died["why"]


def test_a_refuted_method_is_not_trained_unless_allowed(tiny, tmp_path):
    suite = tiny.suite("tiny-equal", "tiny-refuted")
    summary = runner.run(suite, tmp_path, console=tiny.quiet())
    assert summary.refused == ["tiny-refuted"]
    assert not summary.ok
    assert "tiny-refuted" not in {x["method"] for x in _lines(tmp_path)}
    summary = runner.run(suite, tmp_path, allow_refuted=True, console=tiny.quiet())
    assert summary.ok
    found = next(x for x in _lines(tmp_path) if x["method"] == "tiny-refuted")
    assert found["certificate"]["passed"] is False


def test_certificates_are_asked_once_per_plugin_and_kept(tiny, tmp_path, monkeypatch):
    asked = []
    real = certification.certify_one
    monkeypatch.setattr(certification, "certify_one", lambda *a: asked.append(a) or real(*a))
    twice = {"name": "again", "aggregator": "tiny-equal"}
    runner.run(tiny.suite("tiny-equal", "tiny-slow", twice), tmp_path, seeds=1, console=tiny.quiet())
    assert [a[1] for a in asked] == ["tiny-equal", "tiny-slow"]
    kept = json.loads((tmp_path / "certificates.json").read_text())
    assert all(c["passed"] is True and c["rows"] for c in kept.values())


def test_without_anybody_who_can_certify_nothing_is_trained_unless_allowed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.Plugin, "mtlcore_certify", lambda self, kind, name, options: None)
    monkeypatch.setattr(certification.registry(), "ask", lambda hook, **arguments: None)
    console = tiny.quiet()
    summary = runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, console=console)
    assert summary.refused == ["tiny-equal"]
    assert "refused tiny-equal: tiny-equal has no certificate" in console.file.getvalue()
    summary = runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, allow_refuted=True, console=tiny.quiet())
    assert summary.ok
    record = next(x for x in _lines(tmp_path) if x["method"] == "tiny-equal")
    assert record["certificate"]["passed"] is None
    assert record["certificate"]["summary"]


@pytest.mark.parametrize(
    "answer",
    [
        "passed", {"passed": True}, [1], {"passed": "yes", "summary": "", "rows": []},
        {"passed": True, "summary": "", "rows": None}, {"passed": True, "summary": "", "rows": [{"law": "finite"}]},
    ],
    ids=repr,
)  # fmt: skip
def test_an_answer_that_is_no_certificate_certifies_nothing(monkeypatch, answer):
    monkeypatch.setattr(certification.registry(), "ask", lambda hook, **arguments: answer)
    found = certification.certify_one("aggregator", "sum", {})
    assert found["passed"] is None
    assert "is not a certificate" in found["summary"]


def test_an_answer_cannot_be_about_another_plugin(monkeypatch):
    answer = {"passed": True, "summary": "", "rows": [], "name": "mine", "options": {"x": 1}}
    monkeypatch.setattr(certification.registry(), "ask", lambda hook, **arguments: answer)
    found = certification.certify_one("aggregator", "sum", {})
    assert (found["name"], found["options"], found["passed"]) == ("sum", {}, True)


def test_a_record_tells_the_versions_of_third_parties(tiny, tmp_path):
    """The hash of a configuration does not know them; the report says that they are mixed."""
    from mtlbench.report.summary import summarise

    runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, console=tiny.quiet())
    environments = [r["environment"] for r in _lines(tmp_path)]
    assert [e["(this process)"] for e in environments] == ["?", "?"]
    assert not {"mtlplugins", "sum"} & set(environments[0])
    path = tmp_path / "records.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + second.replace('"(this process)": "?"', '"(this process)": "2.0"') + "\n")
    assert summarise(tmp_path)["environment"]["(this process)"] == ["?", "2.0"]


def test_methods_that_do_not_exist(tiny, tmp_path):
    with pytest.raises(UnknownPluginError, match="tiny-eqaul"):
        runner.run(tiny.suite("tiny-equal", "tiny-eqaul"), tmp_path, console=tiny.quiet())
    suite = tiny.suite("tiny-equal", {"name": "tiny-eqaul", "optional": True})
    assert runner.run(suite, tmp_path, seeds=1, console=tiny.quiet()).left_out == ["tiny-eqaul"]
    with pytest.raises(ConfigurationError, match="hyper-parameter 'gamma'"):
        runner.run(tiny.suite({"name": "x", "aggregator": "tiny-equal", "options": {"gamma": 1}}), tmp_path)


def test_tuning_is_by_validation_and_never_shows_the_test_part(tiny, tmp_path):
    suite = tiny.suite("tiny-equal", tuning={"trials": 3})
    runner.run(suite, tmp_path, seeds=1, console=tiny.quiet())
    trials, _ = records.read(tmp_path / "trials.jsonl")
    assert len(trials) == 6  # three for the baseline, three for the method
    assert all(t.metrics is None and t.seed == -1 and t.validation for t in trials)
    mine = [t for t in trials if t.method == "tiny-equal"]
    rates = {t.hyperparameters.budget.learning_rate for t in mine}
    assert len(rates) == 3
    used = next(x for x in _lines(tmp_path) if x["method"] == "tiny-equal")["hyperparameters"]["budget"][
        "learning_rate"
    ]
    baseline = [t for t in trials if t.method == SINGLE_TASK]
    task = tiny.Tiny()
    from mtlbench.protocol import delta_m

    against = min(baseline, key=lambda t: delta_m(t.validation, baseline[0].validation, task.metrics)).validation
    best = min(mine, key=lambda t: delta_m(t.validation, against, task.metrics))
    assert used == best.hyperparameters.budget.learning_rate
    assert runner.run(suite, tmp_path, seeds=1, console=tiny.quiet()).finished == 0


def test_budget_changes_are_merged_from_suite_and_task_entry(tiny):
    default = tiny.Tiny().budget
    merged = runner.merged_budget(default, BudgetChanges(steps=7, batch_size=3), BudgetChanges(steps=9))
    assert (merged.steps, merged.batch_size, merged.learning_rate) == (9, 3, default.learning_rate)


def test_appending_after_a_torn_line_keeps_both_neighbours(tmp_path):
    path = tmp_path / "records.jsonl"
    base = {"task": "t", "method": "m", "status": "ok", "config_hash": "h"}
    records.append(path, {**base, "seed": 0})
    with path.open("ab") as file:
        file.write(b'{"task": "t", "meth')
    records.append(path, {**base, "seed": 1, "delta_m": float("nan")})
    found, torn = records.read(path)
    assert [r.seed for r in found] == [0, 1]
    assert torn == ["line 2: torn, or no JSON"]
    assert found[1].delta_m is None


def test_a_full_disk_is_an_error_of_ours_and_loses_nothing(tiny, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write, left = os.write, [6000]

    def writes(handle, data):
        if left[0] <= 0:
            raise full
        left[0] -= len(data)
        return write(handle, data[: len(data) + min(left[0], 0)])

    monkeypatch.setattr(os, "write", writes)
    with pytest.raises(
        ConfigurationError, match="records.jsonl cannot be written: No space left.*run the same command"
    ):
        runner.run(tiny.suite(), tmp_path, console=tiny.quiet())
    monkeypatch.setattr(os, "write", write)
    survived, torn = records.read(tmp_path / "records.jsonl")
    assert (len(survived) > 0, len(torn)) == (True, 1)
    summary = runner.run(tiny.suite(), tmp_path, console=tiny.quiet())
    assert (summary.finished, summary.already) == (6 - len(survived), len(survived))


@pytest.mark.parametrize("name", ["run.holder", ".suite.json"])
def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tiny, tmp_path, monkeypatch, name):
    opened = Path.open

    def opens(path, mode="r", *args, **kwargs):
        if mode != "r" and path.name.startswith(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opens)
    with pytest.raises(ConfigurationError, match="cannot be written: Permission denied"):
        runner.run(tiny.suite("tiny-equal", seeds=1), tmp_path, certify=False, console=tiny.quiet())
    assert not any(path.name.endswith((".tmp", ".holder")) for path in tmp_path.iterdir())


def test_a_task_that_has_left_the_suite_is_outdated_as_a_method_is(tiny, tmp_path):
    from mtlbench.report.summary import summarise

    class Second:
        @hookimpl
        def mtlcore_register_tasks(self, register):
            register("tiny-second", tiny.Tiny)

    second = Second()
    registry().add(second, "second")
    try:
        runner.run(tiny.suite("tiny-equal", tasks=["tiny", "tiny-second"], seeds=1), tmp_path, console=tiny.quiet())
        runner.run(tiny.suite("tiny-equal", seeds=1), tmp_path, console=tiny.quiet())
        found = summarise(tmp_path)
    finally:
        registry().remove(second)
    assert [task["name"] for task in found["tasks"]] == ["tiny"]
    assert found["state"]["outdated"] == 2


def test_a_good_run_outlives_a_later_failure(tmp_path):
    from mtlbench.formats import Manifest
    from mtlbench.report.table import table

    base = {"task": "t", "method": "m", "seed": 0, "config_hash": "h"}
    for i, order in enumerate((("failed", "ok"), ("ok", "failed"), ("failed", "failed"))):
        path = tmp_path / str(i) / "records.jsonl"
        for status in order:
            records.append(path, {**base, "status": status})
        assert table(path.parent, Manifest()).runs["ok"].tolist() == ["ok" in order]
        assert len(records.finished(path)) == ("ok" in order)


class Nameless(BaseException):
    def __str__(self):
        raise SystemExit(0)


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), Nameless()], ids=repr)
def test_a_certifier_that_cannot_answer_does_not_open_the_gate(tiny, tmp_path, monkeypatch, error):
    """It used to: "could not be checked", and then the method was trained all the same."""

    class Certifier:
        @hookimpl
        def mtlcore_certify(self, kind, name, options):
            raise error

    with registered(Certifier()), pytest.warns(PluginWarning, match="mtlcore_certify raised"):
        monkeypatch.setattr(certification.registry(), "_implementations", _only(Certifier))
        found = [certification.certify_one("aggregator", "tiny-equal", {})]
    monkeypatch.setattr(certification, "certify_one", lambda *a: found[0])
    summary = runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, console=tiny.quiet())
    assert summary.refused == ["tiny-equal"]
    assert not summary.ok
    kept = json.loads((tmp_path / "certificates.json").read_text())
    assert [c["passed"] for c in kept.values()] == [None]
    assert all(type(error).__name__ in c["summary"] for c in kept.values())
    allowed = runner.run(tiny.suite("tiny-equal"), tmp_path, seeds=1, certify=False, console=tiny.quiet())
    assert allowed.ok


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit(), Nameless()], ids=repr)
def test_whatever_a_method_raises_ends_its_run_and_no_other(tiny, tmp_path, monkeypatch, error):
    def aggregate(self, view, state):
        raise error

    monkeypatch.setattr(tiny.Slow, "aggregate", aggregate)
    summary = runner.run(tiny.suite(), tmp_path, seeds=1, certify=False, console=tiny.quiet())
    assert summary.failed == ["tiny-slow on tiny, seed 0"]
    assert summary.finished == 2
    (record,) = [x for x in _lines(tmp_path) if x["status"] == "failed"]
    assert type(error).__name__ in record["error"]


@contextlib.contextmanager
def registered(plugin):
    registry().add(plugin, "hostile")
    yield
    registry().remove(plugin)


def _only(cls):
    """Nobody else certifies."""
    found = certification.registry()._implementations
    return lambda hook: [i for i in found(hook) if hook != "mtlcore_certify" or isinstance(i.plugin, cls)]
