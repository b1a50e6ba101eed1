"""COST as a whole: detector, brakes, teleport and history inside an ordinary training loop."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch

import mtlcore
from mtlbench.studies import repeated
from mtlbench.studies.cost_problem import BadCoordinates
from mtlcore.errors import ConfigurationError
from mtlcore.presets import PAPER_TELEPORT
from mtlcore.teleporting import Teleporter
from support.teleport_nets import Falling, Rising, problem, teleport


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
    made = problem("mlp")
    mt = mtlcore.cost(made.trunk, settings="paper", heads=made.heads)
    strategy = mt._run.teleporter.strategy
    assert {name: getattr(strategy, name) for name in PAPER_TELEPORT} == PAPER_TELEPORT
    assert mt.detector == mtlcore.create("detector", "dominated", rule="smallest", at_zero=True)
    authors = {"alpha": 2.0, "outer_scale": "n-tasks", "max_norm": 1.0}
    assert mt.aggregator == mtlcore.create("aggregator", "fairgrad", **authors)
    assert mtlcore.cost(made.trunk, "nash-mtl", settings="paper").aggregator.max_norm == 1.0
    assert (mt._run.teleporter.memory.direction, mt._run.teleporter.memory.over) == ("previous", "shared")
    assert mt._run.teleporter.accept == "conflict"
    assert mtlcore.cost(made.trunk).aggregator == mtlcore.create("aggregator", "fairgrad")
    assert mtlcore.cost(made.trunk, mtlcore.create("aggregator", "fairgrad"), settings="paper").aggregator.alpha == 1.0
    alone = mtlcore.cost(made.trunk, settings="paper")
    assert alone._run.teleporter.strategy.perturb == "trunk", "nobody knows the heads"


def test_the_default_teleport_is_the_one_that_was_measured_to_help():
    strategy = lambda **options: mtlcore.cost(problem("mlp").trunk, **options)._run.teleporter.strategy
    assert strategy() == mtlcore.create("teleport", "relu-rescaling")
    assert strategy(teleport="lora") == mtlcore.create("teleport", "lora")
    assert strategy(teleport_options={"rank": 3}) == mtlcore.create("teleport", "lora", rank=3)
    assert strategy(accept="progress") == mtlcore.create("teleport", "lora", objective="progress")
    made = problem("lstm")
    options = {"heads": made.heads, "probe": made.batch(7), "detector_options": {"rule": "any"}}
    mt = mtlcore.cost(made.trunk, "ls", made.optimizer(), detect_every=1, **options)
    found = [r.teleport for r in run(mt, made, 12) if r.teleport is not None]
    assert found
    assert all(not t.accepted and "no unit of the trunk can be rescaled" in t.reason for t in found), "said, not silent"


def test_attempts_keep_the_distance_that_was_measured():
    """Without ``steps_per_epoch`` every step that showed a conflict used to try a teleport."""
    made = problem("conv")
    mt = mtlcore.cost(
        made.trunk, "fairgrad", made.optimizer(lr=1e-3), heads=made.heads, detector_options={"rule": "any"}
    )
    tried = [r.step for r in run(mt, made, 45) if r.teleport is not None]
    assert len(tried) > 1
    assert min(b - a for a, b in itertools.pairwise(tried)) >= 20
    assert mtlcore.cost(made.trunk, settings="paper").brakes.cooldown == 0
    assert mtlcore.cost(made.trunk, "fairgrad", steps_per_epoch=5).brakes.cap == 1


def test_the_papers_direction_is_scaled_and_clipped_and_heads_are_not():
    """It used to be alpha = 2 alone: the trunk's step was K times too short, or too long near a stationary point."""
    made = problem("mlp")
    made.trunk.eval()
    losses, z = made.batch(0)()
    report = mtlcore.cost(made.trunk, settings="paper", teleport=None).backward(losses, features=z)
    trunk = torch.cat([p.grad.flatten() for p in made.trunk.parameters()])
    plain = mtlcore.create("aggregator", "fairgrad", alpha=2.0)
    view = mtlcore.StepView(losses=report.losses, gramian=report.gramian)
    weights = plain.aggregate(view, plain.init(len(losses))).weights * len(losses)
    length = float(weights @ report.gramian @ weights) ** 0.5
    assert float(trunk.norm()) == pytest.approx(min(1.0, length), rel=1e-4)
    torch.testing.assert_close(report.weights, weights * min(1.0, 1.0 / length), rtol=1e-6, atol=0)
    own = torch.autograd.grad(sum(made.batch(0)()[0].values()), list(made.heads.parameters()))
    for p, g in zip(made.heads.parameters(), own):
        torch.testing.assert_close(p.grad, g)


