"""The law that compares a method with the same method in rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from mtlverify import exact, tolerance
from mtlverify.answer import Answer
from mtlverify.example import Example
from mtlverify.law import Margin, given, law
from mtlverify.laws.compare import agreement, shown
from mtlverify.laws.runs import along
from mtlverify.strategies import Draw, jacobians
from mtlverify.strategies import pick as st
from mtlverify.strategies.generic import entries


def known_exactly(plugin: Any) -> str | None:
    """The law applies to registered names, and hyper-parameters, for which there is an exact form."""
    return None if exact.exact_for(plugin) else "no rational form of this method is known to the harness"


def small_integers(draw: Draw) -> list[list[int]]:
    """1 to 4 rows of 1 to 3 integers from -3 to 3. Ties, right angles and dependent rows are frequent, and exact."""
    return entries(draw, draw(st.integers(1, exact.MAX_TASKS)), draw(st.integers(1, 3)), -3, 3)


def few_small_integers(rows: Tensor) -> bool:
    """Whether there are at most four rows, of integers below 100."""
    return len(rows) <= exact.MAX_TASKS and bool((rows == rows.round()).all() and rows.abs().max() < 100)


@law(
    "matches-exact",
    statement="On small integers the direction is that of rational arithmetic, to 11 digits.",
    source="mtlverify.exact: every support is tried, nothing is rounded",
    examples=lambda: jacobians((small_integers,), scalings=("unit",), dtypes=(torch.float64,)),
    within=few_small_integers,
    applies=known_exactly,
    effort=0.5,
)
def matches_exact(plugin: Any, example: Example) -> float:
    """A random method may have several correct answers; the nearest counts. In the first step the rows are integers; in
    later steps they are halves and doubles of these, which are exact, too."""
    return along(plugin, example, lambda answer: _nearest(plugin, answer))


def _nearest(plugin: Any, answer: Answer) -> Margin:
    function = exact.exact_for(plugin)
    assert function is not None
    rows = [[Fraction(x) for x in row] for row in answer.jacobian.double().tolist()]
    given(len(rows) <= exact.MAX_TASKS, "there are few tasks")
    found = torch.tensor([[float(x) for x in d] for d in function(rows, plugin)], dtype=torch.float64)
    errors = (found - answer.direction.double()).norm(dim=1)
    size = float(answer.jacobian.double().norm(dim=1).sum())
    nearest = found[int(errors.argmin())]
    wrong = f"the direction is {shown(answer.direction)}, in rational arithmetic {shown(nearest)}"
    return agreement(float(errors.min()), tolerance.EXACT * size, wrong)
