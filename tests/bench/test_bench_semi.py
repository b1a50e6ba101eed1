"""Labels that are withheld on one domain: the adversarial losses in closed form, and the table."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch

from mtlbench import records
from mtlbench.networks.judge import Judge, fooling_loss
from mtlbench.studies import lines, semi


def test_a_judge_that_knows_nothing_has_log_k():
    label, seen, unseen = torch.tensor([0, 1]), torch.rand(2, 4).softmax(1), torch.rand(3, 4).softmax(1)
    for alignment, sources in (("plain", 2), ("both", 3)):
        judge = Judge(4, alignment)
        with torch.no_grad():
            for p in judge[-1].parameters():
                p.zero_()
            own = semi._own_loss(judge, label, seen, unseen)
            fooling = fooling_loss(judge.frozen(unseen), alignment)
        assert float(own) == pytest.approx(math.log(sources))
        assert float(fooling) == pytest.approx(math.log(sources))


def test_network_and_judge_do_not_move_each_other():
    judge = Judge(4, "both")
    logits = torch.randn(2, 4, requires_grad=True)
    semi._own_loss(judge, torch.tensor([0, 1]), logits.softmax(1), logits.softmax(1)).backward()
    assert logits.grad is None
    assert all(p.grad is not None for p in judge.parameters())
    judge.zero_grad(set_to_none=True)
    fooling_loss(judge.frozen(logits.softmax(1)), "both").backward()
    assert bool(logits.grad.abs().sum() > 0)
    assert all(p.grad is None for p in judge.parameters())


def test_without_weight_the_adversarial_tasks_change_nothing(monkeypatch):
    monkeypatch.setattr(semi, "STEPS", 3)
    assert semi.run(0, semi.Arm("gt", 0.0)) == semi.run(0, semi.Arm())


def test_semi_table_judges_withheld_labels():
    rows = []
    for seed in range(4):
        for arm, gain in ((semi.Arm(), 0.0), (semi.Arm("cross", 0.03), 5.0 + 0.1 * seed)):
            accuracy = {"a, labelled": 90.0, "a, withheld": 50.0 + seed + gain}
            rows.append({"arm": arm.label, "seed": seed, "accuracy": accuracy})
    base, better = semi.table(rows).splitlines()[2:]
    assert base.endswith("|  | reference |")
    assert "| 90.0 ± 0.0 |" in better
    assert better.endswith("| +5.2 [+4.9, +5.4] | better |")  # 5.15 ± 3.18 * 0.129 / 2


def test_a_study_goes_on_from_the_lines_that_are_whole(tmp_path):
    begun = lines.called("About.", "nowhere", ["--out", str(tmp_path), "--seeds", "2"])
    assert (begun.seeds, begun.lines) == (2, [])
    begun.add([{"seed": 0}, {"seed": 1}])
    with begun.file.open("a") as file:
        file.write('{"seed": 2')
    again = lines.called("About.", str(tmp_path), [])
    assert again.lines == begun.lines == [{"seed": 0}, {"seed": 1}]
    again.add([{"seed": 2}])
    assert list(records.lines(begun.file)) == [{"seed": s} for s in range(3)]


def test_a_cell_has_half_of_the_interval_where_there_is_one():
    assert lines.span([80.0]) == "80.0"
    assert lines.span([79.0, 81.0]) == "80.0 ± 12.7"  # t = 12.706 with one degree of freedom, deviation / sqrt(2) = 1


@pytest.mark.parametrize(("study", "page"), [("semi", "partial-labels"), ("merging", "sets-and-merging")])
def test_the_page_says_what_the_committed_records_say(study, page):
    root = Path(__file__).parents[2]
    found = list(records.lines(root / "benchmarks" / "results" / study / "records.jsonl"))
    made = importlib.import_module(f"mtlbench.studies.{study}").table(found)
    assert made in (root / "docs" / "explanation" / f"{page}.md").read_text(encoding="utf-8")
