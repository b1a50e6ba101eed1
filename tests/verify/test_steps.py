"""Laws about the step: broken steps are refuted, whole ones are not, and what does not apply is told without a run."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlverify import check
from mtlverify.example import Example
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


@pytest.mark.parametrize("method", ["dualproj", "upgrad", "mgda"])
def test_the_rounding_of_gradients_that_cancel_is_no_harm(method):
    """The right step is zero; the one that is taken is 1e-19 long, where a gradient alone would move by 1e-2."""
    past = {"optimizer": "adagrad", "plain": "nesterov", "metric": "step", "unit": 32.0}
    past |= {"old": [9], "roots": [1], "place": [0]}
    rows = torch.tensor([[-1.0], [-1.0], [3.0], [-2.0]], dtype=torch.float64)
    example = Example(rows, torch.ones(4, dtype=torch.float64), extra=past)
    (law,) = chosen("aggregator", LAWS[:1])
    assert law.measure(mtlcore.create("aggregator", method), example) >= 0


def test_a_method_on_losses_is_not_run():
    for result in check("ls", LAWS[:1], 10):
        assert (result.status, result.examples) == ("not-applicable", 0)
        assert "losses only" in result.detail