def everywhere(made) -> list:
    return [p.detach().clone() for p in made.heads.parameters()]


def test_noise_on_all_parameters_changes_the_search_and_leaves_the_heads_where_they_were():
    found = []
    for perturb in ("trunk", "all"):
        made = problem("mlp")
        before = everywhere(made)
        options = {"objective": "sharpness", "estimator": "sphere", "perturb": perturb, "delta": 0.1}
        result = teleport(made, "lora", options, detector=Falling())
        assert result.accepted, result.reason
        assert all(map(torch.equal, before, everywhere(made)))
        found.append([p.detach().clone() for p in made.trunk.parameters()])
    assert not all(map(torch.equal, *found))
    made.heads = None
    with pytest.raises(ConfigurationError, match=r"perturb='all'.*heads"):
        teleport(
            made, "lora", options, detector=Falling(), closure=problem("mlp").batch(0), probe=problem("mlp").batch(1)
        )


@dataclass(frozen=True)
class Far(mtlcore.TeleportStrategy):
    """Goes where the losses are others."""

    by: float = 0.5

    def propose(self, problem, generator):
        name, p = next(iter(problem.parameters().items()))
        return mtlcore.Displacement({name: p.detach() + self.by})


def test_what_is_asked_of_a_teleport_is_an_option():
    rules = {
        ("conflict", 0.0): False, ("losses", 0.0): False, ("always", 0.0): True,
        ("conflict", 1e-5): False, ("losses", 1e-5): True, ("always", 1e-5): True,
    }  # fmt: skip
    for (accept, by), accepted in rules.items():
        result = teleport(problem("mlp"), Far(by or 0.5), accept=accept, trials=1, detector=Rising())
        assert result.accepted is accepted, (accept, by, result.reason)
    assert not teleport(problem("mlp"), Far(float("nan")), accept="always", trials=1).accepted
    mt = mtlcore.cost(problem("mlp").trunk, "ls", settings="paper", accept="always")
    assert mt._run.teleporter.accept == "always"


def test_the_gradient_that_history_is_compared_with_is_an_option():
    """By hand: the cosine of the jump with the last combined gradient, over all that is shared."""
    for direction, over in itertools.product(("mean", "previous"), ("moved", "shared")):
        made = problem("mlp")
        made.trunk.eval()
        own = Teleporter(Far(1e-5), accept="losses", reuse_direction=direction, reuse_over=over)
        brakes = mtlcore.Brakes(start_step=1)
        mt = mtlcore.MultiTask(made.trunk, "ls", made.optimizer(), teleport=own, heads=made.heads, brakes=brakes)
        mt.step(made.batch(0))
        parameters = list(made.trunk.parameters())
        if direction == "previous":
            slope = [p.grad.clone() for p in parameters]
        else:
            slope = torch.autograd.grad(sum(made.batch(1)()[0].values()) / 3, parameters)
        jump = [torch.full_like(p, 1e-5 * (i == 0)) for i, p in enumerate(parameters)]
        n = len(parameters) if over == "shared" else 1
        flat = [torch.cat([t.flatten() for t in tensors[:n]]) for tensors in (jump, slope)]
        expected = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
        report = mt.step(made.batch(1))
        assert report.teleport.accepted, report.teleport.reason
        assert report.teleport.diagnostics["history_cosine"] == pytest.approx(expected, rel=1e-6)


def test_the_remembered_direction_is_in_the_state():
    made = problem("mlp")
    own = Teleporter("lora", reuse_direction="previous")
    mt = mtlcore.MultiTask(made.trunk, "ls", made.optimizer(), teleport=own, heads=made.heads)
    mt.step(made.batch(0))
    other = mtlcore.MultiTask(
        made.trunk, "ls", made.optimizer(), teleport=Teleporter("lora", reuse_direction="previous"), heads=made.heads
    )
    other.load_state_dict(mt.state_dict())
    assert all(map(torch.equal, own.memory.previous, other._run.teleporter.memory.previous))


