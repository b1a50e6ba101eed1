"""Who checks the checks: all mutants die, no law is idle, and correct twins raise no alarm."""

from __future__ import annotations

import pytest
import torch

from mtlcore.registry import registry
from mtlverify.example import Example
from mtlverify.mutants.score import CATALOGUE, false_alarms, mutation_score
from mtlverify.mutants.twins import Bargain
from mtlverify.runner import chosen, examine, kind_of


def test_no_law_is_idle():
    """Every law of this package has a mutant that is meant for it."""
    meant = {(kind_of(mutant()), law) for mutant, laws in CATALOGUE.items() for law in laws}
    names = {law if kind == "aggregator" else f"{kind}.{law}" for kind, law in meant}
    assert {e.name for e in registry().entries("law") if e.distribution == "mtlcore"} <= names


SOME = list(CATALOGUE)[::8]


@pytest.mark.parametrize("mutant", SOME, ids=lambda m: m.__name__)
def test_a_sample_of_the_mutants_is_killed(mutant):
    for law in chosen(kind_of(mutant()), CATALOGUE[mutant]):
        result = examine(mutant(), law, 200, 0, shrink=False)
        caught = result.status == "refuted" or (result.status == "error" and result.counterexample is not None)
        assert caught, result


@pytest.mark.slow
def test_every_mutant_is_killed_by_the_laws_meant_for_it_and_no_law_is_idle():
    score = mutation_score()
    assert [(r.name, r.law) for r in score.survived] == []
    assert score.idle == []
    assert score.share == 1.0
    assert len(score.killed) == sum(map(len, CATALOGUE.values()))
    # Whoever broke a law is told what is wrong, not only which law it was.
    assert [(r.name, r.law) for r in score.killed if r.status == "refuted" and not r.reason] == []


def alarms(results):
    return [(seed, r) for seed, found in results for r in found if r.status != "verified"]


def test_correct_twins_raise_no_alarm():
    [(seed, results)] = false_alarms(range(1), 17)
    assert len(results) > 90
    assert alarms([(seed, results)]) == []


@pytest.mark.slow
def test_processes_change_nothing_but_the_time():
    alone, together = (list(false_alarms(range(5, 7), 1, jobs)) for jobs in (1, 2))
    assert [seed for seed, _ in alone] == [5, 6]
    assert alone == together


@pytest.mark.slow
def test_correct_twins_raise_no_alarm_in_a_thousand_seeds():
    assert alarms(false_alarms(range(1000), 5, jobs=2)) == []


@pytest.mark.parametrize(
    "rows",
    [
        [[3.0, 1e5], [7.0, -99932.0], [2.0, -94.0], [1.0, 99.0]],
        [[8.0, 822.0], [9.0, -859.0], [9.0, 80.0], [7.0, 79.0], [3.0, -57.0]],
    ],
)
def test_the_bargain_is_struck_where_gradients_nearly_cancel(rows):
    """Newton steps in log w went round in circles here: the twin was wrong, and its law was right to refute it."""
    twin, (law,) = Bargain(), chosen("aggregator", ["alpha-fair"])
    example = Example(torch.tensor(rows, dtype=torch.float64), torch.ones(len(rows), dtype=torch.float64))
    assert float(law.measure(twin, example)) > 0.9
