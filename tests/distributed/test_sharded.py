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
    # Half of the numbers come from the other process: 248 parameters, 3 tasks, 8 bytes.
    assert found[0]["ema"]["bytes"]["rows"] == 248 * 3 * 8 // 2
    assert "rows" not in found[0]["upgrad"]["bytes"]
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
    names = ["ema", "m-config", "famo"]
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
            found = four.run(cases.absent, 4, name, "sharded whole", True, 3, True, (2, 2))
            assert_same_bits(found)
            assert_close(found[0], cases.absent_alone(4, name), 1e-12)
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


@pytest.mark.parametrize("name", ["upgrad", "by-row", "imtl-l"])
def test_a_trunk_that_no_loss_reaches(pool, name):
    for ok, value in pool.outcomes(cases.detached, name):
        assert not ok
        kind, text, _ = value
        assert kind == "LossError"
        assert "reaches any parameter of the trunk" in text


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


MICRO = ["upgrad", "by-row", "imtl-l", "nash-mtl"]


@pytest.mark.parametrize("how", ["trunk", "whole"])
@pytest.mark.parametrize("lacking", [False, True])
def test_micro_batches(pool, how, lacking):
    found = pool.run(cases.each, 2, MICRO, cases.micro, how, lacking)
    compare(found, {n: cases.micro(None, 2, n, None, lacking) for n in MICRO}, 1e-12)
    assert "the rows of 2 micro-batches, added up" in found[0]["upgrad"]["source"]
    assert "through the graphs of 2 micro-batches" in found[0]["imtl-l"]["source"]


@pytest.mark.parametrize("name", ["upgrad", "imtl-l"])
def test_micro_batches_that_go_wrong(pool, name):
    """One process has a NaN in the first of them: all hear of it before the next forward pass."""
    for kind, text, again in pool.run(cases.micro_in_trouble, "nan", name):
        assert kind == "NonFiniteError"
        assert "process 1" in text
        assert again
    if name == "upgrad":
        for kind, text, again in pool.run(cases.micro_in_trouble, "moved", name):
            assert kind == "ConfigurationError"
            assert "between two micro-batches" in text
            assert again


MEASURED = [
    ("euclidean", "upgrad", "adam"),
    ("euclidean", "imtl-l", "sgd"),
    ("optimizer", "upgrad", "adam"),
    ("optimizer", "by-row", "rmsprop"),
    ("step", "upgrad", "sgd"),
    ("step", "by-row", "adam"),
    ("step", "pcgrad", "adagrad"),
]


@pytest.mark.parametrize("how", ["trunk", "whole"])
def test_the_optimizers_metric_and_what_its_step_did(pool, how):
    for metric, name, mover in MEASURED:
        found = pool.run(cases.measured, 2, metric, name, True, how, mover)
        right = cases.measured(0, 1, metric, name, True, None, mover)
        assert_same_bits(found)
        assert_close(found[0], right, 1e-12)
        assert torch.allclose(found[0]["gramian"], right["gramian"], rtol=1e-10)
        mine, other, whole = found[0]["taken"], found[1]["taken"], right["taken"]
        assert torch.equal(mine.cosines, other.cosines)
        for one, two in (
            (mine.changes, whole.changes),
            (mine.cosines, whole.cosines),
            (mine.direction, whole.direction),
        ):
            assert torch.allclose(one, two, rtol=1e-10), (metric, name)
        assert mine.shares == pytest.approx(whole.shares, rel=1e-10)
        assert mine.preconditioner == pytest.approx(whole.preconditioner, rel=1e-10)
        for key, value in {k: v for k, v in right["notes"].items() if k.startswith("step_")}.items():
            assert found[0]["notes"][key] == pytest.approx(value, rel=1e-9), (metric, name, key)


