"""Work is spread over laws, filters choose among them, and what a certificate says is not asked again."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mtlcore.registry import registry
from mtlverify import campaign as campaigns
from mtlverify import runner
from mtlverify.campaign import Depth, campaign
from mtlverify.laws.runs import Reaction
from mtlverify.mutants import teleports, twins

FEW = ("finite", "positively-homogeneous", "non-conflicting", "simplex-weights")


@pytest.fixture
def few(monkeypatch):
    everything = runner.laws
    monkeypatch.setattr(runner, "laws", lambda kind: [law for law in everything(kind) if law.id in FEW])
    # A mean's other claims are then of nothing; that is another test.
    monkeypatch.setattr(campaigns, "claims_of_nothing", lambda plugin, kind, laws: [])
    return [registry().find("aggregator", "ls")]


def rows(entries, **options):
    return [[r.law for r in results] for _, results in campaign(entries, Depth(3), **options)]


def test_filters(few):
    assert rows(few, laws=["non-conflicting"]) == [["non-conflicting"]]
    assert "non-conflicting" not in rows(few, claimed=True)[0]
    assert "positively-homogeneous" in rows(few, claimed=True)[0]


def test_a_second_run_reads_the_certificate_and_a_fresh_one_does_not(few, monkeypatch):
    first = list(campaign(few, Depth(3)))
    asked = []
    monkeypatch.setattr(campaigns, "_law_checked", lambda task: asked.append(task[3]) or first[0][1][0])
    assert list(campaign(few, Depth(2))) == first
    assert asked == []
    list(campaign(few, Depth(3), fresh=True))
    assert sorted(asked) == sorted(FEW)
    asked.clear()
    list(campaign(few, Depth(4)))
    assert sorted(asked) == sorted(FEW), "a deeper search than the certificate's"


def test_a_method_that_cannot_be_made_is_one_row(few):
    [(_, results)] = campaign(few, Depth(1), options={"weights": "nonsense"})
    assert [(r.law, r.status) for r in results] == [("loads", "error")]


def test_processes_change_nothing(few):
    wanted = ["finite", "positively-homogeneous"]
    alone, together = (list(campaign(few, Depth(2), laws=wanted, jobs=jobs)) for jobs in (1, 2))
    assert alone == together


def test_few_inputs_are_few_questions():
    """All laws with three inputs each: a method that takes half a second to answer is checked in minutes, not hours."""
    asked = [0]

    @dataclasses.dataclass(frozen=True)
    class Counted(twins.Remembering):
        def aggregate(self, view, state):
            asked[0] += 1
            return super().aggregate(view, state)

    done = [runner.examine(Counted(), law, 3, 0) for law in runner.laws("aggregator")]
    assert len(done) >= 33
    assert asked[0] < 900


def test_a_run_on_moved_gradients_is_made_once_and_no_further_than_asked():
    made = []

    def run(rows):
        for number in range(100):
            made.append(number)
            yield rows[0] + number

    react = Reaction(run)
    rows = torch.ones(2, 3)
    assert [float(react.at(n)(rows)[0]) for n in (0, 2, 1, 2)] == [1.0, 3.0, 2.0, 3.0]
    assert made == [0, 1, 2]


def test_three_inputs_are_found_where_few_families_have_any():
    """Most networks give this teleport nothing to do."""
    (law,) = runner.chosen("teleport", ["history-in-new-coordinates"])
    for seed in range(4):
        assert runner.examine(teleports.Rescaling(), law, 3, seed).status == "verified"
