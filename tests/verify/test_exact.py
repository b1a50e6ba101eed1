"""Proofs that a machine has read: statements about methods in rational arithmetic and, for two tasks, in symbols."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
import sympy

import mtlcore
from mtlverify import exact
from mtlverify.ledger.proofs import PROOFS
from mtlverify.predicates import exactly_strongly_stationary, null_vectors
from mtlverify.runner import check


def jacobians():
    """All pairs of rows in the plane with entries up to 2, and 150 matrices of three or four rows."""
    grid = list(itertools.product(range(-2, 3), repeat=2))
    yield from ([list(g), list(h)] for g, h in itertools.combinations_with_replacement(grid, 2))
    rng = random.Random(0)
    for _ in range(150):
        k, p = rng.choice([(3, 2), (3, 3), (4, 3)])
        yield [[rng.randint(-3, 3) for _ in range(p)] for _ in range(k)]


def answers(name, **options):
    method = mtlcore.create("aggregator", name, **options)
    function = exact.exact_for(method)
    for rows in jacobians():
        data = [[Fraction(x) for x in row] for row in rows]
        if name != "pcgrad" or len(rows) <= 3:
            yield data, function(data, method)


@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj", "gradops"])
def test_no_task_is_harmed_without_any_tolerance(name):
    for rows, (d,) in answers(name):
        assert all(exact.dot(g, d) >= 0 for g in rows), rows
    assert PROOFS[name]["non-conflicting"].read_by == "machine"


def test_every_task_gains_the_square_of_the_least_norm():
    for rows, (d,) in answers("mgda"):
        assert all(exact.dot(g, d) >= exact.dot(d, d) for g in rows), rows


@pytest.mark.parametrize("name", ["upgrad", "dualproj", "gradops"])
def test_strongly_stationary_rows_give_exactly_zero(name):
    import torch

    found = 0
    for rows, (d,) in answers(name):
        if exactly_strongly_stationary(torch.tensor([[float(x) for x in row] for row in rows])):
            found += 1
            assert not any(d), rows
    assert found > 30


def test_gradops_moves_unless_stationary():
    """d = 0 only where some convex combination vanishes: the least norm is exactly zero, too."""
    for rows, (d,) in answers("gradops"):
        if not any(d):
            assert not any(exact.min_norm(rows)), rows


def test_pcgrad_harms_nobody_with_two_tasks_in_any_order_and_somebody_with_three():
    harmed = 0
    for rows, ends in answers("pcgrad"):
        worst = min(exact.dot(g, d) for d in ends for g in rows)
        if len(rows) == 2:
            assert worst >= 0, rows
        harmed += worst < 0
    assert harmed > 0


def test_the_shipped_methods_are_their_exact_selves():
    for name in ("ls", "mgda", "upgrad", "dualproj", "gradops", "pcgrad"):
        [result] = check(name, ["matches-exact"], max_examples=40)
        assert (result.status, result.examples) == ("verified", 20), result


def test_other_hyper_parameters_have_no_exact_form():
    assert exact.exact_for(mtlcore.create("aggregator", "mgda", normalize="l2")) is None
    assert exact.exact_for(mtlcore.create("aggregator", "famo")) is None


def test_null_vectors_by_hand():
    rows = [[Fraction(1), Fraction(0)], [Fraction(-1), Fraction(-1)], [Fraction(0), Fraction(1)]]
    assert null_vectors(rows) == [[Fraction(1), Fraction(1), Fraction(1)]]
    assert null_vectors(rows[:2]) == []


def test_two_tasks_in_symbols():
    """a = |g_1|^2, b = <g_1, g_2>, c = |g_2|^2."""
    a, b, c = sympy.symbols("a b c", real=True)
    w = (c - b) / (a + c - 2 * b)  # the hull's point of least norm, where it is inside
    square = w**2 * a + 2 * w * (1 - w) * b + (1 - w) ** 2 * c
    assert sympy.simplify(w * a + (1 - w) * b - square) == 0  # <g_1, d> = |d|^2
    assert sympy.simplify(w * b + (1 - w) * c - square) == 0  # <g_2, d> = |d|^2
    # PCGrad with b < 0: d = g_1 - b/c g_2 + g_2 - b/a g_1, and the gains are 2 - 2 b^2/(ac) > 0 halves of a and c.
    first, second = 1 - b / a, 1 - b / c
    assert sympy.simplify(first * a + second * b - (a - b**2 / c)) == 0
    assert sympy.simplify(first * b + second * c - (c - b**2 / a)) == 0
    # DualProj with <g_1, g_0> < 0 and b < 0: projecting the mean off g_1 leaves <g_2, d> = (c - b^2/a) / 2 >= 0.
    off = (a + b) / (2 * a)
    assert sympy.simplify((a + b) / 2 - off * a) == 0
    assert sympy.simplify((b + c) / 2 - off * b - (c - b**2 / a) / 2) == 0
    # Nash bargaining: w = (1/x, y/x) with gains x and x/y solves G w = 1/w where x^2 = a + b y and x^2 = b y + c y^2.
    y = sympy.sqrt(a / c)
    assert sympy.simplify((a + b * y) - (b * y + c * y**2)) == 0
