"""Every family is what its docstring proves it to be, also after row scaling and in float32."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import mtlcore
from mtlcore.registry import registry
from mtlverify import predicates, search, strategies
from mtlverify.example import Example
from mtlverify.laws.symmetry import interchangeable
from mtlverify.predicates import aligned, exactly_strongly_stationary, independent, not_stationary
from mtlverify.references import min_norm as min_norm_module
from mtlverify.references.min_norm import min_norm
from mtlverify.references.rows import unit_rows
from mtlverify.strategies import degenerate, edge, generic, jacobians, pick, scales, stationary, strata

FEW = settings(max_examples=settings.default.max_examples // 2)  # 25, nightly 1000


def hull_distance(rows: torch.Tensor) -> float:
    """Distance of 0 from the hull of the unit rows; 0 exactly when the rows are Pareto-stationary."""
    data = rows.double().numpy()
    if not data.any(axis=1).all():
        return 0.0
    return float(np.linalg.norm(min_norm(unit_rows(data).units).direction))


@FEW
@given(jacobians((stationary.strongly, stationary.weakly, degenerate.antiparallel, degenerate.one_zero_row)).merged())
def test_stationary_families_are_stationary(example):
    assert hull_distance(example.jacobian) < 1e-9


@FEW
@given(jacobians((degenerate.equal_norms,), scalings=("unit", "common scale")).merged())
def test_rows_of_equal_norm_are_equally_long_to_the_last_bit_and_the_last_opposes_the_first(example):
    norms = example.jacobian.double().square().sum(dim=1)
    assert bool((norms == norms[0]).all())
    assert torch.equal(example.jacobian[-1], -example.jacobian[0])


@FEW
@given(jacobians((degenerate.circulant,), scalings=("unit", "common scale")).merged())
def test_circulant_rows_cannot_be_told_apart_by_inner_products(example):
    gram = example.jacobian.double() @ example.jacobian.double().T
    k = example.n_tasks
    for i in range(k):
        assert torch.equal(gram[i], gram[0].roll(i))
    assert len(set(gram.sum(dim=1).tolist())) == 1


def test_half_of_the_circulant_rows_are_interchangeable_and_hardly_any_others():
    def tied(family):
        found = []

        @settings(max_examples=100, derandomize=True, database=None)
        @given(jacobians((family,), scalings=("unit",)).merged())
        def look(example):
            found.append(interchangeable(example.jacobian))

        look()
        return sum(found) / len(found)

    assert tied(degenerate.circulant) > 0.4
    assert tied(generic.gaussian) < 0.1


@FEW
@given(jacobians(strategies.MANY_TASKS).merged())
def test_many_are_more_than_the_other_families_have(example):
    assert example.n_tasks in (7, 11, 17, 40)


@FEW
@given(jacobians((stationary.escapable,)).merged())
def test_escapable_rows_are_not_stationary(example):
    assert bool((example.jacobian > 0).all(dim=0).any())
    assert hull_distance(example.jacobian) > 1e-3


@FEW
@given(jacobians(strategies.NEARLY_STATIONARY, scalings=("unit",)).merged())
def test_nearly_stationary_rows_are_not_but_a_short_combination_exists(example):
    rows = example.jacobian.double()
    assert bool((rows[:, 0] > 0).all())
    assert hull_distance(example.jacobian) > 0
    pair = (rows[0] + rows[1]).norm() / 2
    assert float(pair) <= 99 * rows.shape[1] ** 0.5
    assert float(rows[0].norm()) >= 1.0
    assert float((rows[0] - rows[1]).norm()) / 2 >= 100.0 - 99.0


@FEW
@given(jacobians((stationary.weakly,)).merged())
def test_weakly_stationary_rows_are_not_strongly_stationary(example):
    """The largest minimal weight of a stationary combination is zero: an independent linear program."""
    from scipy.optimize import linprog

    units = unit_rows(example.jacobian.double().numpy())
    if len(units.units) < example.n_tasks:
        return  # a zero row inside the block carries any weight; the first coordinate argument is unaffected
    k, p = units.units.shape
    equal = np.vstack([np.hstack([units.units.T, np.zeros((p, 1))]), np.append(np.ones(k), 0.0)])
    above = np.hstack([-np.eye(k), np.ones((k, 1))])
    found = linprog(
        np.append(np.zeros(k), -1.0), A_ub=above, b_ub=np.zeros(k), A_eq=equal, b_eq=np.append(np.zeros(p), 1.0)
    )
    assert found.success
    assert found.x[-1] < 1e-7


@FEW
@given(jacobians((degenerate.rank_deficient, generic.tall)).merged())
def test_dependent_rows_are_dependent(example):
    rows = example.jacobian.double()
    norms = rows.norm(dim=1)
    units = rows[norms > 0] / norms[norms > 0, None]
    if len(units) == len(rows):
        assert int(torch.linalg.matrix_rank(units, rtol=1e-10)) < len(rows)


@FEW
@given(jacobians((generic.independent,), scalings=("unit", "common scale")).merged())
def test_independent_rows_are_well_conditioned(example):
    assert float(torch.linalg.cond(example.jacobian.double())) < 10.0


@FEW
@given(jacobians(strategies.ALIGNED).merged())
def test_aligned_rows_do_not_conflict(example):
    rows = example.jacobian.double()
    assert bool((rows @ rows.T >= 0).all())
    assert bool(rows.any(dim=1).all())


@FEW
@given(jacobians((generic.opposed,)).merged())
def test_opposed_neighbours_conflict(example):
    rows = example.jacobian.double()
    assert bool(((rows[:-1] * rows[1:]).sum(dim=1) < 0).all())


@FEW
@given(jacobians((degenerate.near_collinear,), dtypes=(torch.float64,)).merged())
def test_near_collinear_rows_lie_near_a_line(example):
    rows = example.jacobian
    alive = rows[rows.norm(dim=1) > 0]
    if len(alive) > 1 and float(alive.abs().max() / alive.abs().min(dim=1).values.clamp_min(1e-30).max()) > 1e3:
        cos = torch.nn.functional.cosine_similarity(alive[:1], alive[1:])
        assert bool(cos.abs().isfinite().all())


@FEW
@given(jacobians(scalings=("unit", "common scale", "spread rows")).merged())
def test_scaling_is_exact_in_both_dtypes(example):
    """Every entry is an integer times a power of two, and float32 holds it."""
    rows = example.jacobian
    assert torch.equal(rows.double().float().double(), rows.double())
    for row in rows.double():
        unit = row.abs()[row != 0]
        if unit.numel():
            mantissa, _ = torch.frexp(unit / unit.min())
            assert bool(mantissa.isfinite().all())


@FEW
@given(jacobians((edge.lopsided,), scalings=("unit", "common scale")).merged())
def test_lopsided_rows_are_strongly_stationary_to_the_last_bit(example):
    assert exactly_strongly_stationary(example.jacobian)


@FEW
@given(jacobians((edge.nearly_orthogonal,)).merged())
def test_nearly_orthogonal_rows_are_independent_and_have_a_way_out(example):
    assert independent(example.jacobian)
    assert not_stationary(example.jacobian)


@FEW
@given(jacobians((edge.several_zero_rows, edge.aligned_beside_zero)).merged())
def test_some_rows_are_zero_and_not_all(example):
    zero = (example.jacobian == 0).all(dim=1)
    assert bool(zero.any())
    assert not bool(zero.all())
    if example.family.startswith("several"):
        assert int(zero.sum()) >= 2
    else:
        assert aligned(example.jacobian)


def test_both_engines_draw_the_same_families():
    """What the search samples itself is what Hypothesis draws: an Example of the family's name, from every stratum."""
    for stratum in jacobians().strata:
        rng = random.Random(0)
        found = None
        while found is None:
            with contextlib.suppress(pick.Rejected):
                found = stratum.sample(rng)
        assert found.family.startswith(stratum.name)


