"""Laws about networks: in low precision, and teleports one after another."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlverify.example import Example
from mtlverify.laws.low_precision import EITHER, in_range, written
from mtlverify.mutants import quiet, teleports
from mtlverify.runner import chosen, examine
from mtlverify.strategies.networks import NetworkExample

ROWS = torch.tensor([[3.0, 1.0], [-1.0, 2.0], [0.5, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("precision", EITHER)
def test_the_gradients_are_those_of_the_example_up_to_rounding(precision):
    example = Example(1e100 * ROWS, torch.ones(3, dtype=torch.float64))
    answer = written(mtlcore.create("aggregator", "ls"), example, precision)
    assert answer.jacobian.dtype == (torch.bfloat16 if precision == "parameters" else torch.float32)
    found, expected = (torch.nn.functional.normalize(r.double(), dim=1) for r in (answer.jacobian, ROWS))
    assert torch.allclose(found @ found.T, expected @ expected.T, atol=0.02)
    mean = answer.jacobian.double().mean(dim=0)
    assert float((answer.direction.double() - mean).norm() / mean.norm()) < 0.02


def test_rows_are_brought_into_the_range_of_the_dtype_without_turning():
    scaled = in_range(torch.tensor([[1e200, 0.0], [1e190, -3e199]], dtype=torch.float64))
    assert 0.5 <= float(scaled.abs().max()) < 2.0
    assert float(scaled[1, 1] / scaled[0, 0]) == pytest.approx(-0.3)
    assert not in_range(torch.zeros(2, 2)).any()


def test_who_promises_nothing_is_not_asked():
    (law,) = chosen("aggregator", ["low-precision-network"])
    assert examine(mtlcore.create("aggregator", "ls"), law, 3, 0).status == "not-applicable"
    assert examine(mtlcore.create("aggregator", "upgrad"), law, 60, 0).status == "verified"
    assert examine(quiet.PrecisionOfItsNetwork(), law, 100, 0, shrink=False).status == "refuted"


def test_what_a_second_teleport_would_break_is_found():
    (law,) = chosen("teleport", ["composes"])
    assert examine(teleports.Rescaling(), law, 48, 0).status == "verified"
    assert examine(teleports.ClampsWeights(), law, 48, 0, shrink=False).status == "refuted"


def test_what_is_wrong_with_few_digits_only_is_found_on_networks_in_bfloat16():
    (coarse,), (fine,) = (chosen("teleport", [id]) for id in ("low-precision-network", "loss-invariant"))
    examples = [NetworkExample("mlp", 12, 2, seed) for seed in range(20)]  # every torch draws other networks
    assert all(coarse.measure(teleports.Rescaling(), e) >= 0 for e in examples[:6])
    for mutant in (teleports.SparesWhatIsSmall(), teleports.DoublePrecision()):
        assert any(coarse.measure(mutant, e) < 0 for e in examples)
        assert all(fine.measure(mutant, e) >= 0 for e in examples[:6])


def test_a_network_is_the_same_in_another_dtype_up_to_rounding():
    made, coarse = (NetworkExample("convolutional", 3, 2, 5).build(*dtype) for dtype in ((), (torch.bfloat16,)))
    assert {v.dtype for v in coarse.trunk.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        fine, rough = made.exact(7)(), coarse.exact(7)()
    for task, loss in fine.items():
        assert rough[task].dtype == torch.float64
        assert float(rough[task]) == pytest.approx(float(loss), rel=0.1), task
        assert float(rough[task]) != float(loss)
    assert coarse.batch(7)()[0]["task0"].dtype == torch.bfloat16


def test_a_promise_is_asked_for_after_a_resume():
    (law,) = chosen("aggregator", ["non-conflicting"])
    assert examine(quiet.TrustsItsOwnStates(), law, 60, 0, shrink=False).status == "refuted"


def test_pivrg_stops_where_no_direction_is_good_for_every_task():
    rows = torch.tensor([[1.5, 0.0], [-3.0, 0.0], [1e6, 1e-3]], dtype=torch.float64)
    assert mtlcore.aggregate("pivrg", rows).norm() == 0
