"""Gradients at the end of the floats: right, or an error that names the overflow and the task."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlcore import Aggregation, Needs
from mtlcore.errors import NonFiniteError, PluginError
from support.methods import Calls

SQUARES = ["mgda", "upgrad", "gradops", "nash-mtl", "aligned-mtl", "pcgrad"]


@pytest.mark.parametrize("name", SQUARES)
def test_inner_products_that_overflow_float64_are_not_blamed_on_the_plugin(name):
    rows = torch.tensor([[1.0, 2.0], [1e308, -1.0]], dtype=torch.float64)
    with pytest.raises(NonFiniteError, match=r"gradient of task1 .* overflows inner products .* torch.float64"):
        mtlcore.aggregate(name, rows)


@pytest.mark.parametrize("name", ["sum", "pcgrad", "gradops"])
def test_a_direction_that_overflows_names_the_task(name):
    rows = torch.tensor([[2e38, 0.0], [3e38, 1e30]])
    with pytest.raises(NonFiniteError, match=r"gradient of task1 .* overflows the direction.* torch.float32"):
        mtlcore.aggregate(name, rows)


def test_what_fits_is_answered():
    rows = torch.tensor([[2e38, 0.0], [3e38, 1e30]])
    assert torch.isfinite(mtlcore.aggregate("mgda", rows)).all()
    long = torch.tensor([[1e307, 0.0], [2e307, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(mtlcore.aggregate("ls", long), long.mean(0))


def test_rows_that_a_plugin_adds_up_in_their_own_dtype():
    method = Calls(lambda view, state: Aggregation(direction=view.jacobian.sum(0), state=state))
    assert method.needs == Needs.JACOBIAN
    with pytest.raises(NonFiniteError, match="task1"):
        mtlcore.aggregate(method, torch.tensor([[2e38], [3e38]]))
    broken = Calls(lambda view, state: Aggregation(direction=view.jacobian.sum(0) / 0.0, state=state))
    with pytest.raises(PluginError, match="not finite"):
        mtlcore.aggregate(broken, torch.ones(2, 1))
