"""What else a step does, on several processes: teleports, the optimizer's metric, scaled gradients."""

from __future__ import annotations

import pytest
import torch

from distributed import cases
from distributed.pool import Pool
from distributed.test_global_batch import SINGLE, assert_close, assert_same_bits


@pytest.fixture(scope="module")
def two():
    pool = Pool(2)
    yield pool
    pool.close()


LORA = {"steps": 1}


@pytest.mark.parametrize(
    ("strategy", "how", "options"),
    [
        ("relu-rescaling", "plain", {}),
        ("relu-rescaling", "ddp-module-trunk", {}),
        ("random", "plain", {}),
        ("linear-boundary", "plain", {}),
        ("lora", "plain", LORA),
        ("lora", "plain", {**LORA, "search": "penalty", "objective": "gradient-norm"}),
        ("lora", "plain", {**LORA, "objective": "sharpness", "estimator": "sphere", "delta": 1e-2}),
    ],
)
def test_all_processes_teleport_to_the_point_of_the_whole_batch(two, strategy, how, options):
    detector = "cosine" if how != "plain" else None
    found = two.run(cases.teleported, 2, strategy, how, 3, options, detector)
    assert_same_bits(found)
    whole = cases.teleported(0, 1, strategy, "plain", 3, options, detector)
    accepted = lambda run: [None if t is None else t[0] for t in run["teleports"]]
    assert accepted(found[0]) == accepted(found[1]) == accepted(whole), (found[0]["teleports"], whole["teleports"])
    assert any(accepted(whole)), whole["teleports"]
    if strategy == "linear-boundary":  # directions beyond the rank of K gradients are rounding: another map, as good
        return
    # A search takes differences of losses and gradients: what rounding does to them grows there.
    loose = 1e-4 if strategy == "lora" else 1e-8
    assert_close(found[0], whole, loose)
    for name, right in whole["history"].items():
        mine = found[0]["history"][name]
        assert torch.equal(mine, found[1]["history"][name])
        assert torch.allclose(mine, right, rtol=loose, atol=loose)


def test_no_teleport_while_a_task_is_on_some_processes_only(two):
    for accepted, reason in two.run(cases.lacking):
        assert not accepted
        assert "task 'c' is in the batch of some processes only" in reason


@pytest.mark.parametrize(("metric", "name"), [("optimizer", "upgrad"), ("optimizer", "by-row"), ("step", "upgrad")])
def test_the_optimizers_metric(two, metric, name):
    found = two.run(cases.measured, 2, metric, name)
    assert_same_bits(found)
    whole = cases.measured(0, 1, metric, name)
    assert_close(found[0], whole, 1e-9)
    assert torch.allclose(found[0]["gramian"], whole["gramian"], rtol=1e-9)
    assert torch.allclose(found[0]["taken"].changes, whole["taken"].changes, rtol=1e-9)
    assert torch.equal(found[0]["taken"].cosines, found[1]["taken"].cosines)


@pytest.mark.parametrize("name", ["upgrad", "imtl-l", "pcgrad"])
def test_scaled_gradients(two, name):
    found = two.run(cases.scaled, 2, name)
    assert_same_bits(found)
    whole = cases.scaled(0, 1, name)
    assert_close(found[0], whole, 4 * SINGLE)
    assert found[0]["skipped"] == [False] * 4


def test_an_overflow_on_one_process_is_skipped_by_all(two):
    found = two.run(cases.scaled, 2, "upgrad", (2,))
    assert_same_bits(found)
    for each in found:
        assert each["skipped"] == [False, False, True, False]
        assert each["scale"] == 2.0**9


@pytest.mark.parametrize("name", ["upgrad", "by-row", "imtl-l"])
def test_gradients_that_travel_as_bfloat16(two, name):
    """Half the bytes of float32; the error is that of three digits, and is measured."""
    whole, found = two.run(cases.rounded, name, False), two.run(cases.rounded, name)
    assert_same_bits(found)
    assert_close(found[0], whole[0], 2.0**-6)
    assert any(not torch.equal(g, whole[0]["grads"][n]) for n, g in found[0]["grads"].items())
    for kind, sent in found[0]["bytes"].items():
        if kind in ("rows", "direction", "gradients"):
            assert 0.45 < sent / whole[0]["bytes"][kind] < 0.65, kind  # shares are filled up to the same width
            assert 2.0**-12 < found[0]["error"][kind] < 2.0**-8
        else:
            assert sent == whole[0]["bytes"][kind]


def test_a_hook_on_some_processes_only(two):
    for ok, (kind, text, _) in two.outcomes(cases.rounded, "upgrad", True, True):
        assert not ok
        assert kind == "ConfigurationError"
        assert "communication hook: process 0 has 'Rounded()', process 1 has 'None'" in text
