"""Laws about the step: broken steps are refuted, whole ones are not, and what does not apply is told without a run."""

from __future__ import annotations

import pytest

from mtlverify import check
from mtlverify.mutants import steps
from mtlverify.runner import chosen, examine

LAWS = ("step-non-conflicting", "step-nearest", "metric-identity", "step-unit-free", "step-descent")


@pytest.mark.parametrize("mutant", steps.KILLED_BY, ids=lambda m: m.__name__)
def test_a_broken_step_is_refuted(mutant):
    for law in chosen("aggregator", steps.KILLED_BY[mutant]):
        result = examine(mutant(), law, 100, 0, shrink=False)
        assert result.status == "refuted", result
        assert result.reason


@pytest.mark.parametrize("method", ["upgrad", "cagrad", "nash-mtl"])
def test_methods_keep_the_laws_of_the_step_whatever_they_promise_of_their_direction(method):
    for result in check(method, LAWS, 34):
        assert (result.status, result.examples) == ("verified", 10), result


def test_a_method_on_losses_is_not_run():
    for result in check("ls", LAWS[:1], 10):
        assert (result.status, result.examples) == ("not-applicable", 0)
        assert "losses only" in result.detail
