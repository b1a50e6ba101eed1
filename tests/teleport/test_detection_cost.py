"""What looking for conflict costs: nothing beside a method that needs task gradients, else every n-th step only."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlcore.teleporting import Brakes
from support.teleport_nets import TASKS, problem
from support.teleports import always


def passes(aggregator: str, **options) -> tuple[list[int], list[bool]]:
    """Backward passes through the trunk's first weight in each of six steps, and whether the step looked."""
    made = problem("mlp")
    mt = mtlcore.MultiTask(made.trunk, aggregator, made.optimizer(lr=0.0), tasks=TASKS, gradients="auto", **options)
    counts, looked, now = [], [], [0]

    def closure():
        losses, features = made.batch(0)()
        # The graph node of the weight's gradient, not a hook on .grad: rows are asked for without filling it.
        if features[0].grad_fn is not None:  # a teleport also evaluates without a graph
            features[0].grad_fn.register_prehook(lambda *a: now.__setitem__(0, now[0] + 1))
        return losses, features

    for _ in range(6):
        now[0] = 0
        report = mt.step(closure)
        counts.append(now[0])
        looked.append(report.conflict is not None)
    return counts, looked


@pytest.mark.parametrize("aggregator", ["gradops", "fairgrad", "cagrad"])
def test_detection_costs_no_further_pass_where_the_gramian_is_there(aggregator):
    plain, _ = passes(aggregator)
    watched, looked = passes(aggregator, detector="dominated")
    assert looked == [True] * 6
    assert watched == plain
    assert plain[-1] >= len(TASKS)


def test_a_loss_level_method_pays_in_every_nth_step_only():
    plain, _ = passes("ls")
    assert plain == [1] * 6
    counts, looked = passes("ls", detector=always(), brakes=Brakes(detect_every=3))
    assert looked == [True, False, False, True, False, False]
    assert [c > 1 for c in counts] == looked
    assert counts[1] == counts[2] == 1


def test_a_teleport_waits_for_a_step_that_looks():
    made = problem("mlp")
    mt = mtlcore.MultiTask(
        made.trunk, "ls", made.optimizer(lr=0.0), tasks=TASKS, detector=always(), teleport="random",
        brakes=Brakes(detect_every=4, start_step=1),
    )  # fmt: skip
    torch.manual_seed(0)
    tried = [step for step in range(9) if mt.step(made.batch(0)).teleport is not None]
    assert tried == [4, 8]


@pytest.mark.parametrize(("aggregator", "options", "expected"), [
    ("famo", {}, 10),
    ("fairgrad", {}, 1),
    ("famo", {"detect_every": 3}, 3),
])  # fmt: skip
def test_the_preset_spares_loss_level_methods(aggregator, options, expected):
    made = problem("mlp")
    mt = mtlcore.cost(made.trunk, aggregator, made.optimizer(), steps_per_epoch=20, start_epoch=1, **options)
    assert mt.brakes == Brakes(start_step=20, cap=1, steps_per_epoch=20, cooldown=20, detect_every=expected)


def test_a_loss_level_method_does_not_look_where_no_teleport_may_follow():
    brakes = Brakes(start_step=2, cap=1)
    counts, looked = passes("ls", detector=always(), teleport="random", brakes=brakes)
    assert looked == [False, False, True, False, False, False]  # before the start, and after the only attempt
    assert [c for c, look in zip(counts, looked) if not look] == [1] * 5
    # Where the Gramian is there anyway, or nothing but a report is wanted, every step looks.
    assert passes("gradops", detector=always(), teleport="random", brakes=brakes)[1] == [True] * 6
    assert passes("ls", detector=always(), brakes=brakes)[1] == [True] * 6


def test_reports_count_how_often_the_detector_fired():
    made = problem("mlp")
    mt = mtlcore.MultiTask(made.trunk, "gradops", made.optimizer(lr=0.0), tasks=TASKS, detector=always())
    for n in range(1, 4):
        diagnostics = mt.step(made.batch(0)).diagnostics
        assert (diagnostics["detector_looks"], diagnostics["detector_fired"]) == (n, n)
    again = mtlcore.MultiTask(made.trunk, "gradops", made.optimizer(lr=0.0), tasks=TASKS, detector=always())
    again.load_state_dict(mt.state_dict())
    assert again.step(made.batch(0)).diagnostics["detector_looks"] == 4
    silent = mtlcore.MultiTask(made.trunk, "gradops", made.optimizer(lr=0.0), tasks=TASKS)
    assert "detector_looks" not in silent.step(made.batch(0)).diagnostics
