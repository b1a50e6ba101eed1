"""A trunk in shards (FSDP2) takes the step of one process with the whole batch."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from distributed import cases
from distributed.pool import Pool
from distributed.test_global_batch import assert_close, assert_same_bits

pytestmark = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream(), "record_event"), reason="this torch has no fully_shard on processors (2.6)"
)


@pytest.fixture(scope="module")
def pool():
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def three():
    pool = Pool(3)
    yield pool
    pool.close()


METHODS = mtlcore.available("aggregator")
BY_ROW = [n for n in METHODS if mtlcore.create("aggregator", n).needs == mtlcore.Needs.JACOBIAN]
INNER = {"bilb4mtl-double-loop", "forum"}
"""They ask for inner gradient steps."""
LASTING = [n for n in METHODS if n not in INNER and mtlcore.create("aggregator", n).init(3)]
JUMPS = {"sdmgrad"}
"""Its weights jump from corner to corner of the simplex, and after many steps rounding decides when: without shards two
processes and one are apart by as much (2.7e-4 after fifty steps)."""


def compare(found, whole, tolerance, refused=frozenset()):
    """Of every method: the processes' bits, and one process's numbers."""
    wrong = {}
    for name, right in whole.items():
        mine = [f[name] for f in found]
        try:
            if name in refused:
                assert all(kind == "ConfigurationError" and "FSDP2" in text for kind, text in mine), mine
            else:
                assert_same_bits(mine)
                assert_close(mine[0], right, tolerance)
        except (AssertionError, TypeError) as error:
            wrong[name] = f"{type(error).__name__}: {str(error)[:300]}; {mine[0] if isinstance(mine[0], tuple) else ''}"
    assert not wrong, "\n".join(f"{n}: {text}" for n, text in wrong.items())


def test_every_method(pool):
    """And inner gradient steps are refused, whose parameters the graph does not have."""
    found = pool.run(cases.each, 2, METHODS, cases.stepped, "whole")
    compare(found, cases.each(0, 1, METHODS, cases.stepped), 1e-12, INNER)
    for name in BY_ROW:
        if name not in INNER:
            assert "gathered whole (K x P numbers on each process)" in found[0][name]["source"], name
    text = found[0]["forum"][1]
    assert "aggregator 'forum'" in text
    assert "view.inner" in text


def test_second_derivatives_are_refused(pool):
    for ok, value in pool.outcomes(cases.stepped, 2, ("emtl", {"form": "exact"}), "whole"):
        assert not ok
        kind, text, _ = value
        assert kind == "ConfigurationError"
        assert "aggregator 'emtl'" in text
        assert "view.curvature" in text


def test_rows_of_uneven_shards(three):
    """No first dimension divides among three; of one parameter two processes have nothing. In float32."""
    names = [n for n in BY_ROW if n not in INNER]
    found = three.run(cases.each, 3, names, cases.stepped, "trunk", 1, torch.float32, "thin")
    compare(found, cases.each(0, 1, names, cases.stepped, None, 1, torch.float32, "thin"), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "cnn", "thin"])
def test_every_method_on_three_processes(three, kind):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        found = three.run(cases.each, 3, METHODS, cases.stepped, "whole", 1, dtype, kind, patience=600.0)
        compare(found, cases.each(0, 1, METHODS, cases.stepped, None, 1, dtype, kind), tolerance, INNER)


def test_fifty_steps(pool):
    names = ["ema", "moco", "m-config", "famo", "gradvac"]
    found = pool.run(cases.each, 2, names, cases.stepped, "at once", 50)
    compare(found, cases.each(0, 1, names, cases.stepped, None, 50), 1e-12)


@pytest.mark.slow
def test_fifty_steps_of_every_method_that_remembers(pool):
    names = [n for n in LASTING if n not in JUMPS]
    found = pool.run(cases.each, 2, names, cases.stepped, "at once", 50, patience=600.0)
    compare(found, cases.each(0, 1, names, cases.stepped, None, 50), 1e-12)
    found = pool.run(cases.each, 2, sorted(JUMPS), cases.stepped, "at once", 20)
    compare(found, cases.each(0, 1, sorted(JUMPS), cases.stepped, None, 20), 1e-12)


@pytest.mark.parametrize("how", ["trunk", "whole"])
@pytest.mark.parametrize("name", ["upgrad", "nash-mtl", "imtl-l"])
def test_gradients_are_those_of_the_whole_batch(pool, name, how):
    found = pool.run(cases.sharded, 2, name, how)
    whole = cases.train(0, 1, "plain", "mlp", name, 2)
    assert_same_bits(found)
    assert_close(found[0], whole, 1e-12)
    if name != "imtl-l":
        assert torch.allclose(found[0]["gramian"], whole["gramian"], rtol=1e-12)
        assert "FSDP" in found[0]["source"]


@pytest.mark.parametrize("how", ["trunk", "whole"])
@pytest.mark.parametrize("name", ["upgrad", "imtl-l"])
def test_a_frozen_trunk_trains_the_heads(pool, name, how):
    shapes = (None, "mlp", True)
    found = pool.run(cases.sharded, 2, name, how, 2, torch.float64, *shapes)
    whole = cases.train(0, 1, "plain", "mlp", name, 2, torch.float64, True)
    assert_same_bits(found)
    assert_close(found[0], whole, 1e-12)


@pytest.mark.parametrize("name", ["upgrad", "by-row"])
@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_replicas_of_shards(pool, shape, name):
    """HSDP: a mesh with a replicated and a sharded dimension."""
    found = pool.run(cases.sharded, 2, name, "whole", 2, torch.float64, shape)
    whole = cases.train(0, 1, "plain", "mlp", name, 2)
    assert_same_bits(found)
    assert_close(found[0], whole, 1e-12)
    assert torch.allclose(found[0]["gramian"], whole["gramian"], rtol=1e-12)


@pytest.mark.slow
def test_two_replicas_of_two_shards():
    four = Pool(4)
    try:
        for name in ("upgrad", "by-row"):
            found = four.run(cases.sharded, 4, name, "whole", 2, torch.float64, (2, 2))
            assert_same_bits(found)
            assert_close(found[0], cases.train(0, 1, "plain", "mlp", name, 2), 1e-12)
    finally:
        four.close()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("other mesh", "mesh of 1 processes|taken by 2"),
        ("before fully_shard", "made before fully_shard"),
        ("after the forward pass", "between a forward pass and its backward pass"),
    ],
)
def test_shards_that_the_run_does_not_have(pool, what, words):
    for ok, value in pool.outcomes(cases.misplaced, what):
        assert not ok
        kind, text, _ = value
        assert kind == "ConfigurationError"
        assert all(word in text for word in words.split("|")), text


ABSENT = ["upgrad", "by-row", "imtl-l", "ema"]


@pytest.mark.parametrize("how", ["trunk", "whole"])
@pytest.mark.parametrize("size", [2, 3])
def test_a_task_is_averaged_over_the_processes_that_have_it(pool, three, size, how):
    found = (pool if size == 2 else three).run(cases.each, size, ABSENT, cases.absent, f"sharded {how}")
    compare(found, {n: cases.absent_alone(size, n) for n in ABSENT}, 1e-12)
    assert "heads apart, because some process lacks a task" in found[0]["upgrad"]["source"]


@pytest.mark.parametrize(
    ("how", "heads", "features", "words"),
    [
        ("trunk", True, False, "features=z"),
        ("whole", False, True, "heads=heads"),
        ("heads", True, True, "sharded one by one"),
    ],
)
def test_a_missing_task_that_cannot_be_served(pool, how, heads, features, words):
    for ok, value in pool.outcomes(cases.absent, 2, "upgrad", f"sharded {how}", heads, 1, features):
        assert not ok
        kind, text, _ = value
        assert kind == "ConfigurationError"
        assert "some process has no batch of a task" in text
        assert words in text


@pytest.mark.parametrize("name", ["upgrad", "by-row", "imtl-l"])
@pytest.mark.parametrize("where", ["trunk", "head"])
@pytest.mark.parametrize("lacking", [False, True])
def test_a_nan_is_told_to_all(pool, where, name, lacking):
    """In shards, too, nothing that is not finite is written."""
    for kind, text, untouched in pool.run(cases.nan_in_shards, where, name, lacking):
        assert kind == "NonFiniteError", text
        assert name == "imtl-l" or "'c'" in text, text
        assert untouched


def test_resume_from_a_sharded_checkpoint(pool, tmp_path):
    for weights, values, step in pool.run(cases.saved_in_shards, 2, str(tmp_path)):
        assert weights
        assert values
        assert step == 5
