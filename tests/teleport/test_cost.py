"""COST as a whole: detector, brakes, teleport and history inside an ordinary training loop."""

from __future__ import annotations

import copy

import pytest
import torch

import mtlcore
from mtlcore.errors import ConfigurationError
from mtlcore.presets import PAPER_TELEPORT
from support.teleport_nets import problem


def run(mt, made, steps: int) -> list:
    return [mt.step(made.batch(100 + s, 128)) for s in range(steps)]


@pytest.mark.parametrize("settings", ["measured", "paper"])
def test_cost_trains_and_teleports_when_it_may(settings):
    made = problem("conv")
    optimizer = made.optimizer(lr=1e-3)
    mt = mtlcore.cost(
        made.trunk, "fairgrad", optimizer, settings=settings, steps_per_epoch=5, start_epoch=1, heads=made.heads,
        probe=made.batch(7, 256), detector_options={"rule": "any"}, teleport_options={"adapter": "low-rank"},
    )  # fmt: skip
    reports = run(mt, made, 15)
    tried = [r.step for r in reports if r.teleport is not None]
    assert tried, "the problem is conflict-rich: the detector must fire"
    assert all(step >= 5 for step in tried)
    assert all(sum(s // 5 == epoch for s in tried) <= 1 for epoch in range(3)), "one per epoch"
    for report in reports:
        if report.teleport is not None:
            assert report.conflict.conflicting
            assert report.teleport.held_out
            if report.teleport.accepted:
                assert max(abs(c) for c in report.teleport.relative_loss_change.values()) <= 0.02
                assert report.teleport.conflict_after < report.teleport.conflict_before
    assert all(torch.isfinite(p).all() for p in made.parameters())


def test_the_preset_spells_the_papers_settings():
    mt = mtlcore.cost(problem("mlp").trunk, settings="paper")
    strategy = mt._teleporter.strategy
    assert {name: getattr(strategy, name) for name in PAPER_TELEPORT} == PAPER_TELEPORT
    assert mt.detector == mtlcore.create("detector", "dominated", rule="smallest")
    assert type(mt.aggregator).__name__ == "FairGrad"


def test_overrides_win():
    detector = mtlcore.create("detector", "cosine", threshold=0.2)
    mt = mtlcore.cost(problem("mlp").trunk, "ls", detector=detector, teleport="relu-rescaling", tolerance=0.5)
    assert mt.detector is detector
    assert type(mt._teleporter.strategy).__name__ == "ReluRescaling"
    assert mt._teleporter.tolerance == 0.5


def test_bad_settings_are_refused():
    with pytest.raises(ConfigurationError, match="settings='best'"):
        mtlcore.cost(problem("mlp").trunk, settings="best")
    with pytest.raises(ConfigurationError, match="steps_per_epoch"):
        mtlcore.cost(problem("mlp").trunk, start_epoch=3)


def test_a_resumed_run_equals_an_uninterrupted_one():
    def build():
        made = problem("conv")
        optimizer = made.optimizer(lr=1e-3)
        options = {
            "steps_per_epoch": 4,
            "detector_options": {"rule": "any"},
            "probe": made.batch(7, 256),
            "detect_every": 1,
        }
        return made, optimizer, mtlcore.cost(made.trunk, "ls", optimizer, **options)

    torch.manual_seed(0)
    made, optimizer, mt = build()
    assert any(r.teleport is not None for r in run(mt, made, 6))
    parts = (made.trunk, made.heads, optimizer, mt)
    saved, noise = copy.deepcopy([p.state_dict() for p in parts]), torch.get_rng_state()
    expected = [mt.step(made.batch(s, 128)).losses for s in range(6)]
    again, other, fresh = build()
    for part, state in zip((again.trunk, again.heads, other, fresh), saved):
        part.load_state_dict(state)
    torch.set_rng_state(noise)
    for s, losses in enumerate(expected):
        assert torch.equal(fresh.step(again.batch(s, 128)).losses, losses)
