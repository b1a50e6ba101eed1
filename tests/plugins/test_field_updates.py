"""Methods that remember or draw, against independent transcriptions of their published updates, over runs."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch

import mtlcore
from mtlcore import StepView
from mtlverify.example import Example
from mtlverify.references import updates
from mtlverify.runner import chosen

STEPS = 100
CASES = [
    ("gradvac", {}),
    ("gradvac", {"beta": 0.01, "reduction": "mean"}),
    ("gradnorm", {}),
    ("gradnorm", {"alpha": 0.0, "lr": 0.1}),
    ("moco", {}),
    ("moco", {"update": "softmax", "normalise": "none", "rho": 0.3, "gamma": 0.01}),
    ("modo", {"gamma": 0.01}),
    ("modo", {"gamma": 0.01, "samples": 3, "rho": 0.0}),
    ("sdmgrad", {}),
    ("sdmgrad", {"lambda_": 0.6, "lr": 5.0, "momentum": 0.0}),
    ("excess-mtl", {"eta": 1.0}),
    ("db-mtl", {}),
    ("db-mtl", {"beta": 0.5, "sigma": 0.5}),
    ("go4align", {"eta": 0.05}),
    ("go4align", {"groups": 3}),
    ("imtl", {}),
    ("wpcgrad", {}),
    ("wpcgrad", {"mode": "protect-one", "scheme": "fixed", "priorities": (1.0, 5.0, 2.0, 0.2)}),
    ("auto-lambda", {"lr": 0.01}),
    ("moml", {"lr": 0.01}),
    ("pcd", {"beta": 0.9}),
    ("pcd", {"primary": 2, "tau": 0.3, "beta": 0.5}),
    ("graddrop", {}),
    ("graddrop", {"leak": (0.0, 0.5, 1.0, 0.2), "reduction": "mean"}),
]
every = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: str(v))
K, P = 4, 9
SIZES = torch.tensor([[1.0], [0.3], [2.0], [0.7]], dtype=torch.float64)


def batches(number: int, count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Rows of ``count`` batches of one step, and its losses. Sizes differ, most pairs conflict at some time."""
    generator = torch.Generator().manual_seed(number)
    base = torch.randn(K, P, generator=generator, dtype=torch.float64) * SIZES
    rows = [base + 0.1 * torch.randn(K, P, generator=generator, dtype=torch.float64) for _ in range(count)]
    return rows, torch.rand(K, generator=generator, dtype=torch.float64) + 0.3


def view(method, rows, losses, number):
    def one(batch, others=()):
        return StepView(losses=losses, jacobian=batch, step=number, generator=number, others=others, needs=method.needs)

    return one(rows[0], tuple(one(batch) for batch in rows[1:]))


def draws(name: str, number: int) -> torch.Tensor:
    """What the method draws in this step, and in which shape, is part of its definition."""
    shape = {"wpcgrad": (K, K + 1), "graddrop": (P,)}.get(name, (K, K))
    return torch.rand(shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def direction(answer, rows):
    return rows[0].T @ answer.weights if answer.direction is None else answer.direction


@every
def test_a_run_of_100_steps_is_the_published_update(name, options):
    """With two settings of a method that is 200 random Jacobians, each met in another state."""
    first = 1000 * CASES.index((name, options))
    method = mtlcore.create("aggregator", name, **options)
    transcription = updates.TABLE[name](method, K)
    state = method.init(K)
    for number in range(first, first + STEPS):
        rows, losses = batches(number, method.batches)
        answer = method.aggregate(view(method, rows, losses, number), state)
        state = answer.state
        expected = transcription.step(rows, losses, draws(name, number))
        got = direction(answer, rows)
        assert float((got - expected).norm()) <= 1e-6 * float(expected.norm() + got.norm()), number


@every
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, options):
    method = mtlcore.create("aggregator", name, **options)

    def run(method, state, numbers):
        out = []
        for number in numbers:
            rows, losses = batches(number, method.batches)
            answer = method.aggregate(view(method, rows, losses, number), state)
            state = answer.state
            out.append(direction(answer, rows))
        return torch.stack(out), state

    _, middle = run(method, method.init(K), range(20))
    file = io.BytesIO()
    torch.save(middle, file)
    file.seek(0)
    resumed, _ = run(dataclasses.replace(method), torch.load(file, weights_only=True), range(20, 40))
    straight, _ = run(method, middle, range(20, 40))
    assert torch.equal(resumed, straight)


@every
def test_an_absent_task_keeps_its_memory_and_has_no_influence(name, options):
    """Task 2 is away in steps 3 to 5: the answer does not depend on what its rows would have been, and where a method
    remembers a task by itself, that part of the state stays."""
    if "priorities" in options or "leak" in options:
        options = {k: v for k, v in options.items() if k not in ("priorities", "leak", "scheme")}
    method = mtlcore.create("aggregator", name, **options)
    present = torch.tensor([True, True, False, True])
    state = method.init(K)
    for number in range(8):
        rows, losses = batches(number, method.batches)
        whole = view(method, rows, losses, number)
        away = 3 <= number < 6
        answer = method.aggregate(whole.restricted(present) if away else whole, state)
        if away:
            for key, value in answer.state.items():
                if value.ndim and value.shape[0] == K and name not in ("go4align", "excess-mtl"):
                    assert torch.equal(value[2], state[key][2]), key
            assert answer.weights is None or answer.weights.shape == (3,)
        state = answer.state
    assert all(v.isfinite().all() for v in state.values())


@pytest.mark.parametrize(
    "rows",
    [
        [[129.875, 62.5], [0.0, -1.0], [-1094656.0, -449535.0]],
        [[-3.452404156765462e149, 4.731072362974893e149], [1e144, -1e144]],
        [
            [2.0030526570735674e-08, 2.3692294348620635e-08, 7.536826274190389e-09, 2.751090732999728e-08],
            [0.0003817169927060604, 0.0007078154012560844, 0.00013899989426136017, -0.00028723524883389473],
            [-0.6096782684326172, -0.6968297958374023, -1.891240119934082, 1.2914152145385742],
            [-2.0052137728043817e-10, 1.4078160859298805e-10, 7.819922487328768e-10, 1.0823120177860801e-09],
            [5.45912826055428e-09, 2.5657470814621774e-08, 3.737375209311722e-08, -6.939268359928974e-08],
        ],
    ],
)
def test_moml_makes_no_steps_of_what_its_hypergradients_leave_of_each_other(rows):
    """Found by a hunt: the min-norm point was known to the root of rounding, and the order of the tasks decided it."""
    k = len(rows)
    example = Example(torch.tensor(rows, dtype=torch.float64), torch.ones(k, dtype=torch.float64))
    (law,) = chosen("aggregator", ["permutation-equivariant"])
    reversed_ = example.with_(extra={"permutation": list(reversed(range(k))), "away": []})
    assert law.measure(mtlcore.create("aggregator", "moml"), reversed_) > 0.9
