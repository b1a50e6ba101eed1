"""Work is spread over laws, filters choose among them, and what a certificate says is not asked again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

from mtlcore.registry import registry
from mtlverify import campaign as campaigns
from mtlverify import runner
from mtlverify.campaign import Depth, campaign
from mtlverify.laws.runs import Reaction
from mtlverify.memory import remembered
from mtlverify.mutants import mergers, teleports, twins
from mtlverify.processes import Task, _next

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


class Counted(mergers.Average):
    """A mean that knows how often it was asked."""

    asked = 0

    def merge(self, base, vectors, generator):
        Counted.asked += 1
        return super().merge(base, vectors, generator)


def test_laws_that_draw_from_one_pool_draw_the_same_inputs_and_share_answers():
    """A law about another question asks that one, and a law about what asking does really asks."""
    Counted.asked = 0
    first, second, third = runner.check(Counted(), ["finite", "shape-dtype-device", "order-free"], 40)
    assert first.families == second.families == third.families
    assert first.examples == 10
    assert Counted.asked == 2 * first.examples
    (fourth,) = runner.check(Counted(), ["pure"], 40)
    assert fourth.examples == 4
    assert Counted.asked == 2 * first.examples + fourth.examples


def test_what_is_remembered_cannot_be_spoilt_by_who_asked():
    asked = []

    def ask():
        asked.append(1)
        return {"entry": torch.zeros(2, requires_grad=True) * 2.0}

    plugin = mergers.Average()
    remembered(plugin, "a question", ask, 2)["entry"].data.fill_(7.0)
    again = remembered(plugin, "a question", ask, 2)["entry"]
    assert again.tolist() == [0.0, 0.0]
    assert again.requires_grad, "what a law must see is in the copy, too"
    assert len(asked) == 1
    for question in ("others", "more", "a question"):
        remembered(plugin, question, ask, 2)
    assert len(asked) == 4, "no more than two are kept"


def test_a_process_stays_with_its_group_then_takes_a_new_one_then_helps():
    tasks = [Task(i, str(i), group) for i, group in enumerate("aabbc")]
    assert _next([1, 2, 3, 4], tasks, "b", {"a"}) == 2
    assert _next([1, 4], tasks, "b", {"a"}) == 4
    assert _next([1], tasks, "b", {"a"}) == 1


def test_a_process_is_forked_with_what_every_process_needs():
    program = (
        "import sys, mtlverify.preload\n"
        "from mtlverify.declared import declared_laws\n"
        "wanted = {target.partition(':')[0] for _, target in declared_laws('mtlverify.laws')} | {'hypothesis'}\n"
        "sys.exit(', '.join(sorted(wanted - set(sys.modules))) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