@pytest.mark.parametrize("how", ["trunk", "whole"])
@pytest.mark.parametrize("lacking", [False, True])
def test_kept_weights(pool, how, lacking):
    found = pool.run(cases.refreshed, 2, "nash-mtl", how, lacking)
    assert_same_bits(found)
    assert_close(found[0], cases.refreshed(None, 2, "nash-mtl", None, lacking), 1e-12)
    assert "the weights of an earlier step, one pass through the trunk" in found[0]["source"]
    assert found[0]["notes"]["refresh_age"] == 1
    renewed = pool.run(cases.refreshed, 2, "nash-mtl", how, lacking, 4)[0]
    right = cases.refreshed(None, 2, "nash-mtl", None, lacking, 4)
    assert_close(renewed, right, 1e-12)
    assert renewed["notes"]["refresh_error"] == pytest.approx(right["notes"]["refresh_error"], rel=1e-9)


@pytest.mark.parametrize("how", ["trunk", "whole"])
def test_at_the_features(pool, how):
    options = {"refresh": 1, "gradients": "features"}
    found = pool.run(at_features, how)
    right = cases.refreshed(None, 2, "upgrad", None, False, 2, **options)
    assert_same_bits(found)
    assert_close(found[0], right, 1e-12)
    assert torch.allclose(found[0]["gramian"], right["gramian"], rtol=1e-12)
    assert "Gramians of disjoint samples" in found[0]["source"]


@pytest.mark.parametrize("how", [None, "whole"])
def test_at_the_features_of_other_samples(pool, how):
    """Tasks b and c are on different processes: a cosine of zero would mean nothing."""
    for ok, value in pool.outcomes(at_features, how, True):
        assert not ok
        kind, text, _ = value
        assert kind == "ConfigurationError"
        assert "tasks 'b' and 'c' have no number of them in common" in text


def at_features(rank, how, lacking=False):
    return cases.refreshed(rank, 2, "upgrad", how, lacking, 2, refresh=1, gradients="features")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "by-row", "gradients": "features"}, 'gradients="features" provides GRAMIAN'),
        ({"name": "upgrad", "gradients": "losses"}, 'gradients="losses" provides LOSSES'),
    ],
)
def test_a_forced_source_that_gives_less(pool, options, words):
    for ok, value in pool.outcomes(forced, options):
        assert not ok
        kind, text, _ = value
        assert kind == "ConfigurationError"
        assert words in text


def forced(rank, options):
    return cases.stepped(rank, 2, how="whole", **options)


def test_tune_is_refused(pool):
    for ok, value in pool.outcomes(cases.tuned, 2, "whole"):
        assert not ok
        kind, text, _ = value
        assert kind == "ConfigurationError"
        assert "tune compares gradient sources" in text


@pytest.mark.parametrize("name", ["upgrad", "by-row", "imtl-l"])
@pytest.mark.parametrize("micro", [False, True])
def test_scaled_gradients(pool, name, micro):
    """An overflow on one process is skipped by all."""
    found = pool.run(cases.scaled, 2, name, (2,), "whole", micro)
    right = cases.scaled(0, 1, name, (2,), None, micro)
    assert_same_bits(found)
    assert_close(found[0], right, 4e-6)
    for each in found:
        assert each["skipped"] == [False, False, True, False]
        assert each["scale"] == right["scale"] == 2.0**9


@pytest.mark.parametrize("how", ["trunk", "whole", "at once"])
def test_a_second_look_that_fails(pool, how):
    """FSDP's root had whole parameters still, which the optimizer had moved; the next step took them."""
    right = cases.second_look_fails(0, 1)
    for found in pool.run(cases.second_look_fails, 2, how):
        assert [kind for kind, _ in found["errors"]] == ["NonFiniteError"]
        assert_close(found, right, 1e-12)


@pytest.mark.parametrize("name", ["upgrad", "by-row", "imtl-l"])
def test_mixed_precision(pool, name):
    for lacking in (False, True):
        found = pool.run(cases.in_bfloat16, name, lacking)
        assert_same_bits(found)
        right = (
            pool.run(cases.absent, 2, name, "plain", True, 1)[0] if lacking else cases.train(0, 1, "plain", "mlp", name)
        )
        assert_close(found[0], right, 2.0**-5)


def test_resume_from_a_sharded_checkpoint(pool, tmp_path):
    for weights, values, step in pool.run(cases.saved_in_shards, 2, str(tmp_path)):
        assert weights
        assert values
        assert step == 5
