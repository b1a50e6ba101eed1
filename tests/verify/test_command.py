"""``mtl verify`` as its users meet it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mtlcore import hookimpl, number
from mtlcore.errors import ConfigurationError, MissingExtraError
from mtlcore.registry import registry
from mtlverify import display, runner
from mtlverify.command import app
from mtlverify.mutants.aggregators import DroppedProjection
from mtlverify.mutants.twins import Mean

FIELDS = {"kind", "name", "distribution", "law", "claimed", "status", "examples", "worst_margin", "counterexample"}


@dataclasses.dataclass(frozen=True)
class Honest(Mean):
    """A mean that promises what a mean keeps."""

    claims = frozenset({"positively-homogeneous"})


@dataclasses.dataclass(frozen=True)
class Boastful(DroppedProjection):
    """Promises what it breaks."""

    claims = frozenset({"non-conflicting"})


@dataclasses.dataclass(frozen=True)
class Unmakeable(Mean):
    """Cannot be constructed."""

    def __post_init__(self):
        raise RuntimeError("no such luck")


@dataclasses.dataclass(frozen=True)
class Quits(Mean):
    """Ends the process when it is asked."""

    def weigh(self, view):
        raise SystemExit(7)


@dataclasses.dataclass(frozen=True)
class Unsearchable(Mean):
    """Breaks what is around its own steps."""

    @classmethod
    def verification_examples(cls, examples):
        raise TypeError("no inputs to be had")


@dataclasses.dataclass(frozen=True)
class TooMany(Mean):
    """One weight too many."""

    def weigh(self, view):
        return torch.ones(view.n_tasks + 1, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Raises(Mean):
    """Always."""

    def weigh(self, view):
        raise ValueError(f"I dislike {view.n_tasks} tasks")


@dataclasses.dataclass(frozen=True)
class Hangs(Mean):
    """For so long with more than four tasks that somebody presses Ctrl-C."""

    def weigh(self, view):
        if view.n_tasks > 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return super().weigh(view)


@dataclasses.dataclass(frozen=True)
class Impostor(Mean):
    """Raises what only a user may."""

    def weigh(self, view):
        raise KeyboardInterrupt


@dataclasses.dataclass(frozen=True)
class Sleeps(Mean):
    """For ever."""

    def weigh(self, view):
        time.sleep(600)


@dataclasses.dataclass(frozen=True)
class Weighted(Mean):
    """Keeps its promise unless it is told to break it."""

    claims = frozenset({"positively-homogeneous"})
    power: float = number(0.0)

    def weigh(self, view):
        return super().weigh(view) * view.gramian.diagonal().sum() ** self.power


class Package:
    @hookimpl
    def mtlcore_register_aggregators(self, register):
        register("honest", Honest)
        register("boastful", Boastful)
        register("honest-too", Honest)
        register("unmakeable", Unmakeable)
        register("quits", Quits)
        register("too-many", TooMany)
        register("raises", Raises)
        register("hangs", Hangs)
        register("unsearchable", Unsearchable)
        register("impostor", Impostor)
        register("sleeps", Sleeps)
        register("weighted", Weighted)

    @hookimpl
    def mtlcore_register_detectors(self, register):
        register("honest-too", "mtlplugins.detectors.cosine:Cosine")


FEW = {
    "finite",
    "pure",
    "deterministic",
    "shape-dtype-device",
    "non-conflicting",
    "positively-homogeneous",
    "symmetric",
}


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    """Plugins of this process, and few laws: this file is about the command, not about the search."""
    everything = runner.laws
    monkeypatch.setattr(runner, "laws", lambda kind: [law for law in everything(kind) if law.id in FEW])
    package = Package()
    registry().add(package, "command-tests")
    yield
    registry().remove(package)


def verify(*arguments):
    return CliRunner().invoke(app, [*arguments])


def rows_of(path):
    return {row["law"]: row for row in json.loads(path.read_text())}


def test_kept_promises_exit_0_and_every_law_has_a_row(tmp_path):
    done = verify("honest", "--max-examples", "20", "--json", str(tmp_path / "sub" / "rows.json"))
    assert done.exit_code == 0, done.output
    assert "Every promise kept." in done.output
    rows = rows_of(tmp_path / "sub" / "rows.json")
    assert rows.keys() == FEW - {"symmetric"}
    for row in rows.values():
        assert row.keys() >= FIELDS
        assert row["status"] in ("verified", "refuted", "not-applicable", "error")
        assert (row["examples"] > 0) == (row["status"] in ("verified", "refuted")), row
        assert (row["counterexample"] is not None) == (row["status"] == "refuted")
    assert rows["positively-homogeneous"]["claimed"] is True
    assert rows["finite"]["claimed"] is True
    assert rows["non-conflicting"] | {"claimed": False, "status": "refuted"} == rows["non-conflicting"]


def test_a_broken_promise_exits_1_and_shows_the_counterexample(tmp_path):
    done = verify("boastful", "--max-examples", "34", "--json", str(tmp_path / "rows.json"))
    assert done.exit_code == 1
    assert "1 promise broken or unchecked." in done.output
    row = rows_of(tmp_path / "rows.json")["non-conflicting"]
    assert (row["claimed"], row["status"]) == (True, "refuted")
    assert row["worst_margin"] < 0
    assert row["counterexample"]["example"]["jacobian"]
    assert row["detail"].startswith("the numerics")


def test_a_failure_shows_what_the_law_says_and_who_is_harmed(tmp_path):
    done = verify("boastful", "--max-examples", "34", "--json", str(tmp_path / "rows.json"))
    said = " ".join(done.output.split())
    assert "law: No task gradient has a negative inner product with the direction: min_i <g_i, d> >= 0." in said
    assert re.search(r"here: task\d is harmed: the cosine of its gradient with the direction is -\d", said)
    assert rows_of(tmp_path / "rows.json")["non-conflicting"]["reason"] in said


def test_errors_that_say_the_same_are_shown_once_but_are_rows_each(tmp_path):
    done = verify("raises", "--max-examples", "2", "--json", str(tmp_path / "rows.json"))
    assert done.output.count("I dislike") == 1
    assert "and 5 more" in done.output
    rows = rows_of(tmp_path / "rows.json")
    assert [r["law"] for r in rows.values() if "I dislike" in r["detail"]] == list(rows)
    assert verify("raises", "--max-examples", "2", "--all").output.count("and 5 more") == 0


def test_an_answer_of_a_wrong_shape_is_refused_in_the_words_of_a_step(tmp_path):
    verify("too-many", "--max-examples", "2", "--json", str(tmp_path / "rows.json"))
    rows = rows_of(tmp_path / "rows.json")
    assert rows["shape-dtype-device"]["status"] == "refuted"
    assert re.fullmatch(r"weights of shape \(\d,\); expected \(\d,\)", rows["shape-dtype-device"]["reason"])
    for law in ("finite", "deterministic", "non-conflicting", "positively-homogeneous"):
        assert "'too-many' of distribution '(this process)' returned weights of shape" in rows[law]["detail"]


def test_a_plugin_that_cannot_be_made_is_a_row_with_provenance(tmp_path):
    done = verify("unmakeable", "cosine", "--max-examples", "2", "--jobs", "1", "--json", str(tmp_path / "rows.json"))
    assert done.exit_code == 1
    rows = json.loads((tmp_path / "rows.json").read_text())
    (broken,) = [r for r in rows if r["name"] == "unmakeable"]
    assert broken["status"] == "error"
    assert "no such luck" in broken["detail"]
    assert "(this process)" in broken["distribution"]
    assert any(r["name"] == "cosine" for r in rows)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("quits", "SystemExit: it called sys.exit(7)"),
        ("impostor", "KeyboardInterrupt"),
        ("unsearchable", "no inputs to be had"),
    ],
)
def test_one_bad_plugin_does_not_end_the_run(tmp_path, name, problem):
    done = verify(name, "cosine", "--max-examples", "2", "--jobs", "1", "--json", str(tmp_path / "rows.json"))
    assert done.exit_code == 1
    assert done.exception is None or isinstance(done.exception, SystemExit)
    rows = json.loads((tmp_path / "rows.json").read_text())
    broken = [r for r in rows if r["name"] == name and r["status"] == "error"]
    assert [r["detail"] for r in broken if problem in r["detail"]]
    assert any(r["name"] == "cosine" for r in rows)


def test_claims_of_a_wrong_type_are_named(tmp_path):
    from mtlverify import check

    with pytest.raises(ConfigurationError, match="Texts.claims is 'finite'; it must be a frozenset"):
        list(check(type("Texts", (Mean,), {"claims": "finite"})()))


def test_json_on_standard_output_is_nothing_but_json():
    done = verify("cosine", "--max-examples", "2", "--jobs", "1", "--json", "-")
    assert {row["name"] for row in json.loads(done.stdout)} == {"cosine"}


def test_the_same_seed_gives_the_same_rows():
    arguments = ("imbalance", "--max-examples", "40", "--seed", "7", "--jobs", "1", "--fresh", "--json", "-")
    first, second = (verify(*arguments).stdout for _ in range(2))
    assert first == second


def test_a_name_given_twice_is_checked_once(tmp_path):
    verify("honest", "honest", "--max-examples", "2", "--json", str(tmp_path / "rows.json"))
    assert len(json.loads((tmp_path / "rows.json").read_text())) == len(rows_of(tmp_path / "rows.json"))


def test_a_class_of_two_names_has_rows_under_the_name_that_was_asked_for(tmp_path):
    verify("honest-too", "--kind", "aggregator", "--max-examples", "2", "--json", str(tmp_path / "rows.json"))
    assert {row["name"] for row in rows_of(tmp_path / "rows.json").values()} == {"honest-too"}
    verify("honest-too", "--kind", "detector", "--max-examples", "2", "--json", str(tmp_path / "rows.json"))
    names = {(row["name"], row["distribution"]) for row in rows_of(tmp_path / "rows.json").values()}
    assert names == {("honest-too", "(this process)")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["honestt"], "honest"),
        (["honest", "--kind", "cat"], "aggregator, detector, teleport"),
        (["honest", "--max-examples", "0"], "max-examples"),
        (["honest", "--json", "/"], "cannot be written to"),
        (["honest", "--json", "/dev/null/rows.json"], "cannot be written to"),
        (["honest-too"], "several kinds (aggregator, detector): say which, with kind= or --kind."),
        (["honest", "--kind", "detector"], "there is no detector called 'honest'"),
    ],
)
def test_bad_usage_exits_2(arguments, message):
    done = verify(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_a_missing_extra_survives_the_way_out_of_a_worker():
    """Unpickling it raised, and the pool of `mtl verify` broke with a traceback instead of the line to install."""
    error = MissingExtraError("hypothesis", "verify", "Searching for counterexamples")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_check_that_is_stopped_by_hand_says_where():
    found = verify("hangs", "--max-examples", "30")
    assert found.exit_code == 130
    assert re.search(r"stopped while aggregator 'hangs' was checked, at the law '[\w-]+'", found.stderr)


def test_only_some_laws_with_other_options(tmp_path):
    out = str(tmp_path / "rows.json")
    done = verify("weighted", "--law", "positively-homogeneous", "--max-examples", "10", "--json", out)
    assert done.exit_code == 0, done.output
    assert list(rows_of(tmp_path / "rows.json")) == ["positively-homogeneous"]
    done = verify("weighted", "--claimed", "--option", "power=1", "--max-examples", "10", "--json", out)
    assert done.exit_code == 1, done.output
    rows = rows_of(tmp_path / "rows.json")
    assert all(r["claimed"] for r in rows.values())
    assert rows["positively-homogeneous"]["status"] == "refuted"
    assert "margin: the smallest margin" in done.output
    again = verify("--replay", out, "--option", "power=1")
    assert again.exit_code == 1
    assert "refuted" in again.output
    assert verify("weighted", "--replay", out).exit_code == 0, "with the default option nothing is violated"


def test_a_plugin_that_hangs_is_a_row_and_the_rest_goes_on(tmp_path):
    began = time.monotonic()
    arguments = ("sleeps", "honest", "--max-examples", "1", "--timeout", "2", "--json", str(tmp_path / "rows.json"))
    assert verify(*arguments).exit_code == 1
    assert time.monotonic() - began < 60
    rows = json.loads((tmp_path / "rows.json").read_text())
    late = [r["detail"] for r in rows if r["name"] == "sleeps"]
    assert late[0] == "it took longer than 2 s and was stopped"
    assert late[1].startswith("not checked, because law")
    assert {r["status"] for r in rows if r["name"] == "honest" and r["claimed"]} == {"verified"}


def test_a_counterexample_is_printed_for_a_person():
    """Also to a law that nobody promised, if it is asked for by name; what is as usual is not said."""
    arguments = ("cagrad", "--law", "non-conflicting", "--max-examples", "40", "--jobs", "1")
    shown = verify(*arguments).stdout
    (line,) = [text.strip() for text in shown.splitlines() if "counterexample: " in text]
    assert line.startswith("counterexample: jacobian = [[")
    assert not {"seed", "dtype", "away", ".0"} & set(re.findall(r"seed|dtype|away|\.0", line))


def test_a_process_that_hangs_or_dies_is_replaced():
    from mtlverify.processes import Lost, Task, side_by_side

    tasks = [Task(0, "a", 1), Task(60, "b", 2), Task(0, "c", 2)]
    found = dict(side_by_side(time.sleep, tasks, 1, timeout=0.5))
    assert found[0] is None
    assert found[1] == Lost("it took longer than 0.5 s and was stopped")
    assert found[2] == Lost("not checked, because b took longer than 0.5 s")
    ((_, died),) = side_by_side(os._exit, [Task(3, "f", 5)], 1)
    assert "its process died (exit code 3)" in died.why


def test_a_process_has_the_environment_of_now_and_not_that_of_an_earlier_one(monkeypatch):
    from mtlverify.processes import Task, side_by_side

    for value in ("first", "second"):
        monkeypatch.setenv("MTLCORE_OF_NOW", value)
        assert list(side_by_side(os.getenv, [Task("MTLCORE_OF_NOW", "a", 1)], 1)) == [(0, value)]


def test_no_process_outlives_a_command_that_is_killed(tmp_path):
    file = tmp_path / "pid"
    program = (
        "import os, sys\n"
        "from mtlverify.processes import Task, side_by_side, warm_up\n"
        "if __name__ == '__main__':\n"
        "    warm_up()\n"
        "    list(side_by_side(os.system, [Task(sys.argv[1], 'a', 1)], 1))\n"
    )
    (tmp_path / "program.py").write_text(program)
    order = f"echo $PPID > {file}.new; mv {file}.new {file}; sleep 60"
    command = subprocess.Popen([sys.executable, str(tmp_path / "program.py"), order])
    try:
        until(file.exists)
        worker = int(file.read_text())
        assert alive(worker)
    finally:
        command.kill()
        command.wait()
    until(lambda: not alive(worker), seconds=20)  # long before it would have ended by itself


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_the_declarations_of_a_problem_are_attacked(tmp_path):
    done = verify("quadratics", "--kind", "problem", "--max-examples", "5", "--json", str(tmp_path / "rows.json"))
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {(r["kind"], r["name"], r["status"]) for r in rows} == {("problem", "quadratics", "verified")}
    assert len(rows) > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["honest", "--option", "c"], "is not of the form NAME=VALUE"),
        (["honest", "--option", "c=1"], "has no hyper-parameter 'c'"),
        (["--option", "c=1"], "--option needs a NAME"),
        (["honest", "--law", "finit"], "Did you mean 'finite'"),
        (["--replay", "nowhere.json"], "cannot be read"),
        (["quadratic", "--kind", "problem"], "Did you mean 'quadratics'"),
    ],
)
def test_more_bad_usage(arguments, message):
    done = verify(*arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_an_unknown_kind_lists_the_kinds_once():
    done = verify("--kind", "nope")
    assert done.exit_code == 2
    assert done.output.count("merger") == 1, done.output


def test_an_unknown_name_without_a_near_one_is_told_in_one_sentence_and_where_the_names_are():
    done = verify("zzzzzz")
    assert done.exit_code == 2
    said = "no aggregator, detector, teleport, explorer or merger called 'zzzzzz'. `mtl list` shows them."
    assert " ".join(done.output.split()).endswith(said)


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_of_80_columns_shows_every_law_whole_and_a_pipe_the_plugin_in_every_row(monkeypatch):
    laws = [law.id for kind in ("aggregator", "detector", "teleport") for law in runner.laws(kind)]
    detail = "the mathematics: the exact reference breaks the law here, too"
    rows = [
        runner.Result(
            "aggregator", "bilb4mtl-double-loop", "mtlcore", law, False, "refuted", 1000, -1.2e-12, None, detail
        )
        for law in laws
    ]
    monkeypatch.setenv("COLUMNS", "80")
    shown = {}
    for kind, stream in (("terminal", _Terminal()), ("pipe", io.StringIO())):
        monkeypatch.setattr("sys.stdout", stream)
        display.show(rows, all_rows=False)
        shown[kind] = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    assert max(map(len, shown["terminal"])) <= 80
    words = {line.split()[0] for line in shown["terminal"] if line.startswith("  ")}
    assert words == set(laws)
    assert sum(line.startswith("bilb4mtl-double-loop ") for line in shown["pipe"]) == len(laws)
    assert (
        "A law that is refuted and not claimed is not a failure; --json FILE keeps its counterexample." in shown["pipe"]
    )
