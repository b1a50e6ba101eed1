"""Small networks of every kind a trunk may be, each with K tasks and one fixed batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn


@dataclasses.dataclass
class Workload:
    """A trunk, its heads, and a function that evaluates one fixed batch."""

    trunk: nn.Module
    heads: nn.Module
    evaluate: Callable[[], tuple[dict[str, Tensor], object]]

    def parameters(self) -> list[nn.Parameter]:
        return list({id(p): p for p in [*self.trunk.parameters(), *self.heads.parameters()]}.values())


def _standard(trunk: nn.Module, x: object, width: int, k: int = 3, pick: Callable = lambda z: z) -> Workload:
    """Linear heads with different losses on one feature tensor; targets drawn once."""
    g = torch.Generator().manual_seed(7)
    heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(k))
    inputs = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        training = trunk.training
        trunk.eval()
        n = pick(trunk(*inputs)).shape[0]
        trunk.train(training)
    targets = [torch.randn(n, 2, generator=g) * 10.0 ** (i % 3 - 1) for i in range(k)]

    def evaluate() -> tuple[dict[str, Tensor], Tensor]:
        z = pick(trunk(*inputs))
        return {f"t{i}": nn.functional.mse_loss(h(z), y) for i, (h, y) in enumerate(zip(heads, targets))}, z

    return Workload(trunk, heads, evaluate)


class _ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.relu(x + self.body(x)).mean((2, 3))


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(3, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.a(x) * self.b(y))


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def mlp() -> Workload:
    return _standard(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh()), _x(10, 6), 8)


def cnn_batchnorm() -> Workload:
    trunk = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 8)
    )
    return _standard(trunk, _x(6, 3, 8, 8), 8)


def residual() -> Workload:
    return _standard(_ResidualBlock(), _x(4, 3, 6, 6), 4)


def gru() -> Workload:
    return _standard(nn.GRU(5, 7, batch_first=True), _x(4, 6, 5), 7, pick=lambda z: z[0][:, -1])


def lstm() -> Workload:
    return _standard(nn.LSTM(5, 7, num_layers=2, batch_first=True), _x(4, 6, 5), 7, pick=lambda z: z[0][:, -1])


def transformer() -> Workload:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return _standard(trunk, _x(3, 5, 8), 8, pick=lambda z: z.mean(1))


def multi_input() -> Workload:
    return _standard(_TwoInputs(), (_x(9, 5), _x(9, 3)), 8)


def tied_weights() -> Workload:
    """A language-model shape: the first head is the trunk's own embedding, transposed."""
    embedding = nn.Embedding(11, 8)
    trunk = nn.Sequential(embedding, nn.Linear(8, 8), nn.Tanh())
    heads = nn.ModuleList([nn.Linear(8, 3)])
    tokens = torch.randint(0, 11, (5, 4), generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(2))

    def evaluate() -> tuple[dict[str, Tensor], Tensor]:
        z = trunk(tokens)
        words = nn.functional.cross_entropy((z @ embedding.weight.T).flatten(0, 1), tokens.flatten())
        return {"words": words, "tags": nn.functional.cross_entropy(heads[0](z).flatten(0, 1), labels)}, z

    return Workload(trunk, heads, evaluate)


def several_features() -> Workload:
    """A U-Net shape: one feature tensor is computed from the other, heads use both; some parameters idle."""
    first, second = nn.Linear(6, 8), nn.Linear(8, 5)
    trunk = nn.ModuleDict({"first": first, "second": second, "idle": nn.Linear(2, 2), "frozen": nn.Linear(5, 5)})
    for p in trunk["frozen"].parameters():
        p.requires_grad_(False)
    heads = nn.ModuleList([nn.Linear(13, 1), nn.Linear(5, 1)])
    x = _x(7, 6)

    def evaluate() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        a = torch.tanh(first(x))
        b = trunk["frozen"](torch.tanh(second(a)))
        losses = {"both": heads[0](torch.cat([a, b], 1)).square().mean(), "deep": heads[1](b).exp().mean()}
        return losses, {"a": a, "b": b}

    return Workload(trunk, heads, evaluate)


def one_task() -> Workload:
    return _standard(nn.Linear(4, 5), _x(6, 4), 5, k=1)


def forty_tasks() -> Workload:
    return _standard(nn.Sequential(nn.Linear(6, 10), nn.ReLU()), _x(12, 6), 10, k=40)


ARCHITECTURES: dict[str, Callable[[], Workload]] = {
    f.__name__: f
    for f in (
        mlp, cnn_batchnorm, residual, gru, lstm, transformer, multi_input, tied_weights, several_features, one_task,
        forty_tasks,
    )
}  # fmt: skip


def build(name: str, dtype: torch.dtype = torch.float32) -> Workload:
    """The workload, identically initialised each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        old = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return ARCHITECTURES[name]()
        finally:
            torch.set_default_dtype(old)


def gradients(parameters: list[nn.Parameter]) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in parameters]
