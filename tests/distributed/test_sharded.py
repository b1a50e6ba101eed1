"""A trunk in shards (FSDP2) takes the step of one process with the whole batch."""

from __future__ import annotations

import pytest
import torch

from distributed import cases
from distributed.pool import Pool
from distributed.test_global_batch import assert_close, assert_same_bits

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture(scope="module")
def pool():
    pool = Pool(2)
    yield pool
    pool.close()


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


def test_whole_rows_are_refused(pool):
    for ok, value in pool.outcomes(cases.sharded, 2, "by-row", "trunk"):
        assert not ok
        kind, text, _ = value
        assert kind == "ConfigurationError"
        assert "whole rows" in text
        assert "FSDP2" in text
