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


def test_correct_twins_raise_no_alarm():
    results = list(false_alarms(range(1), 17))
    assert len(results) > 90
    assert [r for _, r in results if r.status != "verified"] == []


@pytest.mark.slow
def test_correct_twins_raise_no_alarm_in_a_thousand_seeds():
    assert [(s, r) for s, r in false_alarms(range(1000), 5) if r.status != "verified"] == []
