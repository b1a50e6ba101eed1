"""A definition is the only place where its name stands."""

from __future__ import annotations

import dataclasses
import importlib
import textwrap

import pytest
import torch

import mtlverify
from mtlcore.registry import create, registry
from mtlverify.answer import answered, ask, stepped, view_of
from mtlverify.declared import declared_problems
from mtlverify.example import Example
from mtlverify.law import BASES, KINDS
from mtlverify.mutants import subtle, twins
from mtlverify.runner import examine, laws


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "declaring_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('listing must not import')\n")
    (folder / "mine.py").write_text(
        textwrap.dedent(
            """
            from mtlverify.law import law

            @law("one", statement="", source="", examples=None)
            def first(plugin, example): ...

            @law("two", kind="detector", statement="", source="", examples=None)
            def second(plugin, example): ...

            def no_law(plugin, example): ...
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return "declaring_package"


def test_laws_are_listed_without_an_import(package):
    assert list(mtlverify.declared_laws(package)) == [
        ("one", "declaring_package.mine:first"),
        ("detector.two", "declaring_package.mine:second"),
    ]
    assert list(mtlverify.declared_laws("declaring_package.mine")) == list(mtlverify.declared_laws(package))


def test_what_is_registered_is_what_is_declared():
    own = {e.name for e in registry().entries("law") if e.distribution == "mtlcore"}
    assert own == {name for name, _ in mtlverify.declared_laws("mtlverify.laws")}
    assert {law.name for kind in KINDS for law in laws(kind)} >= own
    assert tuple(BASES) == KINDS
    assert dict(declared_problems("mtlverify.problems"))["quadratics"] == "mtlverify.problems.quadratics:Quadratics"


def test_public_names_exist():
    for name in mtlverify.__all__:
        assert getattr(mtlverify, name) is not None, name


def test_a_null_vector_buys_no_tolerance():
    rows = torch.tensor([[1.0, 0.0], [-3.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    example = Example(rows, torch.ones(3, dtype=torch.float64))
    plain, bought = ask(twins.Mean(), example), ask(subtle.BuysATolerance(), example)
    assert float(bought.weights.abs().max()) > 1e10
    assert bought.size <= 16.0 * plain.size


def test_a_method_is_run_once_per_question_also_where_its_answer_is_refused():
    asked = []

    class Counting(twins.Mean):
        def weigh(self, view):
            asked.append(1)
            return super().weigh(view) * torch.nan

    rows = torch.eye(2, dtype=torch.float64)
    method = Counting()
    view = view_of(method, rows, torch.ones(2, dtype=torch.float64))
    found = answered(stepped(method, view, {}, rows), rows)
    assert bool(found.direction.isnan().all())
    assert asked == [1]


STATIONARY = {
    "nash-mtl": [[-1.0, 0.0], [0.0, 1.0], [0.046875, -5.0]],
    "fairgrad": [[1.0, 0.0], [-1.0, 2.0**-7], [-1.0, -1.0]],
}


@pytest.mark.parametrize("name", STATIONARY)
def test_a_promise_is_checked_on_every_input_whoever_made_it(name):
    """No built-in is excused where its equation has no solution: it has to say so, and to stand still."""
    example = Example(torch.tensor(STATIONARY[name], dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    law = next(law for law in laws("aggregator") if law.id == "non-conflicting")
    seen = []
    watched = dataclasses.replace(law, check=lambda plugin, it: seen.append(it) or law.check(plugin, it))
    assert examine(create("aggregator", name), watched, 1, 0, explicit=[example]).status == "verified"
    assert seen[0] is example
    assert float(ask(create("aggregator", name), example).length) == 0.0


def test_others_differ_from_the_batch_and_follow_their_tasks():
    class TwoBatches(twins.Mean):
        batches = 3

    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    losses = torch.ones(2, dtype=torch.float64)
    straight = view_of(TwoBatches(), rows, losses)
    turned = view_of(TwoBatches(), rows.flip(0), losses, tasks=[1, 0])
    assert len(straight.others) == 2
    for one, other in zip(straight.others, turned.others, strict=True):
        assert not torch.equal(one.jacobian, rows)
        assert torch.equal(one.jacobian, other.jacobian.flip(0))
    assert not torch.equal(straight.others[0].jacobian, straight.others[1].jacobian)