def test_every_family_is_reached_at_default_depth():
    """100 inputs over all families: a law that looks at them has seen each of them."""
    from mtlverify.law import law
    from mtlverify.mutants.twins import Mean
    from mtlverify.search import search

    seen: dict[str, int] = {}

    @law("seen", statement="", source="", examples=jacobians)
    def spy(plugin, example):
        seen[example.family.split(" ")[0]] = seen.get(example.family.split(" ")[0], 0) + 1
        return 1.0

    outcome = search(spy, Mean(), spy.examples(), 100, seed=0)
    assert outcome.examples == sum(seen.values()) == 100
    assert {f.__name__ for f in strategies.ALL} == set(seen)
    assert outcome.families == seen


@pytest.mark.parametrize("exponent", [-12, -8, 0, 3, 12])
def test_decades_are_powers_of_two_near_powers_of_ten(exponent):
    value = scales.decade(exponent)
    assert torch.frexp(torch.tensor(value, dtype=torch.float64)).mantissa == 0.5
    assert 0.7 < value / 10.0**exponent < 1.42


def test_extreme_rows_reach_what_their_dtype_allows_and_not_farther():
    rng, lengths = random.Random(0), {torch.float32: [], torch.float64: []}
    for stratum in jacobians(scalings=("extreme",)).strata:
        for _ in range(10):
            with contextlib.suppress(pick.Rejected):
                example = stratum.sample(rng)
                norms = example.jacobian.double().norm(dim=1)
                lengths[example.jacobian.dtype] += norms[norms > 0].log10().tolist()
    assert 149 < max(lengths[torch.float64]) <= 150.5
    assert -150.5 <= min(lengths[torch.float64]) < -149
    assert 19 < max(lengths[torch.float32]) <= 20.5
    assert -20.5 <= min(lengths[torch.float32]) < -19


