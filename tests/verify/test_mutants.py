"""Who checks the checks: all mutants die, no law is idle, and correct twins raise no alarm."""

from __future__ import annotations

import pytest

from mtlverify.mutants.score import CATALOGUE, false_alarms, mutation_score


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


def test_processes_change_nothing_but_the_time():
    alone, together = (list(false_alarms(range(5, 7), 1, jobs)) for jobs in (1, 2))
    assert [seed for seed, _ in alone] == [5, 6]
    assert alone == together


@pytest.mark.slow
def test_correct_twins_raise_no_alarm_in_a_thousand_seeds():
    assert alarms(false_alarms(range(1000), 5, jobs=2)) == []
