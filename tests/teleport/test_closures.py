"""What a closure may do while a teleport evaluates it, and what may end it at any moment."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlcore.teleporting.transaction import Transaction
from support.teleport_nets import TASKS, Falling, Problem, problem, teleport
from support.traces import assert_unchanged, everything


def physics() -> Problem:
    """Losses that are made of derivatives with respect to the inputs, as a physics-informed network's are."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    heads = nn.ModuleDict({t: nn.Linear(4, 1) for t in TASKS}).double()
    made = Problem(trunk, heads, lambda g, n: torch.randn(n, 2, generator=g, dtype=torch.float64))

    def batch(seed, n=24):
        points = made.inputs(torch.Generator().manual_seed(seed), n)

        def closure():
            x = points.clone().requires_grad_()
            z = trunk(x)
            fields = {t: head(z).squeeze(-1) for t, head in heads.items()}
            slopes = {t: torch.autograd.grad(u.sum(), x, create_graph=True)[0] for t, u in fields.items()}
            losses = {
                TASKS[0]: (slopes["red"][:, 0] - slopes["green"][:, 1]).square().mean(),
                TASKS[1]: (slopes["green"].sum(1) - fields["blue"]).square().mean(),
                TASKS[2]: (fields["blue"] - points[:, 0].sin()).square().mean(),
            }
            return losses, (z,)

        return closure

    made.batch = batch
    return made


@pytest.mark.parametrize("name", ["lora", "relu-rescaling", "random", "linear-boundary"])
def test_a_closure_may_differentiate_inside(name):
    made = physics()
    optimizer = made.optimizer()
    made.train(optimizer, 3)
    before = {t: float(v.detach()) for t, v in made.batch(3)()[0].items()}
    with torch.no_grad():  # whatever the caller's mode
        result = teleport(made, name, {"steps": 2} if name == "lora" else None, optimizer=optimizer, detector=Falling())
    assert result.accepted, result.reason
    if name != "lora":
        for task, value in made.batch(3)()[0].items():
            assert float(value.detach()) == pytest.approx(before[task], rel=1e-9)


MOMENTS = ["freeze", "same_noise", "undo_search", "move", "restore_buffers", "other_statistics", "commit", "at_start"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_in_any_part_of_an_attempt_leaves_all_as_before(moment, monkeypatch):
    """In a search, in a verdict, in what follows an acceptance: at the first call of every part."""
    made = problem("conv")
    optimizer = made.optimizer()
    made.train(optimizer, 2)
    before, whole, struck = everything(made, optimizer), getattr(Transaction, moment), []

    def interrupted(self, *arguments, **options):
        if not struck:
            struck.append(1)
            raise KeyboardInterrupt
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Transaction, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        teleport(made, "lora", {"steps": 1}, optimizer=optimizer, detector=Falling())
    assert_unchanged(before, everything(made, optimizer))
    assert not nn.modules.module._global_forward_pre_hooks
