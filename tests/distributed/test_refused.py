"""Wrappers and gradients that several processes do not serve as they are."""

from __future__ import annotations

import pytest
import torch

from distributed import cases
from distributed.pool import Pool


@pytest.fixture(scope="module")
def pool():
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        *((f"fsdp1 {what}", "(FSDP1)|fully_shard (FSDP2)") for what in ("trunk", "trunk, original", "whole")),
        *((f"fsdp1 {what}", "(FSDP1)|fully_shard (FSDP2)") for what in ("whole, original", "list", "list, original")),
        ("deepspeed", "DeepSpeed|fully_shard"),
        ("ddp alone", 'the network is wrapped in DistributedDataParallel|process_group="auto"'),
    ],
)
def test_refused_by_name_with_the_way_out(pool, how, words):
    for ok, answer in pool.outcomes(cases.refused, how):
        assert not ok, how
        kind, text, _ = answer
        assert kind == "ConfigurationError", text
        assert all(word in text for word in words.split("|")), text


def test_a_group_that_a_process_is_not_in(pool):
    (one, _), (other, (kind, text, _)) = pool.outcomes(cases.refused, "outsider")
    assert one
    assert not other
    assert kind == "ConfigurationError"
    assert "no member" in text


@pytest.mark.parametrize("name", ["imtl-l", "upgrad", "graddrop"])
def test_sparse_gradients_become_dense(pool, name):
    whole = cases.looked_up(0, 1, name)
    for found in pool.run(cases.looked_up, 2, name):
        assert not found[0].is_sparse
        for mine, right in zip(found, whole):
            assert torch.allclose(mine, right.to_dense(), rtol=1e-12, atol=1e-15)
