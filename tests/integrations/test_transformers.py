"""A MultiTask under Hugging Face's Trainer takes the steps of a plain loop."""

from __future__ import annotations

import pytest

from support.launcher import launched
from support.trainer_nets import apart, batches, by_hand

M = "support.transformers_cases"
CASES = [
    ("plain", 1, M, "train", ("upgrad", 12)),
    ("losses", 1, M, "train", ("imtl-l", 12)),
    ("accumulated", 1, M, "accumulated", ("upgrad", 10)),
    ("bf16", 1, M, "bf16", ()),
    ("bert", 1, M, "bert", (1,)),
    ("resumed", 1, M, "resumed", ()),
    ("evaluated", 1, M, "evaluated", ()),
    ("refused", 1, M, "refused", ()),
    ("two", 2, M, "train", ("upgrad", 6)),
    ("two_accumulated", 2, M, "accumulated", ("upgrad", 6)),
    ("two_bert", 2, M, "bert", (2,)),
]


@pytest.fixture(scope="module")
def found():
    return launched(CASES)


@pytest.mark.parametrize(
    ("case", "method", "options"),
    [("plain", "upgrad", {}), ("losses", "imtl-l", {}), ("bf16", "upgrad", {"autocast": True})],
)
def test_steps_are_those_of_a_plain_loop(found, case, method, options):
    (one,) = found[case]
    assert apart(one["parameters"], by_hand(method, batches(12), **options)) <= 1e-6
    assert one["step"] == one["global_step"] == 4
    assert one["report"] == 3


def test_accumulation_and_clipping(found):
    """Five batches, two by two: the last step of the epoch has one."""
    (one,) = found["accumulated"]
    assert apart(one["parameters"], by_hand("upgrad", batches(10), accumulate=2, clip=0.5)) <= 1e-6
    assert one["step"] == one["global_step"] == 3


def test_a_transformer_as_trunk(found):
    for case in ("bert", "two_bert"):
        for mine, alone in found[case]:
            assert apart(mine, alone) <= 1e-5


def test_resume_from_checkpoint(found):
    (one,) = found["resumed"]
    assert one["same"]
    assert one["step"] == 8
    assert "has no multitask.pt" in one["lacking"]


def test_evaluation(found):
    ((value, wanted),) = found["evaluated"]
    assert value == pytest.approx(wanted, rel=1e-5)


def test_what_cannot_work_is_refused(found):
    (said,) = found["refused"]
    for what in ("twice", "teleport"):
        assert "step(closure)" in said[what], said
    assert "label_smoothing_factor" in said["one loss"]
    assert "must return a dict with 'losses'" in said["losses"]


@pytest.mark.parametrize(("case", "options"), [("two", {}), ("two_accumulated", {"accumulate": 2, "clip": 0.5})])
def test_two_processes_take_the_step_of_the_whole_batch(found, case, options):
    one, other = found[case]
    assert one["wrapped"] == "DistributedDataParallel"
    assert apart(one["parameters"], other["parameters"]) == 0.0
    assert apart(one["parameters"], by_hand("upgrad", batches(12), **options)) <= 1e-5
