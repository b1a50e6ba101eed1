"""A trunk in shards (FSDP2) takes the step of one process with the whole batch."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_replicas_of_shards(pool, shape):
    """HSDP: a mesh with a replicated and a sharded dimension."""
    found = pool.run(cases.sharded, 2, "upgrad", "whole", 2, torch.float64, shape)
    whole = cases.train(0, 1, "plain", "mlp", "upgrad", 2)
    assert_same_bits(found)
    assert_close(found[0], whole, 1e-12)
    assert torch.allclose(found[0]["gramian"], whole["gramian"], rtol=1e-12)


@pytest.mark.slow
def test_two_replicas_of_two_shards():
    four = Pool(4)
    try:
        found = four.run(cases.sharded, 4, "upgrad", "whole", 2, torch.float64, (2, 2))
    finally:
        four.close()
    assert_same_bits(found)
    assert_close(found[0], cases.train(0, 1, "plain", "mlp", "upgrad", 2), 1e-12)


def test_resume_from_a_sharded_checkpoint(pool, tmp_path):
    for weights, values, step in pool.run(cases.saved_in_shards, 2, str(tmp_path)):
        assert weights
        assert values
        assert step == 5


def test_whole_rows_are_refused(pool):
    for ok, value in pool.outcomes(cases.sharded, 2, "by-row", "trunk"):
        assert not ok
        kind, text, _ = value
        assert kind == "ConfigurationError"
        assert "whole rows" in text
        assert "FSDP2" in text
