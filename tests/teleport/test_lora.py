"""LoRA teleports: what they promise on data they have not seen, and that their gradients are what they say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import mtlcore
from mtlcore.errors import ConfigurationError
from mtlcore.teleporting.problem import Problem
from mtlcore.teleporting.transaction import Transaction
from mtlplugins.teleports.lora import low_rank, objectives, penalty, tangent
from mtlplugins.teleports.lora.field import Field, combine, inner, norm
from support.teleport_nets import KINDS, TASKS, Falling, problem, teleport

N = 384


@pytest.fixture
def open_field():
    """A field on a network that is frozen as in a transaction; put back afterwards."""
    opened = []

    def make(kind: str) -> tuple[Field, Problem]:
        made = problem(kind)
        transaction = Transaction(made.trunk, made.heads, None, frozen_statistics=True)
        frozen = transaction.frozen()
        frozen.__enter__()
        opened.append((transaction, frozen))
        asked = Problem(transaction, made.batch(0), mtlcore.StepView(losses=torch.ones(3), task_names=TASKS), None)
        return Field(asked), asked

    yield make
    for transaction, frozen in opened:
        frozen.__exit__()
        transaction.roll_back()


@pytest.mark.parametrize("kind", KINDS)
def test_accepted_on_every_kind_of_layer(kind):
    """Within tolerance and with less conflict on the probe, which is not the batch it was computed on."""
    made = problem(kind)
    probe = made.batch(1, N)
    with torch.no_grad():
        made.trunk.eval()
        before = {t: float(v) for t, v in probe()[0].items()}
        made.trunk.train()
    start = {n: p.detach().clone() for n, p in made.trunk.named_parameters()}
    result = teleport(made, "lora", closure=made.batch(0, N), probe=probe)
    assert result.accepted, result.reason
    assert result.held_out
    assert result.conflict_after < result.conflict_before - 1e-3
    made.trunk.eval()
    with torch.no_grad():
        after = {t: float(v) for t, v in probe()[0].items()}
    for task in TASKS:
        assert abs(after[task] / before[task] - 1) <= 0.02
        assert after[task] / before[task] - 1 == pytest.approx(result.relative_loss_change[task], abs=1e-9)
    moved = {n for n, p in made.trunk.named_parameters() if not torch.equal(p, start[n])}
    assert moved == {n for n, p in start.items() if p.dim() >= 2}
    for n in moved:
        delta = (made.trunk.get_parameter(n).detach() - start[n]).flatten(1)
        assert torch.linalg.matrix_rank(delta, rtol=1e-9) <= 5, n


class Padded(nn.Module):
    """An encoder over sentences that end in padding (entry 0), read at every position."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.encode = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = x.clamp_min(1).where(torch.arange(x.shape[1]) < 1 + x[:, :1], 0)
        return self.last(self.encode(self.embed(x), src_key_padding_mask=x == 0).mean(1))


def test_an_encoder_has_the_same_losses_with_and_without_gradients():
    """torch's inference path gives zeros at padded positions, the ordinary one does not."""
    made = problem("attention")
    torch.manual_seed(0)
    made.trunk = Padded().double()
    made.train(made.optimizer(), 10)
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Looks(mtlcore.TeleportStrategy):
        def propose(self, problem, generator):
            seen.append(problem.evaluate()[0])
            with torch.no_grad():
                seen.append(problem.evaluate()[0])
            return mtlcore.Displacement({})

    teleport(made, Looks())
    torch.testing.assert_close(*seen, rtol=1e-12, atol=0)
    result = teleport(made, "lora")
    assert result.diagnostics["tangent_steps"] > 0, result.reason


