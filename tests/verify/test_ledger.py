"""Stored counterexamples still fail, negative statements stay negative, no proof is contradicted, the page is whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mtlcore
from mtlcore import Aggregation, Aggregator
from mtlcore.registry import registry
from mtlverify.answer import ask
from mtlverify.example import Example
from mtlverify.ledger import figures, planar, render, store, verdicts
from mtlverify.ledger.build import Row, row, rows
from mtlverify.ledger.negatives import NEGATIVES, harms_everybody
from mtlverify.ledger.proofs import PROOFS, proof_of
from mtlverify.ledger.subjects import Subject, subjects
from mtlverify.minimise import least, smaller
from mtlverify.runner import examine, laws

DOCS = Path(__file__).parents[2] / "docs" / "reference"
STORED = store.stored_subjects()


@pytest.mark.parametrize("subject", STORED, ids=lambda s: s.label)
def test_every_stored_counterexample_still_fails(subject):
    found = store.replayed(subject)
    assert found
    assert {law: result.status for law, result in found} == {law: "refuted" for law, _ in found}


@pytest.mark.parametrize("subject", STORED, ids=lambda s: s.label)
def test_counterexamples_are_within_what_the_law_speaks_about(subject):
    for law, stored in store.load(subject).items():
        example = store.example_of(stored)
        domain = registry().load("law", stored["law"]).domain
        if isinstance(example, Example) and domain is not None:
            assert domain(example.jacobian), (law, example.jacobian)


def test_no_row_or_column_of_zeros_is_stored_that_can_be_left_out():
    chosen = {(n.subject.label, n.law) for n in NEGATIVES}  # these were not found by the search
    wrong = []
    for subject in STORED:
        for id, stored in store.load(subject).items():
            example = store.example_of(stored)
            if not isinstance(example, Example) or (subject.label, id) in chosen:
                continue
            zero = example.jacobian == 0
            drawn = id == "non-conflicting" and example.jacobian.shape[1] == 2  # which takes a plane
            if (bool(zero.all(0).any()) and not drawn) or bool(zero.all(1).any()):
                law, (k, p) = registry().load("law", stored["law"]), example.jacobian.shape
                small = smaller(law, subject.make(), example, budget=2 * (k + p))
                wrong += [] if small.jacobian.shape == (k, p) else [(subject.label, id, small.jacobian.tolist())]
    assert wrong == []


@pytest.mark.parametrize("negative", NEGATIVES, ids=lambda n: f"{n.subject.label}-{n.law}")
def test_negative_statements_are_stored_and_true(negative):
    stored = store.load(negative.subject)
    assert negative.law in stored, f"run python -m mtlverify.ledger {negative.subject.name}"
    plugin, example = negative.subject.make(), store.example_of(stored[negative.law])
    assert negative.law not in plugin.claims
    if negative.all_harmed:
        assert harms_everybody(plugin, example) < -0.01
    if (negative.subject.name, negative.law) == ("pcgrad", "non-conflicting"):
        assert example.n_tasks >= 3


def test_pcgrad_does_not_conflict_with_two_tasks():
    """The other half of the statement, on all pairs of small integer rows in the plane."""
    plugin = mtlcore.create("aggregator", "pcgrad")
    grid = [(x, y) for x in range(-2, 3) for y in range(-2, 3) if (x, y) != (0, 0)]
    worst = min(
        planar.worst_cosine(
            ask(plugin, Example(torch.tensor([g, h], dtype=torch.float64), torch.ones(2, dtype=torch.float64)))
        )
        for g in grid
        for h in grid
    )
    assert worst > -1e-9


def test_proofs_name_methods_and_laws_that_exist_and_claims_are_not_forgotten():
    labels = {s.label for s in subjects() if s.kind == "aggregator"}
    ids = {law.id for law in laws("aggregator")}
    assert set(PROOFS) <= labels
    assert {law for table in PROOFS.values() for law in table} <= ids
    plugin = mtlcore.create("aggregator", "cagrad")
    assert proof_of("aggregator", "cagrad", plugin, "non-conflicting") is None
    wide = mtlcore.create("aggregator", "cagrad", c=1.0)
    assert proof_of("aggregator", "cagrad (c=1)", wide, "non-conflicting") is not None
    assert "J Q" in proof_of("aggregator", "cagrad", plugin, "parameter-rotation").citation


def test_the_committed_ledger_agrees_with_the_stored_counterexamples():
    table = [Row(**r) for r in json.loads((DOCS / "ledger.json").read_text())]
    assert not [r for r in table if r.contradiction]
    refuted = {(r.kind, r.label, r.law): r.counterexample for r in table if r.status == "refuted"}
    stored = {(s.kind, s.label, law): c for s in STORED for law, c in store.load(s).items()}
    assert refuted == stored
    assert {"proved", "verified", "refuted"} <= {r.status for r in table}
    page = (DOCS / "ledger.md").read_text()
    for part in (render._overview(table), render._negatives(table, "figures")):
        assert part in page, "run python -m mtlverify.ledger --render-only"
    for line in table:
        assert f"### {line.label} ({line.kind})" in page
    for negative in NEGATIVES:
        assert f"### {negative.sentence}" in page


def test_pictures_are_small_described_and_without_background():
    drawn = sorted((DOCS / "figures").glob("aggregator.*.svg"))
    assert len(drawn) >= 5
    for file in drawn:
        text = file.read_text()
        assert len(text) < 20_000
        assert "<desc>Gradients" in text
        assert "fill: #ffffff" not in text


# --- the machinery ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstTaskOnly(Aggregator):
    """Deaf to everybody else."""

    def aggregate(self, view, state):
        weights = torch.zeros(view.n_tasks, dtype=torch.float64)
        weights[0] = 1.0
        return Aggregation(weights=weights, state=state)


def law_about(id):
    return next(law for law in laws("aggregator") if law.id == id)


def test_a_counterexample_is_made_small_without_leaving_its_law():
    big = torch.tensor([[3.7, -2.2, 0.4], [-41.0, 8.0, 17.0], [5.5, 1.0, 2.0]], dtype=torch.float32)
    example = Example(big, torch.tensor([3.0, 1e8, 0.1], dtype=torch.float64), seed=7)
    law = law_about("non-conflicting")
    assert law.measure(FirstTaskOnly(), example) < 0
    small = smaller(law, FirstTaskOnly(), example)
    assert small.jacobian.shape == (2, 1)
    assert small.jacobian.tolist() in ([[1.0], [-1.0]], [[-1.0], [1.0]])
    assert small.jacobian.dtype == torch.float64
    assert small.losses.tolist() == [1.0, 1.0]
    assert small.seed == 0
    assert law.measure(FirstTaskOnly(), small) < 0
    stationary = Example(torch.tensor([[2.0, 6.0], [-1.0, -3.0]], dtype=torch.float64), torch.ones(2).double())
    small = smaller(law_about("pareto-stationary-zero"), FirstTaskOnly(), stationary)
    assert law_about("pareto-stationary-zero").domain(small.jacobian)


def test_extras_follow_the_tasks():
    law = law_about("permutation-equivariant")
    rows = torch.tensor([[1.0, 2.0], [3.0, -1.0], [-4.0, 5.0]], dtype=torch.float64)
    example = Example(rows, torch.ones(3, dtype=torch.float64), extra={"permutation": [2, 0, 1]})
    small = smaller(law, FirstTaskOnly(), example)
    assert sorted(small.extra["permutation"]) == list(range(small.n_tasks))
    assert small.n_tasks == 2
    assert law.measure(FirstTaskOnly(), small) < 0


def test_the_smallest_planar_conflict_has_a_way_out():
    example = planar.smallest_conflict(mtlcore.create("aggregator", "ls"))
    assert example.jacobian.shape == (2, 2)
    assert planar.has_common_descent(example.jacobian)
    assert example.jacobian.abs().max() <= 3


def test_figure_marks_the_harmed_task_and_refuses_three_dimensions():
    rows = torch.tensor([[1.0, 0.0], [-2.0, 1.0]], dtype=torch.float64)
    answer = ask(mtlcore.create("aggregator", "ls"), Example(rows, torch.ones(2, dtype=torch.float64)))
    text = figures.svg(figures.conflict(answer, "a title"), "what is seen")
    assert "<desc>what is seen</desc>" in text
    assert "g1 (harmed)" in text
    assert "g2 (harmed)" not in text
    assert "good for all" in text
    assert text == figures.svg(figures.conflict(answer, "a title"), "what is seen")
    deep = ask(mtlcore.create("aggregator", "ls"), Example(torch.eye(3).double(), torch.ones(3).double()))
    with pytest.raises(ValueError, match="2 parameters"):
        figures.conflict(deep, "")


def test_rows_store_what_they_find_and_replay_it(tmp_path, monkeypatch):
    subject = Subject("aggregator", "ls")
    wanted = [law_about(id) for id in ("non-conflicting", "positively-homogeneous", "simplex-weights")]
    monkeypatch.setattr("mtlverify.ledger.build.laws", lambda kind: wanted)
    first = {r.law: r for r in rows(subject, 20, 0, tmp_path)}
    assert first["non-conflicting"].status == "refuted"
    assert first["non-conflicting"].examples > 0
    assert first["positively-homogeneous"].status == "proved"
    assert not [r for r in first.values() if r.contradiction]
    stored = store.path(subject, tmp_path).read_text()
    second = {r.law: r for r in rows(subject, 20, 0, tmp_path)}
    assert second["non-conflicting"].counterexample == first["non-conflicting"].counterexample
    assert second["non-conflicting"].examples == 0, "the stored counterexample settled it"
    assert store.path(subject, tmp_path).read_text() == stored


def test_a_stored_counterexample_is_made_smaller_when_it_is_read_again(tmp_path):
    """It was stored before the minimiser learnt something: rows of zeros, a second parameter, -0.0."""
    subject, law = Subject("aggregator", "ls"), law_about("strongly-stationary-zero")
    wide = torch.tensor([[-0.0, 1.0, 0.5], [0.0, -2.0, -1.0], [0.0, -3.0, -0.0]], dtype=torch.float64)
    found = examine(subject.make(), law, 1, 0, explicit=[Example(wide, torch.tensor([0.25, 0.5, 2.0]).double())])
    assert found.status == "refuted"
    made = row(subject, law, 20, 0, found.counterexample)
    assert (made.status, made.examples) == ("refuted", 0)
    small = store.example_of(made.counterexample)
    assert small.jacobian.shape == (2, 1)
    assert small.losses.tolist() == [1.0, 1.0]
    assert not small.jacobian[small.jacobian == 0].signbit().any()


def test_no_zero_is_negative_in_what_is_shown():
    law = law_about("simplex-weights")
    example = Example(torch.tensor([[1.0, -0.0], [-0.0, 1.0]], dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    shown = least(lambda e: e.jacobian.shape == (2, 2) and e.jacobian.count_nonzero() == 2, example, law.domain, 100)
    assert shown.jacobian.shape == (2, 2)
    assert not shown.jacobian.signbit().any()


def test_a_proof_that_is_refuted_is_a_contradiction():
    base = Row("aggregator", "x", "x", {}, "d", "non-conflicting", False, "refuted", 1, -1.0)
    assert not base.contradiction
    assert Row(**{**vars(base), "citation": "somebody"}).contradiction
    assert Row(**{**vars(base), "claimed": True}).contradiction
    assert Row(**{**vars(base), "status": "error"}).contradiction


def test_command_line_refuses_unknown_names(tmp_path):
    from mtlverify.ledger.command import app

    done = CliRunner().invoke(app, ["no-such-method", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "no-such-method" in done.output


def test_show_prints_the_verdicts_of_the_committed_ledger():
    table = [Row(**r) for r in json.loads((DOCS / "ledger.json").read_text())]
    assert verdicts.of(table) == json.loads(verdicts.FILE.read_text()), "run `make docs`"
    known = verdicts.recorded("aggregator", "cagrad")
    assert "non-conflicting" in known["refuted"]
    assert "conic-combination" in known["proved"] + known["verified"]
    assert verdicts.recorded("aggregator", "nobody") is None


def test_missing_rows_are_made_and_the_others_kept(tmp_path):
    """A row without the digest of its sources, a row that is lost, and one that nothing is wrong with."""
    from mtlverify.ledger.command import app

    def run(*options):
        found = ["sum", "--max-examples", "1", "--jobs", "1", "--out", str(tmp_path), *options]
        done = CliRunner().invoke(app, [*found, "--counterexamples", str(tmp_path / "kept")])
        assert done.exit_code == 0, done.output
        return done.output

    def table():
        return {r["law"]: r for r in json.loads((tmp_path / "ledger.json").read_text())}

    ids = {law.id for law in laws("aggregator")}
    assert f"{len(ids)} rows to make, 0 known" in run("--missing")
    first = table()
    assert set(first) == ids
    gone, old, same = "finite", "pure", "positively-homogeneous"
    kept = [r for law, r in first.items() if law != gone]
    for r in kept:
        if r["law"] in (old, same):
            r["examples"] = 77
        if r["law"] == old:
            r["digest"] = "of another source"
    (tmp_path / "ledger.json").write_text(json.dumps(kept))
    assert f"2 rows to make, {len(ids) - 1} known" in run("--missing")
    again = table()
    assert set(again) == ids
    assert [again[law]["examples"] for law in (gone, old, same)] == [1, 1, 77]
    assert "0 rows to make" in run("--missing")
    stored = json.loads((tmp_path / "kept" / "aggregator.sum.json").read_text())["counterexamples"]
    assert set(stored) == {law for law, r in again.items() if r["status"] == "refuted"}


def test_promises_that_nobody_hunted_are_hunted_and_keep_what_was_known(tmp_path):
    from mtlverify.ledger.command import app

    def run(*options):
        found = ["sum", "--max-examples", "1", "--jobs", "1", "--out", str(tmp_path), "--missing", *options]
        done = CliRunner().invoke(app, [*found, "--counterexamples", str(tmp_path / "kept")])
        assert done.exit_code == 0, done.output
        return done.output

    run()
    table = json.loads((tmp_path / "ledger.json").read_text())
    for r in table:
        r["examples"] = 77 if r["status"] in ("verified", "proved") else r["examples"]
    (tmp_path / "ledger.json").write_text(json.dumps(table))
    promises = [r["law"] for r in table if r["claimed"] and r["status"] in ("verified", "proved")]
    assert f"{len(promises)} rows to make" in run("--hunt", "0.05")
    hunted = {r["law"]: r for r in json.loads((tmp_path / "ledger.json").read_text()) if r["hunted"]}
    assert set(hunted) == set(promises)
    assert {r["examples"] for r in hunted.values()} == {77}
    assert min(r["hunt_margin"] for r in hunted.values()) >= 0
    assert "0 rows to make" in run("--hunt", "0.05")
    assert f"hunted on {hunted['finite']['hunted']:,} (worst margin 1)" in (tmp_path / "ledger.md").read_text()


def test_a_promise_that_nobody_hunted_says_so():
    kept = Row("aggregator", "x", "x", {}, "d", "pure", True, "verified", 40, 1.0, families={"small": 40})
    assert "not hunted" in kept.strength
    assert "hunted on 12 (worst margin 0.5)" in Row(**{**vars(kept), "hunted": 12, "hunt_margin": 0.5}).strength
    assert "hunted" not in Row(**{**vars(kept), "claimed": False}).strength


def test_who_is_away_when_is_a_list_of_pairs_and_nobody_is_not_told():
    example = {"jacobian": [[1.0]], "losses": [1.0], "dtype": "float64", "extra": {"away": [[0, 1], [2, 0]]}}
    row = Row("aggregator", "x", "x", {}, "d", "pure", False, "refuted", 1, -1.0, counterexample={"example": example})
    assert "away `[[0, 1], [2, 0]]`" in render._evidence(row)
    example["extra"] = {"away": []}
    assert "away" not in render._evidence(row)


def test_a_row_that_takes_too_long_is_missing_and_the_others_are_made(tmp_path, monkeypatch):
    from mtlverify.ledger import command
    from mtlverify.processes import Lost

    groups = []

    def late(function, tasks, jobs, timeout):
        groups.extend(task.group for task in tasks)
        yield 0, Lost("it took longer than 1 s and was stopped")

    monkeypatch.setattr(command, "side_by_side", late)
    work = [(Subject("aggregator", "ls"), id) for id in ("finite", "pure")]
    depth = command.Depth(1, 0, 0.0, tmp_path)
    assert command._fill({}, work, depth, 1, 1.0, tmp_path / "ledger.json") == 1
    assert len(set(groups)) == 2, "rows of one group are given up together"


def test_what_is_verified_says_how_much_was_hunted():
    """The sum went stale when rows were made again, and nothing said so."""
    root = Path(__file__).parents[2]
    page = (root / "docs/explanation/what-is-verified.md").read_text(encoding="utf-8")
    made = json.loads((root / "docs/reference/ledger.json").read_text(encoding="utf-8"))
    hunted = [found["hunted"] for found in made if found["hunted"]]
    assert f"All {len(hunted)} promises about gradients were hunted" in page
    assert f"{sum(hunted):,} inputs together" in page
    assert f"{len(made):,} rows" in page
