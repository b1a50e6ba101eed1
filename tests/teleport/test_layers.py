"""Exact teleports, layer by layer: every loss is kept on unseen inputs, or the layer is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from support.teleport_nets import TASKS, Falling, Problem, teleport


def convs(*middle: nn.Module, after: int = 6) -> nn.Module:
    first = nn.Conv2d(2, 8, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), *middle, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * after, 5))


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Tied(nn.Module):
    """One weight under two names; around it, layers of their own."""

    def __init__(self, *, tie: bool = True):
        super().__init__()
        self.inside, self.one, self.two = (nn.Linear(8, 8) for _ in range(3))
        self.last = nn.Linear(8, 5)
        if tie:
            self.two.weight = self.one.weight

    def forward(self, x):
        x = torch.relu(self.inside(x.mean(dim=(2, 3)).repeat(1, 4)))
        return self.last(torch.relu(self.two(torch.relu(self.one(x)))))


def frozen(net: nn.Module, *names: str) -> nn.Module:
    for name in names:
        net.get_parameter(name).requires_grad_(False)
    return net


def zeros(net: nn.Module, *names: str) -> nn.Module:
    for name in names:
        nn.init.zeros_(net.get_parameter(name))
    return net


LAYERS = {
    "grouped": lambda: convs(nn.Conv2d(8, 6, 3, groups=2), nn.ReLU()),
    "depthwise": lambda: convs(nn.Conv2d(8, 16, 3, groups=8), nn.ReLU(), after=16),
    "strided": lambda: convs(nn.Conv2d(8, 6, 3, stride=2, padding=2), nn.LeakyReLU(0.2)),
    "dilated": lambda: convs(nn.Conv2d(8, 6, 2, dilation=3, padding=3, padding_mode="circular"), nn.ReLU()),
    "transposed": lambda: convs(nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, dilation=2), nn.ReLU()),
    "zero units": lambda: zeros(convs(nn.Conv2d(8, 6, 3), nn.ReLU()), "0.bias", "2.weight"),
    "frozen beside": lambda: frozen(convs(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU()), "0.weight"),
    "tied": lambda: Tied(tie=False),
}
"""Those with units to rescale."""

ALONE = {
    "Tanh": lambda: pooled(nn.Conv2d(2, 8, 3), nn.Tanh(), nn.ConvTranspose2d(8, 5, 3)),
    "ReLU6": lambda: pooled(nn.Conv2d(2, 8, 3), nn.ReLU6(), nn.Conv2d(8, 5, 1)),
    "Hardtanh": lambda: pooled(nn.Conv2d(2, 8, 3), nn.Hardtanh(), nn.Conv2d(8, 5, 1)),
    "transposed with groups": lambda: pooled(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=2)
    ).append(nn.Linear(6, 5)),
    "tied": lambda: frozen(Tied(), "inside.weight"),
    "frozen": lambda: frozen(nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 5)), "3.weight"),
}
"""Those without."""


def made_of(layers, dtype=torch.float64) -> Problem:
    torch.manual_seed(3)
    trunk = layers().to(dtype)
    heads = nn.ModuleDict({t: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)) for t in TASKS}).to(dtype)
    made = Problem(trunk, heads, lambda g, n: torch.randn(n, 2, 8, 8, generator=g, dtype=torch.float64).to(dtype))
    made.train(made.optimizer(torch.optim.SGD, lr=1e-3), 1)
    return made


@pytest.mark.parametrize(
    ("name", "layers"),
    [*((n, k) for n in ("random", "relu-rescaling") for k in LAYERS), ("linear-boundary", "zero units")],
)
def test_every_loss_is_kept_and_something_moves(name, layers):
    made = made_of(LAYERS[layers])
    before, start = made.losses(50), [p.detach().clone() for p in made.trunk.parameters()]
    optimizer = made.optimizer(torch.optim.SGD, lr=0.0, momentum=0.9)
    made.train(optimizer, 2)
    result = teleport(made, name, optimizer=optimizer, detector=Falling())
    assert result.accepted, result.reason
    for task, value in made.losses(50).items():
        assert value == pytest.approx(before[task], rel=1e-9)
    moved = [not torch.equal(a, b) for a, b in zip(start, made.trunk.parameters())]
    assert any(moved)
    assert not any(m and not p.requires_grad for m, p in zip(moved, made.trunk.parameters()))
    fresh = made.optimizer(torch.optim.SGD, lr=0.0, momentum=0.9)
    made.train(fresh, 2)
    for p, state in fresh.state.items():
        expected = state["momentum_buffer"]
        found = optimizer.state[p]["momentum_buffer"]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["random", "relu-rescaling"])
@pytest.mark.parametrize("layers", ALONE)
def test_what_is_no_symmetry_is_left_alone(name, layers):
    made = made_of(ALONE[layers])
    start = {n: p.detach().clone() for n, p in made.trunk.named_parameters()}
    result = teleport(made, name, detector=Falling())
    moved = [n for n, p in made.trunk.named_parameters() if not torch.equal(start[n], p)]
    assert not result.accepted
    assert not moved


@pytest.mark.parametrize(("name", "layers"), [("random", "grouped"), ("linear-boundary", "grouped")])
def test_bfloat16_is_within_its_rounding_or_refused(name, layers):
    made = made_of(LAYERS[layers], torch.bfloat16)
    inner = made.batch

    def batch(seed, n=48):
        closure = inner(seed, n)
        return lambda: ({t: v.bfloat16() for t, v in closure()[0].items()}, None)

    made.batch = batch
    start, before = [p.detach().clone() for p in made.trunk.parameters()], made.losses(50)
    result = teleport(made, name, detector=Falling(), closure=batch(0), probe=batch(1))
    if not result.accepted:
        assert "loss of" in result.reason
        assert all(map(torch.equal, start, made.trunk.parameters()))
        return
    for task, value in made.losses(50).items():
        assert value == pytest.approx(before[task], rel=0.05)


def test_all_parameters_zero_is_a_reason_to_stay():
    made = made_of(LAYERS["strided"])
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    for name in ("relu-rescaling", "linear-boundary", "lora"):
        result = teleport(made, name)
        assert not result.accepted
        assert result.reason
        assert not any(p.any() for p in made.parameters())
