"""A MultiTask under Lightning takes the steps of a loop of one's own."""

from __future__ import annotations

import pytest

from support.launcher import launched
from support.trainer_nets import apart, batches, by_hand, whole_batches

M = "support.lightning_cases"
CASES = [
    ("automatic", 1, M, "fit", (12,)),
    ("losses", 1, M, "fit", (12, {"method": "imtl-l"})),
    ("manual", 1, M, "fit", (12, {"manual": "backward"})),
    ("twice", 1, M, "fit", (12, {"method": "famo", "manual": "step"})),
    ("accumulated", 1, M, "accumulated", ()),
    ("accumulated_losses", 1, M, "accumulated", ("imtl-l",)),
    ("bf16", 1, M, "bf16", ()),
    ("resumed", 1, M, "resumed", (False,)),
    ("resumed_late", 1, M, "resumed", (True,)),
    ("refused", 1, M, "refused", ()),
    ("teleported", 1, M, "teleported", ()),
    ("ddp", 2, M, "ddp", (6,)),
    ("ddp_unused", 2, M, "ddp", (6, None, "ddp_find_unused_parameters_true")),
    ("ddp_accumulated", 2, M, "ddp_accumulated", ()),
]


@pytest.fixture(scope="module")
def found():
    return launched(CASES)


@pytest.mark.parametrize(
    ("case", "method", "options"),
    [
        ("automatic", "upgrad", {}),
        ("losses", "imtl-l", {}),
        ("manual", "upgrad", {}),
        ("twice", "famo", {"second": True}),
        ("bf16", "upgrad", {"autocast": True}),
    ],
)
def test_steps_are_those_of_an_own_loop(found, case, method, options):
    (one,) = found[case]
    assert apart(one["parameters"], by_hand(method, batches(12), **options)) <= 1e-6
    assert one["step"] == one["global_step"] == 4


def test_automatic_steps_report(found):
    assert found["automatic"][0]["reports"] == [0, 1, 2, 3]


@pytest.mark.parametrize("case", ["accumulated", "accumulated_losses"])
def test_accumulation_and_clipping(found, case):
    """Five batches, two by two: the last step of the epoch has one."""
    (one,) = found[case]
    method = "upgrad" if case == "accumulated" else "imtl-l"
    right = by_hand(method, batches(10), accumulate=2, clip=0.5)
    assert apart(one["parameters"], right) <= 1e-6
    assert one["step"] == one["global_step"] == 3


def test_resume_through_lightning(found):
    for case in ("resumed", "resumed_late"):
        (one,) = found[case]
        assert one == {"same": True, "step": 8, "weights_only": True}


def test_what_cannot_work_is_refused(found):
    (said,) = found["refused"]
    for what in ("teleport", "twice", "several"):
        assert said[what].startswith("ConfigurationError"), said[what]
        assert "multitask_step" in said[what]
    assert "attribute" in said["none"]
    assert said["nan"].startswith("NonFiniteError")
    assert "'b'" in said["nan"]
    assert "automatic_optimization = False" in said["automatic"]


def test_teleports_in_manual_optimisation(found):
    assert found["teleported"] == [(True, 4)]


def test_two_processes_take_the_step_of_the_whole_batch(found):
    for case in ("ddp", "ddp_unused"):
        one, other = found[case]
        assert apart(one["parameters"], other["parameters"]) == 0.0
        assert apart(one["parameters"], by_hand("upgrad", whole_batches(6, 2))) <= 1e-5
    one, other = found["ddp_accumulated"]
    assert apart(one["parameters"], other["parameters"]) == 0.0
    assert apart(one["parameters"], by_hand("upgrad", whole_batches(6, 2), accumulate=2, clip=0.5)) <= 1e-5