SEARCHES = [
    {"objective": "conflict"},
    {"objective": "conflict", "estimator": "double-backward"},
    {"objective": "gradient-norm"},
    {"objective": "gradient-norm", "estimator": "double-backward"},
    {"objective": "sharpness", "estimator": "sphere"},
    {"objective": "conflict", "search": "penalty", "gamma": 0.3, "steps": 12},
    {"objective": "sharpness", "estimator": "sphere", "search": "penalty", "steps": 6},
    {"objective": "conflict", "search": "penalty", "gamma": 0.3, "steps": 12, "adapter": "peft-lora"},
    {"objective": "conflict", "search": "penalty", "gamma": 0.3, "steps": 12, "adapter": "peft-loha"},
    {"objective": "conflict", "search": "penalty", "gamma": 0.3, "steps": 12, "adapter": "peft-lokr"},
]


@pytest.mark.parametrize("options", SEARCHES, ids=lambda o: "-".join(str(v) for v in o.values()))
@pytest.mark.parametrize("kind", ["conv", "attention", "lstm"])
def test_every_search_keeps_the_losses_and_finds_something(options, kind):
    made = problem(kind)
    result = teleport(made, "lora", options, closure=made.batch(0, N), probe=made.batch(1, N), detector=Falling())
    assert result.accepted, result.reason
    assert max(abs(c) for c in result.relative_loss_change.values()) <= 0.02


@pytest.mark.parametrize("objective", ["conflict", "gradient-norm", "sharpness"])
def test_the_objective_rises(objective, open_field):
    estimator = "sphere" if objective == "sharpness" else "finite-difference"
    field, asked = open_field("mlp")
    strategy = mtlcore.create("teleport", "lora", objective=objective, estimator=estimator)
    exact = dataclasses.replace(
        strategy, objective="conflict" if objective == "conflict" else "gradient-norm", estimator="finite-difference"
    )
    measure = exact._objective(field)
    before = measure.ascent(field, torch.Generator())[0]
    found = strategy.propose(asked, torch.Generator().manual_seed(0))
    for n, value in found.parameters.items():
        asked.parameters()[n].data.copy_(value)
    assert measure.ascent(field, torch.Generator())[0] > before


