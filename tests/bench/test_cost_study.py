"""The study of COST: every arm runs, a run that was stopped goes on, and "the same" is a statement with a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mtlcore
from mtlbench import jobs
from mtlbench.studies import cost, cost_table
from mtlbench.studies.cost_arms import ARMS, Persistent, Plateau
from mtlcore import StepView
from support.bench_tiny import Tiny


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_every_arm_runs_and_pairs_with_the_base_alone(arm):
    first, again = (cost.Run(Tiny(), "ls", ARMS[arm], seed=1, steps=12).go() for _ in range(2))
    assert first["metrics"] == again["metrics"], "the same seed is the same run"
    assert first["notes"]["accepted"] <= first["notes"]["tried"] <= first["notes"]["fired"]
    if ARMS[arm].strategy is None and not ARMS[arm].extra_steps:
        assert first["notes"]["fired"] == 0


def test_a_nudge_is_another_run_in_nearly_the_same_place():
    alone, nudged = (cost.Run(Tiny(), "ls", ARMS[arm], seed=1, steps=1) for arm in ("alone", "nudge"))
    for p, q in zip(alone.network.trunk.parameters(), nudged.network.trunk.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=0.0)
    assert not all(map(torch.equal, alone.network.trunk.parameters(), nudged.network.trunk.parameters()))


def test_a_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    create = mtlcore.create
    monkeypatch.setattr(mtlcore, "create", lambda k, n, **o: Tiny() if k == "task" else create(k, n, **o))
    file = tmp_path / "new" / "runs.jsonl"

    def go():
        wanted = cost.wanted(["tiny"], ["ls"], ["low-rank", "random"], 2)
        return cost.train_missing(file, wanted, 6, lambda *job: cost.Run(*job).go())

    assert go() == 6
    text = file.read_text()
    file.write_text(text[: text.rstrip().rindex("\n") + 20])  # killed while it wrote the last line
    assert go() == 1
    assert go() == 0
    rows = cost.finished(file)
    assert len(rows) == 6
    assert json.dumps(rows[("tiny", "ls", "alone", 0, 6)])
    assert {row["commit"] for row in rows.values()} == {jobs.commit()}
    assert {arm for arms in cost.scores(rows).values() for arm in arms} == {"low-rank", "random"}
    assert "### tiny, ls, 6 steps" in cost.report(file.parent)


def test_an_arm_that_did_nothing_is_told_from_one_that_made_no_difference(tmp_path):
    file = tmp_path / "runs.jsonl"
    notes = {"fired": 3, "tried": 0, "accepted": 0, "taken back": 0, "extra": 0}
    keys = [m.key for m in mtlcore.create("task", "rf1").metrics]
    for seed in range(3):
        for arm, value, more in (
            ("alone", 1.0, {}),
            ("persistent", 1.0, {}),
            ("probation", 1.0 + 0.001 * seed, {"tried": 4, "accepted": 3, "taken back": 1}),
            ("extra steps", 0.99, {"extra": 5}),
        ):
            row = {"task": "rf1", "base": "ls", "arm": arm, "seed": seed, "steps": 9}
            row |= {"metrics": dict.fromkeys(keys, value), "notes": notes | more}
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    table = {line.split("|")[1].strip(): line for line in cost.report(tmp_path).splitlines() if line.startswith("| ")}
    rows = cost.finished(file)
    whole = list(cost_table.by_task(rows))
    assert whole[:2] == ["\n**rf1**, 9 steps\n", "| arm | `ls` |"]
    assert "| persistent | no teleport (3) |" in whole
    assert any(line.startswith("| probation | +0.10 [") and line.endswith("] = (3, 2.0) |") for line in whole)
    assert any(line.startswith("| extra steps | −1.00 [") and "≤\\* (3, 0.0)" in line for line in whole)
    assert next(cost_table.by_arm(rows, "extra steps")) == "| task | `ls` |"
    assert list(cost_table.by_arm(rows, "extra steps"))[2].startswith("| rf1, 9 steps | −1.00 [")
    assert table["persistent"] == "| persistent | 3 | 0.0 | 0.0 | no teleport | | | |"
    assert "| 3 | 4.0 | 2.0 | +0.10 |" in table["probation"]
    assert "| 3 | 5.0 | 0.0 | -1.00 |" in table["extra steps"]


def test_the_table_of_one_arm_corrects_over_all_of_its_cells(tmp_path):
    keys = [m.key for m in mtlcore.create("task", "rf1").metrics]
    notes = {"fired": 1, "tried": 1, "accepted": 1, "taken back": 0, "extra": 0}
    with (tmp_path / "runs.jsonl").open("w") as stream:
        for base in ("ls", "cagrad"):
            for seed, percent in enumerate((0.6, 0.1, 0.5, 0.9, 0.2)):  # p = 0.03
                for arm, value in (("alone", 1.0), ("exact", 1.0 + percent / 100), ("persistent", 1.0 + seed * 1e-6)):
                    row = {"task": "rf1", "base": base, "arm": arm, "seed": seed, "steps": 9}
                    row |= {"metrics": dict.fromkeys(keys, value)}
                    did = {"accepted": 0} if arm == "persistent" else {}  # differs by rounding only, and is not counted
                    stream.write(json.dumps(row | {"notes": notes | did}) + "\n")
    rows = cost.finished(tmp_path / "runs.jsonl")
    stars = {line.split("|")[1].strip(): line.count("\\*") for line in cost_table.by_task(rows) if "(5" in line}
    assert stars == {"persistent": 0, "exact": 2}, "one arm in each column"
    assert cost.report(tmp_path).count("| no teleport |") == 2
    assert [line.count("\\*") for line in cost_table.by_arm(rows, "exact")][-1] == 0, "two cells"


def test_a_nudge_and_a_teleport_that_was_taken_back_change_a_run():
    still = {"fired": 1, "tried": 1, "accepted": 0, "taken back": 0, "extra": 0}
    rows = {("t", "ls", arm, 0, 9): {"notes": still} for arm in ("nudge", "exact")}
    rows["t", "ls", "probation", 0, 9] = {"notes": still | {"accepted": 1, "taken back": 1}}
    changed = {arm: cost.moves(rows, "t", "ls", arm, 9).changed for arm in ("nudge", "exact", "probation")}
    assert changed == {"nudge": True, "exact": False, "probation": True}


def test_the_pages_say_what_the_committed_records_say():
    root = Path(__file__).parents[2]
    rows = cost.finished(root / "benchmarks" / "results" / "cost" / "runs.jsonl")
    pages = [(root / "docs" / "explanation" / f"{name}.md").read_text() for name in ("cost", "cost-measured")]
    for page, table in zip(pages, (cost_table.by_arm(rows, "confirmed"), cost_table.by_task(rows))):
        for line in table:
            assert line.strip() in page.splitlines() or not line


def test_the_same_is_shown_and_not_merely_not_refuted():
    assert cost.equivalence([0.01, -0.02, 0.03, 0.0, 0.01]) < 0.001
    assert cost.equivalence([3.0, -3.0, 2.0, -2.0, 0.1]) > 0.1, "no difference in the mean, and nothing shown"
    assert cost.equivalence([2.0, 2.1, 1.9]) > 0.9
    assert cost.equivalence([0.1]) is None
    assert cost.equivalence([0.0, 0.0]) == 0.0


def test_not_worse_says_nothing_against_a_gain():
    gain = [-2.0, -2.1, -1.9, -2.2]
    assert cost_table.not_worse(gain) < 0.001
    assert cost.equivalence(gain) > 0.9
    harm = [2.0, 2.1, 1.9, 2.2]
    assert cost_table.not_worse(harm) > 0.9
    assert cost_table.not_worse([0.1]) is None
    within = [0.2, -0.1, 0.3, 0.0, 0.1]
    assert cost_table.not_worse(within) == cost.equivalence(within)


def test_a_conflict_of_single_batches_is_not_persistent():
    detector = Persistent(batches=8)
    opposed, agreed = (torch.tensor([[1.0, c], [c, 4.0]], dtype=torch.float64) for c in (-1.5, 1.5))
    view = lambda gram: StepView(losses=torch.ones(2), gramian=gram)
    mixed = [detector.detect(view(g)).conflicting for g in (opposed, agreed) * 8]
    assert not any(mixed)
    steady = [detector.detect(view(opposed)).conflicting for _ in range(8)]
    assert steady[-1]


def test_a_plateau_is_where_the_losses_no_longer_fall():
    opposed = torch.tensor([[1.0, -1.5], [-1.5, 4.0]], dtype=torch.float64)
    detector = Plateau(mtlcore.create("detector", "dominated"), batches=3)

    def look(loss: float) -> bool:
        return detector.detect(StepView(losses=torch.full((2,), loss), gramian=opposed)).conflicting

    assert not any(look(loss) for loss in (8.0, 7.0, 6.0, 5.0, 4.0, 3.0)), "they fall"
    assert [look(3.0) for _ in range(6)] == [False] * 4 + [True] * 2
