"""A MultiTask under accelerate takes the steps of a plain loop."""

from __future__ import annotations

import pytest

from support.launcher import launched
from support.trainer_nets import apart, batches, by_hand

M = "support.accelerate_cases"
CASES = [
    ("plain", 1, M, "train", ("upgrad", 12)),
    ("closure", 1, M, "train", ("famo", 12, True)),
    ("accumulated", 1, M, "accumulated", ()),
    ("bf16", 1, M, "bf16", ()),
    ("refused", 1, M, "refused", ()),
    ("resumed", 1, M, "resumed", ()),
    ("two", 2, M, "train", ("upgrad", 6)),
    ("two_closure", 2, M, "train", ("famo", 6, True)),
    ("two_accumulated", 2, M, "accumulated", ("upgrad", 6)),
    ("two_resumed", 2, M, "resumed", ()),
    ("two_poisoned", 2, M, "poisoned", ()),
]


@pytest.fixture(scope="module")
def found():
    return launched(CASES)


@pytest.mark.parametrize(
    ("case", "method", "options"),
    [
        ("plain", "upgrad", {}),
        ("closure", "famo", {"second": True}),
        ("bf16", "upgrad", {"autocast": True}),
    ],
)
def test_steps_are_those_of_a_plain_loop(found, case, method, options):
    (one,) = found[case]
    assert apart(one["parameters"], by_hand(method, batches(12), **options)) <= 1e-6
    assert one["reports"] == [0, 1, 2, 3]


def test_accumulation_and_clipping(found):
    (one,) = found["accumulated"]
    assert apart(one["parameters"], by_hand("upgrad", batches(12), accumulate=2, clip=0.5)) <= 1e-6
    assert one["reports"] == [None, 0, None, 1]


def test_save_state_and_load_state(found):
    assert found["resumed"] == [True]
    assert found["two_resumed"] == [True, True]


def test_what_cannot_work_is_refused(found):
    (said,) = found["refused"]
    for what in ("twice", "several", "teleport"):
        assert "use step(closure)" in said[what], said
    assert "list of closures" in said["accumulate"]
    assert "prepare the optimizer first" in said["bare"]


@pytest.mark.parametrize(
    ("case", "method", "options"),
    [
        ("two", "upgrad", {}),
        ("two_closure", "famo", {"second": True}),
        ("two_accumulated", "upgrad", {"accumulate": 2, "clip": 0.5}),
    ],
)
def test_two_processes_take_the_step_of_the_whole_batch(found, case, method, options):
    one, other = found[case]
    assert one["kind"] == "DistributedDataParallel"
    assert apart(one["parameters"], other["parameters"]) == 0.0
    assert apart(one["parameters"], by_hand(method, batches(12), **options)) <= 1e-5


def test_a_process_with_a_nan_ends_both(found):
    for kind, text in found["two_poisoned"]:
        assert kind == "NonFiniteError"
        assert "process 1" in text
        assert "'b'" in text
