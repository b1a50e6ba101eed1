"""Several processes take the step that one process takes with the whole batch."""

from __future__ import annotations

import pytest
import torch

from distributed import cases
from distributed.pool import Pool

EXACT = 1e-12
SINGLE = 1e-6


@pytest.fixture(scope="module")
def two():
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def three():
    pool = Pool(3)
    yield pool
    pool.close()


def assert_same_bits(found):
    for other in found[1:]:
        for what in ("grads", "parameters", "state"):
            for key, value in found[0][what].items():
                assert (value is None) == (other[what][key] is None)
                assert value is None or torch.equal(value, other[what][key]), (what, key)
        assert found[0]["weights"] is None or torch.equal(found[0]["weights"], other["weights"])


def assert_close(found, whole, tolerance):
    scale = max(float(g.norm()) for g in whole["grads"].values() if g is not None)
    for key, right in whole["grads"].items():
        mine = found["grads"][key]
        assert (mine is None) == (right is None), key
        assert right is None or float((mine - right).norm()) <= tolerance * scale, key
    assert torch.allclose(found["losses"], whole["losses"], rtol=tolerance, atol=0)


METHODS = ["gradops", "upgrad", "pcgrad", "nash-mtl", "imtl-l", "bilb4mtl", "sum", "by-row"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("how", ["plain", "ddp-module-trunk"])
def test_gradients_are_those_of_the_whole_batch(two, how, name):
    found = two.run(cases.train, 2, how, "mlp", name)
    assert_same_bits(found)
    assert_close(found[0], cases.train(0, 1, "plain", "mlp", name), EXACT)


@pytest.mark.parametrize("how", ["list", "ddp-trunk", "ddp-list"])
def test_every_wrapping(two, how):
    for name in ("mgda", "imtl-l"):
        found = two.run(cases.train, 2, how, "mlp", name, 2)
        assert_same_bits(found)
        assert_close(found[0], cases.train(0, 1, "plain", "mlp", name, 2), EXACT)


@pytest.mark.parametrize("kind", ["cnn", "transformer", "tied"])
def test_every_network(two, kind):
    for dtype, tolerance in ((torch.float64, EXACT), (torch.float32, 4 * SINGLE)):
        found = two.run(cases.train, 2, "plain", kind, "upgrad", 1, dtype)
        assert_same_bits(found)
        assert_close(found[0], cases.train(0, 1, "plain", kind, "upgrad", 1, dtype), tolerance)


@pytest.mark.parametrize("source", ["sequential", "batched", "streaming", "features", "losses"])
def test_every_source(two, source):
    name = "imtl-l" if source == "losses" else "upgrad"
    found = two.run(cases.train, 2, "ddp-module-trunk", "mlp", name, 1, torch.float64)
    whole = cases.train(0, 1, "plain", "mlp", name, 1, gradients=source)
    found = two.outcomes(_forced, source, name)
    assert all(ok for ok, _ in found), found
    found = [value for _, value in found]
    assert_same_bits(found)
    assert_close(found[0], whole, EXACT)
    if source != "losses":
        assert torch.allclose(found[0]["gramian"], whole["gramian"], rtol=1e-12, atol=1e-14)
    if source == "streaming":
        assert "streaming keeps no rows" in found[0]["source"]


def _forced(rank, source, name):
    return cases.train(rank, 2, "plain", "mlp", name, 1, gradients=source)


def test_rows_in_several_exchanges(three):
    """About as many as tasks, when a bucket is smaller than a row."""
    found = three.run(cases.in_buckets, 3, "upgrad")
    assert_same_bits(found)
    assert_close(found[0], cases.train(0, 1, "plain", "mlp", "upgrad"), EXACT)
    assert {f["exchanges"] for f in found} <= {3, 4}


def test_three_processes(three):
    for name in ("gradops", "pcgrad", "imtl-l", "by-row"):
        found = three.run(cases.train, 3, "plain", "mlp", name)
        assert_same_bits(found)
        assert_close(found[0], cases.train(0, 1, "plain", "mlp", name), EXACT)


@pytest.mark.parametrize("name", ["nash-mtl", "uw", "cagrad"])
def test_fifty_steps_keep_the_copies_equal(three, name):
    found = three.run(cases.train, 3, "plain", "mlp", name, 50)
    assert_same_bits(found)
    assert_close(found[0], cases.train(0, 1, "plain", "mlp", name, 50), 1e-8)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["upgrad", "pcgrad", "imtl-l"])
def test_a_task_is_averaged_over_the_processes_that_have_it(two, three, size, name):
    found = (two if size == 2 else three).run(cases.absent, size, name, "plain" if size == 2 else "ddp-module-trunk")
    assert_same_bits(found)
    assert_close(found[0], cases.absent_alone(size, name), EXACT)


def test_the_head_of_a_task_that_never_came(two):
    outcomes = two.outcomes(cases.absent, 2, "upgrad", "plain", False)
    for ok, (kind, text, _) in outcomes:
        assert not ok
        assert kind == "ConfigurationError"
        assert "process 0 has no batch of task 'b'" in text
        assert "heads=heads" in text


def test_micro_batches(two):
    for name in ("upgrad", "by-row", "imtl-l"):
        found = two.run(cases.micro, 2, name)
        assert_same_bits(found)
        assert_close(found[0], cases.micro(None, 2, name), EXACT)


@pytest.mark.parametrize("name", ["famo", "upgrad", "bilb4mtl-double-loop", ("emtl", {"form": "exact"})])
def test_steps_with_closures(two, name):
    found = two.run(cases.looked, 2, name)
    assert_same_bits(found)
    assert_close(found[0], cases.looked(0, 1, name), EXACT)


def test_second_derivatives_with_tasks_on_some_processes_only(two):
    found = two.run(cases.curved, 2)
    assert_same_bits(found)
    assert_close(found[0], cases.curved(None, 2), EXACT)


def test_kept_weights(two):
    found = two.run(cases.refreshed, 2)
    assert_same_bits(found)
    assert_close(found[0], cases.refreshed(None, 2), EXACT)


def test_tune_decides_for_all(two):
    one, other = two.run(cases.tuned, 2)
    assert one == other
    assert one[1] == {"JACOBIAN": one[0]}


def test_an_input_belongs_to_its_process(two):
    assert two.run(cases.own_input, 2) == [True, True]


def test_resume(two):
    for name in ("nash-mtl", "uw"):
        whole = two.run(cases.resumed, 2, name, -1)
        again = two.run(cases.resumed, 2, name, 4)
        for key, value in whole[0].items():
            assert torch.equal(value, again[0][key])
            assert torch.equal(value, again[1][key])