def test_the_surface_of_constant_losses():
    """Tangents change no loss to first order and keep what can be kept of the ascent; steps back undo what is asked."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 30, generator=generator, dtype=torch.float64) * torch.tensor([[1e-3], [1.0], [1e3], [0.0]])
    rows = torch.cat([rows, rows[:1]])  # a task twice, and one that does not pull: rank 3
    surface = tangent._Surface(rows)
    h = torch.randn(30, generator=generator, dtype=torch.float64)
    along = surface.project(h)
    sizes = rows.norm(dim=1) * along.norm()
    assert bool(((rows @ along).abs() <= 1e-12 * sizes).all())
    basis = torch.linalg.svd(rows[:3])[2][3:]
    torch.testing.assert_close(along, basis.T @ (basis @ h), rtol=1e-9, atol=1e-12)
    change = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.3], dtype=torch.float64)
    torch.testing.assert_close(rows @ surface.back(change), change, rtol=1e-9, atol=1e-8)


def test_a_tangent_step_drifts_to_second_order(open_field):
    field, _ = open_field("lstm")
    blocks = field.rows_at_start
    _, ascent = objectives.Conflict(exact=False).ascent_from(field, blocks)
    weights = [n for n, p in zip(field.names, field.start) if p.dim() >= 2]
    chart = tangent._Chart(field, weights, ascent, 5, torch.Generator().manual_seed(0))
    step = tangent._Surface(chart.pull_rows(blocks) / field.unit[:, None]).project(chart.pull(ascent))
    drifts = []
    for size in (2e-2, 1e-2):
        field.displace(chart.push(size * step / step.norm()))
        drifts.append(float(field.relative_change().norm()))
    assert drifts[0] / drifts[1] == pytest.approx(4.0, rel=0.05)


def numeric_slope(field: Field, value, direction, h: float = 1e-5) -> float:
    """(O(theta + h d) - O(theta - h d)) / 2h."""
    here = field.current()
    field.place(here, [h * d for d in direction])
    up = value()
    field.place(here, [-h * d for d in direction])
    down = value()
    field.place(here)
    return (up - down) / (2 * h)


@pytest.mark.parametrize("kind", ["embedding", "lstm", "plain"])  # smooth networks
def test_gradients_are_those_of_the_values(kind, open_field):
    field, _ = open_field(kind)
    generator = torch.Generator().manual_seed(1)
    factor = objectives.balance(field.rows_at_start)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in field.start]

    norms = objectives.GradientNorm(factor, exact=True)
    slope = inner(norms.ascent(field, generator)[1], direction)
    assert slope == pytest.approx(numeric_slope(field, lambda: norms.ascent(field, generator)[0], direction), rel=1e-4)

    conflict = objectives.Conflict(exact=True)
    fixed = conflict.weights(field.rows()[1])
    slope = inner(conflict.ascent(field, generator)[1], direction)

    def cosine() -> float:
        _, (a, b) = field.gradients(*fixed)
        return inner(a, b) / norm(a) / norm(b)

    assert slope == pytest.approx(numeric_slope(field, cosine, direction), rel=1e-4)

    sharp = objectives.Sharpness(factor, samples=3, delta=1e-2, per_tensor=True)
    seeded = lambda: torch.Generator().manual_seed(5)  # the same noise every time
    slope = inner(sharp.ascent(field, seeded())[1], direction)
    assert slope == pytest.approx(numeric_slope(field, lambda: sharp.ascent(field, seeded())[0], direction), rel=1e-4)


@pytest.mark.parametrize("kind", ["embedding", "lstm", "plain"])
def test_finite_differences_agree_with_double_backward(kind, open_field):
    field, _ = open_field(kind)
    factor = objectives.balance(field.rows_at_start)
    for make in (objectives.Conflict, lambda exact: objectives.GradientNorm(factor, exact)):
        value, exact = make(True).ascent(field, torch.Generator())
        other, finite = make(False).ascent(field, torch.Generator())
        assert value == pytest.approx(other, rel=1e-9)
        assert norm(combine([(1.0, exact), (-1.0, finite)])) <= 1e-5 * norm(exact)


def test_sharpness_tends_to_what_gradient_norm_says_along_the_gradient(open_field):
    """|L(theta + eps) - L(theta)| / |eps| <= |grad L| to first order, and a sphere's samples stay below it."""
    field, _ = open_field("embedding")
    ones = torch.ones(3, dtype=torch.float64)
    exact = objectives.GradientNorm(ones, exact=True).ascent(field, torch.Generator())[0]
    sphere = objectives.Sharpness(ones, samples=20, delta=1e-5, per_tensor=False)
    sampled = sphere.ascent(field, torch.Generator().manual_seed(0))[0]
    assert 0.02 * exact < sampled < exact


def test_balance_factor():
    blocks = [torch.tensor([[3.0], [0.0], [1.0]])]
    assert objectives.balance(blocks).tolist() == pytest.approx([3 * (1 - 0.75), 3.0, 3 * 0.75])
    assert float(objectives.balance(blocks).sum()) == pytest.approx(3 * 2)
    assert objectives.balance([torch.zeros(3, 1)]).tolist() == [2.0, 2.0, 2.0]


def test_own_factors_and_pefts_give_the_same_displacement(open_field):
    field, asked = open_field("attention")
    weights = low_rank.adapted(asked.parameters(), ())
    found = []
    for kind in ("low-rank", "peft-lora"):
        adapter = low_rank.make(kind, weights, 3, 8, torch.Generator().manual_seed(0))
        assert not any(bool(d.any()) for d in adapter.deltas().values()), "the search starts where the network is"
        pairs = list(zip(adapter.factors[::2], adapter.factors[1::2]))
        with torch.no_grad():
            for i, (a, _) in enumerate(pairs):
                a.copy_(torch.randn(a.shape, generator=torch.Generator().manual_seed(i), dtype=a.dtype))
        settings = {"gamma": 0.3, "steps": 4, "lr": 1e-2, "relative": True}
        found.append(penalty.search(field, adapter, objectives.Conflict(True), generator=torch.Generator(), **settings))
    assert found[0].keys() == found[1].keys()
    for n in found[0]:
        torch.testing.assert_close(found[0][n], found[1][n], rtol=1e-9, atol=1e-12)


