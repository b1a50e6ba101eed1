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


METHODS = ["gradops", "upgrad", "pcgrad", "nash-mtl", "imtl-l", "bilb4mtl", "sum"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("how", ["plain", "ddp-module-trunk"])
def test_gradients_are_those_of_the_whole_batch(two, how, name):
    found = two.run(cases.train, 2, how, "mlp", name)
    assert_same_bits(found)
    assert_close(found[0], cases.train(0, 1, "plain", "mlp", name), EXACT)