def test_orthogonal_gradients_are_a_conflict_for_the_authors_code_only():
    rows = torch.tensor(
        [[1.0, 0.0], [-1.0, 1.0], [0.0, 1.0]], dtype=torch.float64
    )  # the first is orthogonal to the mean
    view = mtlcore.StepView(losses=torch.ones(3), gramian=rows @ rows.T)
    zero = mtlcore.StepView(losses=torch.ones(2), gramian=torch.zeros(2, 2, dtype=torch.float64))
    for at_zero in (False, True):
        detector = mtlcore.create("detector", "dominated", at_zero=at_zero)
        assert detector.detect(view).conflicting is at_zero
        assert bool(detector.detect(view).dominated[0]) is at_zero
        assert not detector.detect(zero).conflicting


def test_overrides_win():
    detector = mtlcore.create("detector", "cosine", threshold=0.2)
    mt = mtlcore.cost(problem("mlp").trunk, "ls", detector=detector, teleport="relu-rescaling", tolerance=0.5)
    assert mt.detector is detector
    assert type(mt._run.teleporter.strategy).__name__ == "ReluRescaling"
    assert mt._run.teleporter.tolerance == 0.5


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


@pytest.mark.parametrize(
    "options",
    [
        {"teleport": "relu-rescaling", "teleport_options": {"rank": 3}},
        {"detector": "cosine", "detector_options": {"rule": "fraction"}},
        {"brakes": mtlcore.Brakes(), "steps_per_epoch": 5},
        {"brakes": mtlcore.Brakes(), "detect_every": 2},
    ],
)
def test_an_option_that_an_override_leaves_without_effect_is_refused(options):
    """It used to be dropped in silence."""
    override, other = options
    with pytest.raises(ConfigurationError, match=f"{override}=... replaces what {other} would set"):
        mtlcore.cost(problem("mlp").trunk, **options)


def test_accept_belongs_to_a_teleporter_that_is_handed_over():
    ready = mtlcore.Teleporter(mtlcore.create("teleport", "lora"))
    with pytest.raises(ConfigurationError, match="teleport=... replaces what accept would set"):
        mtlcore.cost(problem("mlp").trunk, teleport=ready, accept="always")


@pytest.mark.parametrize(("probed", "accepted"), [(7.0, True), (1.0, False)])
def test_by_default_held_out_data_must_show_the_conflict_too(probed, accepted):
    """On RF1 held-out data confirmed one in 42 of the conflicts that set off a teleport."""
    made = BadCoordinates()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk, heads = made.trunk(), torch.nn.ModuleDict({task: made.head(task) for task in made.tasks})
    x = made.load().train.inputs

    def losses_of(large: float):
        z = trunk(x)
        return {t: s * heads[t](z).square().mean() / 2 for t, s in (("small", 1.0), ("large", large))}, z

    def step(**options):
        optimizer = torch.optim.SGD(trunk.parameters(), lr=0.0)  # only a teleport moves
        mt = mtlcore.cost(trunk, "ls", optimizer, heads=heads, detect_every=1, **options)
        return mt.step(lambda: losses_of(7.0)).teleport

    before = [p.detach().clone() for p in trunk.parameters()]
    found = step(probe=lambda: losses_of(probed))
    assert found.accepted is accepted, found.reason
    assert all(map(torch.equal, before, trunk.parameters())) is not accepted
    if not accepted:
        assert "not confirmed: no conflict on the batch that judges, severity -0." in found.reason
        assert found.conflict_before < 0.0
        assert "not confirmed" not in step(probe=lambda: losses_of(probed), accept="conflict").reason
    assert mtlcore.cost(trunk)._run.teleporter.accept == "confirmed"


def test_options_that_are_no_dict_are_named():
    with pytest.raises(ConfigurationError, match="teleport_options must be a dict"):
        mtlcore.cost(problem("mlp").trunk, teleport_options=[1])


def test_rescaling_in_every_step_makes_sgd_diverge_and_not_adam():
    """What docs/explanation/cost.md warns of; `cost` does not do it."""
    assert repeated.train("in every step", "SGD", 1).loss > 1e6
    assert repeated.train("in every step", "Adam", 1).loss < 2.0
    alone, cost = (repeated.train(arm, "SGD", 1) for arm in ("alone", "cost"))
    # A step that looks for conflict takes another gradient source, so that the last bits may differ.
    assert cost.rescalings == 0
    assert cost.loss == pytest.approx(alone.loss, rel=1e-4)