def test_targets_choose_the_weights():
    made = problem("lstm")
    before = {n: p.detach().clone() for n, p in made.trunk.named_parameters()}
    result = teleport(made, "lora", {"targets": ["cell.weight_hh_*"]}, closure=made.batch(0, N), probe=made.batch(1, N))
    assert result.accepted, result.reason
    moved = {n for n, p in made.trunk.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"cell.weight_hh_l0", "cell.weight_hh_l1"}
    with pytest.raises(ConfigurationError, match=r"'nowhere\.\*' matches no weight"):
        teleport(made, "lora", {"targets": ["nowhere.*"]})


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Embedding(9, 4, sparse=True), nn.Linear(24, 5)

    def forward(self, x):
        return self.last(torch.tanh(self.embed(x).flatten(1)))


@pytest.mark.parametrize("options", [{}, {"search": "penalty", "steps": 3}])
def test_sparse_gradients(options):
    made = problem("embedding")
    made.trunk = Sparse().double()
    assert teleport(made, "lora", options, detector=Falling()).accepted
    assert next(made.trunk.parameters()).grad is None


def test_frozen_weights_stay():
    made = problem("mlp")
    made.trunk[0].requires_grad_(False)
    weight = made.trunk[0].weight.detach().clone()
    result = teleport(made, "lora", closure=made.batch(0, N), probe=made.batch(1, N), detector=Falling())
    assert result.accepted, result.reason
    assert torch.equal(made.trunk[0].weight, weight)


def test_nothing_to_adapt_and_one_task():
    made = problem("mlp")
    made.trunk = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5, bias=False).requires_grad_(False)).double()
    assert "no trainable weight" in teleport(made, "lora").reason
    made = problem("mlp")
    inner_batch = made.batch(0)
    alone = lambda: ({"red": inner_batch()[0]["red"]}, ())
    assert "one task only" in teleport(made, "lora", closure=alone, probe=alone).reason


@pytest.mark.parametrize("exponent", [-30, 30])
def test_the_unit_of_the_losses_does_not_matter(exponent):
    outcomes = []
    for scale in (1.0, 2.0**exponent):
        made = problem("conv")
        batches = [made.batch(s, N) for s in (0, 1)]
        scaled = [lambda b=b, scale=scale: ({t: scale * v for t, v in b()[0].items()}, ()) for b in batches]
        result = teleport(made, "lora", closure=scaled[0], probe=scaled[1])
        assert result.accepted, result.reason
        outcomes.append((result.conflict_after, [p.detach().clone() for p in made.trunk.parameters()]))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-6)
    for a, b in zip(outcomes[0][1], outcomes[1][1]):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_single_precision():
    made = problem("conv")
    made.trunk.float()
    made.heads.float()
    inputs = made.inputs
    made.inputs = lambda g, n: inputs(g, n).float()
    result = teleport(made, "lora", closure=made.batch(0, N), probe=made.batch(1, N))
    assert result.accepted, result.reason
    assert all(p.dtype == torch.float32 for p in made.trunk.parameters())


def test_options_that_do_not_go_together():
    with pytest.raises(ConfigurationError, match="sharpness only"):
        mtlcore.create("teleport", "lora", objective="conflict", estimator="sphere")


def test_without_peft_the_message_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(mtlcore.errors.MissingExtraError, match=r"mtlcore\[teleport\]"):
        teleport(problem("mlp"), "lora", {"adapter": "peft-lora", "search": "penalty"})
