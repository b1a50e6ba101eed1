"""One process goes wrong: all end with an error that names it."""

from __future__ import annotations

import time

import pytest

from distributed import cases
from distributed.pool import Pool


@pytest.fixture(scope="module")
def pool():
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.mark.parametrize("name", ["upgrad", "pcgrad", "imtl-l"])
@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("nan loss", "NonFiniteError", ("process 1", "'a' (nan)")),
        ("nan trunk gradient", "NonFiniteError", ("process 1", "NaN or infinite")),
        ("nan head gradient", "NonFiniteError", ("process 1", "'b'")),
        ("other method", "ConfigurationError", ("aggregator", "process 0 has", "process 1 has", "mgda")),
        ("other option", "ConfigurationError", ("c", "process 1 has", "0.5")),
        ("other metric", "ConfigurationError", ("metric: process 0 has 'euclidean', process 1 has 'step'",)),
        ("other taken", "ConfigurationError", ("taken: process 0 has True, process 1 has False",)),
        ("other refresh", "ConfigurationError", ("refresh: process 0 has None, process 1 has {'every': 2",)),
        ("other tolerance", "ConfigurationError", ("teleporter: process 0 has tolerance 0.02", "tolerance 0.5")),
        ("other brakes", "ConfigurationError", ("brakes: process 0 has detect_every 1", "detect_every 2")),
        ("other lr", "ConfigurationError", ("optimizer's options", "'lr': 0.1", "'lr': 0.2")),
        ("other tasks", "ConfigurationError", ("tasks", "process 1 has ('a', 'b')")),
        ("other values", "ConfigurationError", ("process 1", "0.bias")),
        ("other step", "ProcessError", ("process 0 has step 1", "process 1 step 5")),
        ("find unused", "ConfigurationError", ("find_unused_parameters", "no_sync")),
        ("own point", "PluginError", ("another point on process 1", "averaged(gradients)")),
        ("other scale", "ProcessError", ("process 0 has gradients scaled by 256", "process 1 gradients scaled by 512")),
    ],
)
def test_all_end_with_an_error_that_names_it(pool, what, kind, words, name):
    for found, text in pool.run(cases.trouble, what, name):
        assert found == kind, text
        for word in words:
            assert word in text, text


def test_what_the_user_raises(pool):
    (kind, text), (own, mine) = pool.run(cases.trouble, "closure raises", "upgrad")
    assert (kind, own) == ("ProcessError", "KeyError")
    assert "process 1" in text
    assert "the disk is full" in text
    assert "the disk is full" in mine


EXACT_EMTL = ("emtl", {"form": "exact"})


@pytest.mark.parametrize("name", ["bilb4mtl-double-loop", EXACT_EMTL])
def test_what_the_user_raises_while_the_method_is_asked(pool, name):
    """The others took the news for an error of the method, told it once more, and waited for ever."""
    (kind, text), (own, mine) = pool.run(cases.trouble, "second evaluation raises", name)
    assert (kind, own) == ("ProcessError", "KeyError")
    assert "process 1" in text
    assert "the disk is full" in text
    assert "the disk is full" in mine


def test_second_derivatives_that_fail_on_one_process(pool):
    for kind, text in pool.run(cases.trouble, "no second derivative", EXACT_EMTL):
        assert kind == "LossError"
        assert "process 1: the loss of task 'b' cannot be differentiated twice" in text


def test_a_probe_that_fails_on_one_process(pool):
    (kind, text), (own, mine) = pool.run(cases.trouble, "probe raises", "upgrad")
    assert (kind, own) == ("ProcessError", "KeyError")
    assert "the probe is gone" in text
    assert "the probe is gone" in mine


@pytest.mark.parametrize("size", [2, 3])
def test_a_process_that_dies(size):
    pool = Pool(size, seconds=20.0)
    started = time.monotonic()
    outcomes = pool.outcomes(cases.death, size)
    assert outcomes.pop(1) is None
    for ok, (kind, text, _) in outcomes:
        assert not ok
        assert kind == "ProcessError"
        assert "has lost another one" in text
        assert "has no sign of process 1:" in text
    assert time.monotonic() - started < 60.0
    pool.close()
