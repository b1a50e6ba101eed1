"""The networks that the speed suite times: a trunk, K heads, one fixed batch, sizes of an ordinary CPU step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Functional = nn.functional


@dataclasses.dataclass(frozen=True)
class Workload:
    """One training step's forward pass.

    Args:
        name: as it appears in tables.
        trunk: the shared network.
        heads: one module per task.
        inputs: what the trunk is called with.
        losses: one function per task from its head's output to a scalar.
        pick: from the trunk's output to the tensor that the heads receive.
    """

    name: str
    trunk: nn.Module
    heads: nn.ModuleList
    inputs: tuple[Tensor, ...]
    losses: tuple[Callable[[Tensor], Tensor], ...]
    pick: Callable[[Any], Tensor] = lambda z: z

    @property
    def n_tasks(self) -> int:
        """K."""
        return len(self.heads)

    @property
    def n_parameters(self) -> int:
        """P."""
        return sum(p.numel() for p in self.trunk.parameters())

    def forward(self) -> tuple[list[Tensor], Tensor]:
        """The K losses and the features."""
        z = self.pick(self.trunk(*self.inputs))
        return [loss(head(z)) for head, loss in zip(self.heads, self.losses)], z

    def trunk_forward(self) -> Tensor:
        """The features alone: a unit of time that does not depend on K."""
        return self.pick(self.trunk(*self.inputs))

    def zero_grad(self) -> None:
        """Gradients to None."""
        self.trunk.zero_grad(set_to_none=True)
        self.heads.zero_grad(set_to_none=True)

    def gradients(self) -> Tensor:
        """Every .grad of trunk and heads in one vector."""
        parameters = [*self.trunk.parameters(), *self.heads.parameters()]
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def _regression(
    name: str, trunk: nn.Module, inputs: tuple[Tensor, ...], width: int, k: int, **options: Any
) -> Workload:
    """K linear regressions on the features; the targets differ so much that tasks conflict."""
    pick = options.get("pick", lambda z: z)
    with torch.no_grad():
        shape = pick(trunk(*inputs)).shape[:-1]
    heads = nn.ModuleList(nn.Linear(width, 4) for _ in range(k))
    targets = [torch.randn(*shape, 4) for _ in range(k)]
    return Workload(name, trunk, heads, inputs, tuple(_Mse(t) for t in targets), pick)


@dataclasses.dataclass(frozen=True)
class _Mse:
    target: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        return Functional.mse_loss(output, self.target)


def mlp(k: int, width: int = 512, batch: int = 64, name: str | None = None) -> Workload:
    """Three linear layers, width/2 -> width -> width -> width/2."""
    half = width // 2
    trunk = nn.Sequential(nn.Linear(half, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, half))
    return _regression(name or f"MLP K={k}", trunk, (torch.randn(batch, half),), half, k)


def cnn(k: int, batch_norm: bool) -> Workload:
    """Three convolutions and a linear layer on 32 x 32 images."""
    norm = nn.BatchNorm2d if batch_norm else nn.Identity
    trunk = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), norm(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), norm(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), norm(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 16, 256), nn.ReLU(),
    )  # fmt: skip
    return _regression(f"CNN{'+BN' if batch_norm else ''} K={k}", trunk, (torch.randn(32, 3, 32, 32),), 256, k)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def dense_prediction(
    width: int = 32, blocks: int = 3, batch: int = 8, side: int = 32, name: str = "ResNet dense K=3"
) -> Workload:
    """A ResNet that keeps its resolution; three heads predict 4, 1 and 3 channels per pixel."""
    trunk = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *(_Residual(width) for _ in range(blocks)))
    x = torch.randn(batch, 3, side, side)
    heads = nn.ModuleList(nn.Conv2d(width, c, 1) for c in (4, 1, 3))
    targets = [torch.randn(batch, c, side, side) for c in (4, 1, 3)]
    return Workload(name, trunk, heads, (x,), tuple(_Mse(t) for t in targets))


def transformer(
    width: int = 128, layers: int = 2, batch: int = 16, tokens: int = 32, name: str = "transformer K=8"
) -> Workload:
    """Encoder layers with heads of 32 numbers, mean over the tokens."""
    layer = nn.TransformerEncoderLayer(width, width // 32, 2 * width, dropout=0.0, batch_first=True)
    trunk = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return _regression(name, trunk, (torch.randn(batch, tokens, width),), width, 8, pick=_token_mean)


def _token_mean(z: Tensor) -> Tensor:
    return z.mean(1)


def gru() -> Workload:
    """One recurrent layer, last hidden state."""
    return _regression("GRU K=5", nn.GRU(64, 128, batch_first=True), (torch.randn(32, 24, 64),), 128, 5, pick=_last)


def _last(z: tuple[Tensor, Tensor]) -> Tensor:
    return z[0][:, -1]


class _MessagePassing(nn.Module):
    """h_v <- relu(A h_v + sum over edges u -> v of B [h_u, h_v]), three times; mean over the nodes of a graph."""

    edges: Tensor
    graph: Tensor

    def __init__(self, edges: Tensor, graph: Tensor, width: int, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.message = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(layers))
        self.register_buffer("edges", edges)
        self.register_buffer("graph", graph)
        self.graphs = int(graph.max()) + 1

    def forward(self, atoms: Tensor) -> Tensor:
        h = self.embed(atoms)
        source, target = self.edges.unbind()
        for own, message in zip(self.own, self.message):
            sent = torch.relu(message(torch.cat([h[source], h[target]], 1)))
            h = torch.relu(own(h) + torch.zeros_like(h).index_add(0, target, sent) / 4)
        pooled: Tensor = h.new_zeros(self.graphs, h.shape[1]).index_add(0, self.graph, h) / 16
        return pooled


def gnn() -> Workload:
    """32 molecules of 16 atoms, 4 edges per atom."""
    nodes, width = 512, 64
    graph = torch.arange(nodes) // 16
    source = torch.arange(nodes).repeat_interleave(4)
    target = graph[source] * 16 + torch.randint(0, 16, source.shape)
    trunk = _MessagePassing(torch.stack([source, target]), graph, width)
    return _regression("GNN K=11", trunk, (torch.randint(0, 16, (nodes,)),), width, 11)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mlp3": lambda: mlp(3),
    "mlp40": lambda: mlp(40),
    "cnn-bn3": lambda: cnn(3, batch_norm=True),
    "cnn11": lambda: cnn(11, batch_norm=False),
    "resnet3": dense_prediction,
    "transformer8": transformer,
    "gru5": gru,
    "gnn11": gnn,
}
"""The eight workloads of the suite."""

LARGE: dict[str, Callable[[], Workload]] = {
    "large-mlp10": lambda: mlp(10, width=4096, batch=512, name="large MLP K=10"),
    "large-resnet3": lambda: dense_prediction(128, 8, 32, 64, "large ResNet K=3"),
    "large-transformer8": lambda: transformer(768, 8, 32, 128, "large transformer K=8"),
}
"""Three of an accelerator's size; minutes a step on two cores. Left out unless asked for."""


def build(make: Callable[[], Workload], device: torch.device | str = "cpu", seed: int = 0) -> Workload:
    """A workload, identically initialised each time; the global random state is left alone."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return make()
