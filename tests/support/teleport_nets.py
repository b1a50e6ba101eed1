"""Small multi-task problems, one per kind of layer, in float64 and a little trained, so that every task pulls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mtlcore
from mtlcore import Conflict, ConflictDetector, StepView
from mtlcore.teleporting import Teleporter

TASKS = ("red", "green", "blue")


@dataclass
class Problem:
    trunk: nn.Module
    heads: nn.ModuleDict
    inputs: Callable[[torch.Generator, int], Tensor]

    def batch(self, seed: int, n: int = 48):
        """A closure on its own batch; the targets depend on the input only through a fixed random teacher."""
        x = self.inputs(torch.Generator().manual_seed(seed), n)
        device = next(self.trunk.parameters()).device
        flat = x.double().flatten(1)
        teacher = torch.randn(
            flat.shape[1], len(TASKS), generator=torch.Generator().manual_seed(99), dtype=torch.float64
        )
        y = torch.sin(flat @ teacher / flat.shape[1] ** 0.5).to(device)
        x = x.to(device)

        def closure():
            z = self.trunk(x)
            losses = {
                t: s * (self.heads[t](z).squeeze(-1) - y[:, i]).square().mean()
                for i, (t, s) in enumerate(zip(TASKS, (1.0, 30.0, 0.1)))
            }
            return losses, (z,)

        return closure

    def losses(self, seed: int) -> dict[str, float]:
        with torch.no_grad():
            return {t: float(v) for t, v in self.batch(seed)()[0].items()}

    def parameters(self) -> list[nn.Parameter]:
        return [*self.trunk.parameters(), *self.heads.parameters()]

    def optimizer(self, make=torch.optim.Adam, lr: float = 1e-2, **options):
        return make(self.parameters(), lr=lr, **options)

    def train(self, optimizer, steps: int, first_seed: int = 1000) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            sum(self.batch(first_seed + step)()[0].values()).backward()
            optimizer.step()
        optimizer.zero_grad()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.one, self.norm, self.two = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3, padding=1)
        self.wide, self.deep, self.narrow = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(32, 7)
        self.last = nn.Linear(7, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))
        x = nn.functional.leaky_relu(self.deep(torch.relu(self.wide(x))), 0.1)
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.last(torch.relu(self.narrow(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        h = self.embed(x)
        h = h + self.attend(h, h, h)[0]
        return self.last(self.layer(h).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(3, 6, batch_first=True, num_layers=2, dropout=0.3)

    def forward(self, x):
        return self.cell(x)[0][:, -1]


class Plain(nn.Module):
    """A graph-like layer written with plain parameters."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 4) / 2)
        self.weight = nn.Parameter(torch.randn(2, 3, 5) / 2)

    def forward(self, x):
        h = torch.einsum("nm,bmf->bnf", self.mix, x)
        return torch.tanh(torch.einsum("bnf,hfg->bhng", h, self.weight)).flatten(2).sum(1)[:, :5]


def _images(*shape: int):
    return lambda g, n: torch.randn(n, *shape, generator=g, dtype=torch.float64)


def _tokens(g, n):
    return torch.randint(0, 9, (n, 6), generator=g)


_ZOO: dict[str, tuple[Callable[[], nn.Module], Callable]] = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(6, 10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 8), nn.PReLU(), nn.Linear(8, 5)
        ),
        _images(6),
    ),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 5, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(20, 6),
            nn.LayerNorm(6),
            nn.ReLU(),
            nn.Linear(6, 5),
        ),
        _images(2, 8, 8),
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(18, 5)),
        _images(2, 8),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5)),
        _images(1, 4, 4, 4),
    ),
    "residual": (Residual, _images(2, 6, 6)),
    "attention": (Attention, _tokens),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 5)),
        _tokens,
    ),
    "gru": (lambda: Recurrent(nn.GRU), _images(4, 3)),
    "lstm": (lambda: Recurrent(nn.LSTM), _images(4, 3)),
    "plain": (Plain, _images(4, 3)),
}
KINDS = tuple(_ZOO)
_trained: dict[str, Problem] = {}


def problem(kind: str) -> Problem:
    """A fresh copy of the trained problem of this kind."""
    if kind not in _trained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            previous = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                make, inputs = _ZOO[kind]
                trunk = make()
                width = trunk(inputs(torch.Generator().manual_seed(0), 2)).shape[-1]
                heads = nn.ModuleDict(
                    {t: nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 1)) for t in TASKS}
                )
            finally:
                torch.set_default_dtype(previous)
            made = Problem(trunk, heads, inputs)
            made.train(made.optimizer(), 25)
            _trained[kind] = made
    kept = _trained[kind]
    both = copy.deepcopy(nn.ModuleList([kept.trunk, kept.heads]))
    return Problem(both[0], both[1], kept.inputs)


def view(step: int = 0) -> StepView:
    return StepView(losses=torch.ones(len(TASKS)), task_names=TASKS, step=step)


def teleport(
    made: Problem, name: str, options: dict | None = None, *, optimizer=None, closure=None, probe=None, seed=0, **rules
):
    """Attempt one teleport on batch 0; the probe is batch 1 unless given."""
    strategy = mtlcore.create("teleport", name, **(options or {})) if isinstance(name, str) else name
    rules.setdefault("detector", mtlcore.create("detector", "dominated", rule="any"))
    return Teleporter(strategy, name=str(name), **rules).attempt(
        trunk=made.trunk,
        heads=made.heads,
        closure=closure or made.batch(0),
        probe=probe or made.batch(1),
        view=view(),
        optimizer=optimizer,
        generator=torch.Generator().manual_seed(seed),
    )


class Falling(ConflictDetector):
    """Finds less conflict every time it is asked: every teleport that keeps the losses is accepted."""

    asked = 0

    def detect(self, view):
        type(self).asked += 1
        k = view.n_tasks
        return Conflict(True, -float(self.asked), torch.zeros(k, k).bool(), torch.zeros(k).bool())


class Rising(ConflictDetector):
    """Finds more conflict every time it is asked."""

    asked = 0

    def detect(self, view):
        type(self).asked += 1
        return Conflict(True, float(self.asked), torch.zeros(3, 3).bool(), torch.zeros(3).bool())
