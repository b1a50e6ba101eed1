"""The constructed problem on which a teleport must help, and the law that says so."""

from __future__ import annotations

import pytest

import mtlcore
from mtlverify.laws.progress import EXCESS, SLANT, BadCoordinates, helps_where_it_must, served, step_changes
from mtlverify.strategies.networks import NetworkExample

EXAMPLES = [NetworkExample("mlp", width, 2, seed) for width, seed in ((2, 0), (3, 5), (6, 11))]


@pytest.mark.parametrize("name", ["relu-rescaling", "linear-boundary"])
def test_it_helps(name):
    plugin = mtlcore.create("teleport", name)
    assert helps_where_it_must.applies(plugin) is None
    assert all(helps_where_it_must.measure(plugin, example) > 0.3 for example in EXAMPLES)


def test_the_problem_is_what_it_says():
    """By the formulas of its docstring: on one batch, agreement in the second layer, EXCESS times as much conflict in
    the first; without a teleport a step along the mean gradient raises the first loss."""
    made = BadCoordinates(3, 4)
    rows = made.rows(0)
    first = made.trunk[0].weight.numel()
    agreement = float(rows[0, first:] @ rows[1, first:])
    conflict = float(rows[0, :first] @ rows[1, :first])
    assert agreement > 0.0
    assert -conflict / agreement == pytest.approx(EXCESS, rel=0.1)
    assert 2 * SLANT > 0.0
    assert float(served(made, 7)[0]) < -0.05
    changes = step_changes(made, 7)
    assert changes[0] > 0.0 > changes[1]


def test_going_anywhere_along_the_symmetry_does_not_do():
    """The mutant: the same orbit, no search, and no check. It is caught, so the law can fail."""
    margins = [helps_where_it_must.measure(mtlcore.create("teleport", "random"), example) for example in EXAMPLES]
    assert min(margins) < 0.0
