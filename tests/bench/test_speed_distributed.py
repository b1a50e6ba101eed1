"""The speed suite of several processes: its contenders do the same job, its bytes are counted, its model adds up."""

from __future__ import annotations

import json

import pytest

from mtlbench.speed import distributed, processes, wire


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    assert distributed.main(["--rounds", "1", "--tasks", "3", "--width", "32", "--out", str(folder)]) == 0
    return json.loads((folder / "distributed.json").read_text())


def test_contenders_with_the_same_rows_have_the_gradients_of_one_process(record):
    apart = record["disagreement"]["3"]
    assert apart[processes.NAIVE] < 1e-5
    assert apart[processes.SHARES] < 1e-5
    assert 1e-5 < apart[processes.ROUNDED] < 0.1  # a comparison that sees a difference


def test_bytes_are_those_of_the_algorithm(record):
    results, p = record["results"]["3"], record["environment"]["parameters"]
    sent = lambda name: results[name]["MB sent"]
    if sent(processes.DDP) is None:
        pytest.skip("this system does not count bytes")
    assert sent(processes.ONE) == 0.0
    for name, way in ((processes.NAIVE, wire.naive), (processes.SHARES, wire.shares)):
        heads = 3 * 4 * (16 * 4 + 4) / 1e6
        expected = way(2, 3, p).bytes / 1e6 + heads
        assert expected <= sent(name) <= 1.5 * expected + 0.02, name
    assert sent(processes.ROUNDED) < 0.8 * sent(processes.SHARES)


def test_the_model():
    k, p, free = 11, 10_000_000, wire.Constants(0.0, 1e-9)
    for r in (2, 16, 1024):
        assert wire.naive(r, k, p).bytes == pytest.approx(2 * k * (r - 1) / r * 4 * p)
        assert wire.shares(r, k, p).bytes == pytest.approx((k + 1) * (r - 1) / r * 4 * p, rel=1e-3)
    assert wire.stops_paying(k, p, free) is None  # without latency fewer bytes always win
    slow, k = wire.Constants(1e-3, 1e-9), 2  # two rows, summed by two rings, take fewer messages
    end = wire.stops_paying(k, p, slow)
    assert end is not None
    assert wire.naive(end, k, p).seconds(slow) <= wire.shares(end, k, p).seconds(slow)
    assert wire.naive(end // 2, k, p).seconds(slow) > wire.shares(end // 2, k, p).seconds(slow)
    assert f"from R = {end}" in wire.table(k, p, slow)
