"""Wrappers around methods that remember, look twice or compare several batches, and around other wrappers."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from torch import Tensor, nn

import mtlcore
from mtlcore import StepView
from mtlcore.errors import ConfigurationError

WRAPPERS = ["clipped", "cr-mogm", "ema", "layerwise", "row-normalised", "task-weighted"]
FACTORS = (0.5, 3.0, 2.0)


class Run:
    """A small network with three heads; ``factors`` multiply its losses."""

    def __init__(self, method, factors=(1.0, 1.0, 1.0)) -> None:
        generator = torch.Generator().manual_seed(0)
        self.trunk, self.heads = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), nn.Linear(4, 3)
        self.parameters = [*self.trunk.parameters(), *self.heads.parameters()]
        for p in self.parameters:
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        self.factors = factors
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.01)
        self.mt = mtlcore.MultiTask(self.trunk, aggregator=method, optimizer=self.optimizer, seed=3)
        self.batches = method.batches

    def closure(self, number: int):
        generator = torch.Generator().manual_seed(number)
        x, y = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))

        def evaluate():
            z = self.trunk(x)
            losses = (self.heads(z) - y).square().mean(0)
            return {f"t{i}": f * loss for i, (f, loss) in enumerate(zip(self.factors, losses))}, z

        return evaluate

    def steps(self, numbers) -> Tensor:
        for number in numbers:
            self.optimizer.zero_grad()
            closures = [self.closure(10 * number + b) for b in range(self.batches)]
            self.mt.step(closures if self.batches > 1 else closures[0])
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def state(self):
        blob = io.BytesIO()
        torch.save(
            [self.trunk.state_dict(), self.heads.state_dict(), self.optimizer.state_dict(), self.mt.state_dict()], blob
        )
        blob.seek(0)
        return torch.load(blob, weights_only=True)

    def load(self, state) -> Run:
        for part, saved in zip((self.trunk, self.heads, self.optimizer, self.mt), state):
            part.load_state_dict(saved)
        return self


def wrapped(name: str, inside, **options):
    return mtlcore.create("aggregator", name, method=inside, **options)


@pytest.mark.parametrize(
    "name",
    ["ls", "famo", "stch", "moco", "gradnorm", "modo", "sdmgrad", "auto-lambda", "forum", "bilb4mtl-double-loop"],
)
def test_task_weights_are_factors_of_the_losses_in_all_batches_and_inner_steps(name):
    """The further batches of a step, and the points that inner steps reach, used to keep the losses as they were."""
    inside = mtlcore.create("aggregator", name)
    around = wrapped("task-weighted", inside, weights=FACTORS)
    torch.testing.assert_close(Run(around).steps(range(4)), Run(inside, FACTORS).steps(range(4)), rtol=1e-9, atol=1e-12)


def test_task_weights_are_factors_of_the_losses_in_second_derivatives():
    inside = mtlcore.create("aggregator", "emtl", form="exact")
    around = wrapped("task-weighted", inside, weights=FACTORS)
    torch.testing.assert_close(Run(around).steps(range(4)), Run(inside, FACTORS).steps(range(4)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), [("clipped", {}), ("ema", {"beta": 0.0}), ("layerwise", {})])
def test_second_derivatives_pass_through_wrappers(name, options):
    inside = mtlcore.create("aggregator", "emtl", form="exact")
    options = {**options, "max_norm": 1e9} if name == "clipped" else options
    same = Run(wrapped(name, inside, **options)).steps(range(3))
    torch.testing.assert_close(same, Run(inside).steps(range(3)), rtol=1e-9, atol=1e-12)


def test_a_group_of_parameters_has_its_own_second_derivatives():
    """As if the others were no parameters at all."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 9, 9, generator=generator, dtype=torch.float64)
    hessians, rows = root @ root.mT, torch.randn(3, 9, generator=generator, dtype=torch.float64)
    losses, inside = torch.tensor([1.0, 2.0, 5.0]), mtlcore.create("aggregator", "emtl", form="exact", lamb=1.0)

    def answer(method, columns):
        def curvature(_, vectors):
            return torch.einsum("kpq,kq->p", hessians[:, columns, columns], vectors)

        view = StepView(losses=losses, jacobian=rows[:, columns], curvature=curvature)
        return method.aggregate(view, method.init(3)).direction

    parts = [answer(inside, columns) for columns in (slice(0, 4), slice(4, 9))]
    whole = answer(wrapped("layerwise", inside, sizes=(4.0,)), slice(0, 9))
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["ls", "uw", "famo", "rlw", "bilb4mtl"])
def test_weights_of_a_method_that_reads_losses_only_can_be_averaged(name):
    """It was refused in the first step, with a message about head_weights."""
    inside = mtlcore.create("aggregator", name)
    same = Run(wrapped("cr-mogm", inside, alpha=0.0)).steps(range(3))
    assert torch.equal(same, Run(inside).steps(range(3)))
    slow = Run(wrapped("cr-mogm", inside, alpha=0.99)).steps(range(3))
    assert torch.equal(same, slow) == (name == "ls")  # constant weights are their own average


@pytest.mark.parametrize("name", ["moco", "gradvac", "cr-mogm", "db-mtl", "famo"])
@pytest.mark.parametrize("sizes", [(4.0,), (4.0, 5.0), (2.0, 7.0)])
def test_a_method_that_remembers_does_so_for_each_group(name, sizes):
    """Groups are runs side by side. (Methods with a state used to be refused.)"""
    inside = mtlcore.create("aggregator", name)
    around = wrapped("layerwise", inside, sizes=sizes)
    state, parts = around.init(3), [inside.init(3), inside.init(3)]
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        rows = torch.randn(3, 9, generator=generator, dtype=torch.float64)
        losses = torch.rand(3, generator=generator, dtype=torch.float64)
        shared = torch.Generator().manual_seed(number)
        answer = around.aggregate(StepView(losses=losses, jacobian=rows, generator=number), state)
        state, expected = answer.state, []
        for g, columns in enumerate((slice(0, int(sizes[0])), slice(int(sizes[0]), 9))):
            block = rows[:, columns].contiguous()
            one = inside.aggregate(StepView(losses=losses, jacobian=block, generator=shared), parts[g])
            parts[g] = one.state
            expected.append(block.T @ one.weights if one.direction is None else one.direction)
        torch.testing.assert_close(answer.direction, torch.cat(expected), rtol=1e-10, atol=1e-12)
        looked = StepView(losses=losses * 0.9, jacobian=rows, generator=number)
        state = around.observe(looked, state)
        parts = [inside.observe(looked, part) for part in parts]


@pytest.mark.parametrize("name", ["ema", "layerwise"])
def test_what_is_made_for_one_batch_refuses_a_method_with_several(name):
    around = wrapped(name, "modo")
    with pytest.raises(ConfigurationError, match="MoDo compares those of 2"):
        around.init(3)


@pytest.mark.parametrize(
    ("outer", "inner"), [c for c in itertools.product(WRAPPERS, WRAPPERS) if c != ("cr-mogm", "ema")]
)
def test_a_wrapper_of_a_wrapper_resumes_bit_for_bit_and_keeps_what_both_keep(outer, inner):
    middle = wrapped(inner, "upgrad")
    around = wrapped(outer, middle)
    assert around.claims - around.adds <= middle.claims
    run = Run(around)
    run.steps(range(3))
    resumed = Run(around).load(run.state())
    assert torch.equal(run.steps(range(3, 6)), resumed.steps(range(3, 6)))