def test_rows_are_brought_into_range_without_turning():
    rows = torch.tensor([[3.0, 4.0], [1e-200, 2e-200], [0.0, 0.0], [-1e160, 1e150]], dtype=torch.float64)
    kept = scales.kept_in_range(rows, torch.float64)
    assert torch.equal(kept[0], rows[0])
    assert not kept[2].any()
    assert float(kept[1, 1] / kept[1, 0]) == 2.0
    assert 1e-151 < float(kept[1, 0]) < 1e-149
    assert 1e149 < -float(kept[3, 0]) < 1e151


@pytest.mark.parametrize(("alike", "draws"), [(True, search.PATIENCE), (False, search.LEAST_DRAWS)])
def test_inputs_that_are_alike_are_given_up_sooner_if_none_counts(alike, draws):
    """And not once one of them has counted."""
    drawn = []

    def recipe(draw):
        drawn.append(draw(pick.integers(0, 9)))
        raise pick.Rejected

    law = registry().load("law", "finite")
    search.Search(law, None).through(strata.Stratum(recipe, alike=alike), 2, 0)
    assert len(drawn) == draws
    counted = search.Search(law, mtlcore.create("aggregator", "ls"))
    example = Example(torch.ones(2, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))

    def first_only(draw):
        drawn.append(0)
        if len(drawn) > draws + 1:
            raise pick.Rejected
        return example

    counted.through(strata.Stratum(first_only, alike=alike), 2, 0)
    assert counted.tried == 1
    assert len(drawn) == draws + search.LEAST_DRAWS


def test_stationarity_is_decided_as_by_the_exact_reference_and_hardly_ever_asks_it(monkeypatch):
    asked = []
    exact = min_norm_module.min_norm
    monkeypatch.setattr(min_norm_module, "min_norm", lambda rows: asked.append(rows) or exact(rows))
    seen = []
    for stratum in jacobians().strata:
        rng = random.Random(3)
        for _ in range(4):
            with contextlib.suppress(pick.Rejected):
                rows = stratum.sample(rng).jacobian
                length = np.linalg.norm(exact(rows.double().numpy()).direction)
                found = predicates.stationary(rows)
                assert found == (length <= 1e-13 * float(rows.double().norm(dim=1).max()))
                seen.append(found)
    assert 10 < sum(seen) < len(seen) - 10
    assert len(asked) <= len(seen) // 20
