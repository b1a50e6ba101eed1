"""Small multi-task networks for teleports: one per kind of layer, in float64 if not asked otherwise, built from a seed.

An example is a recipe (architecture, width, tasks, seed), so it shrinks to the smallest network and fits into a file.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mtlverify.strategies import Strata, Stratum, foreign, trunks
from mtlverify.strategies import pick as st
from mtlverify.strategies.strata import Draw

Closure = Callable[[], tuple[dict[str, Tensor], tuple[Tensor, ...]]]


class Residual(nn.Module):
    """A linear stem and one block whose output is added to its input, times a gain that no state dict knows of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, width)
        self.gain = SimpleNamespace(value=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4) -> (N, width)."""
        x = torch.relu(self.stem(x))
        return torch.relu(x + self.gain.value * self.two(torch.relu(self.one(x))))


class Attention(nn.Module):
    """Self-attention over five tokens of four numbers, then a mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(4, 2 * width), nn.MultiheadAttention(2 * width, 2, batch_first=True)
        self.last = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5, 4) -> (N, width)."""
        hidden = self.embed(x)
        return self.last(torch.relu(hidden + self.attend(hidden, hidden, hidden)[0]).mean(1))


class Recurrent(nn.Module):
    """A GRU over five steps and a ReLU layer on its last output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell, self.inner, self.last = nn.GRU(4, width, batch_first=True), nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5, 4) -> (N, width)."""
        return self.last(torch.relu(self.inner(self.cell(x)[0][:, -1])))


def mlp(width: int) -> nn.Module:
    """Two ReLU layers."""
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def convolutional(width: int) -> nn.Module:
    """Convolution, batch norm, leaky ReLU, pooling, a linear layer."""
    body = (nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, width))


def smooth(width: int) -> nn.Module:
    """A GELU layer and a ReLU layer: scaling goes through the second and not through the first."""
    body = (nn.Linear(4, width), nn.GELU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    return nn.Sequential(*body)


ARCHITECTURES: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (4,)),
    "smooth": (smooth, (4,)),
    "residual": (Residual, (4,)),
    "convolutional": (convolutional, (1, 6, 6)),
    "attention": (Attention, (5, 4)),
    "recurrent": (Recurrent, (5, 4)),
    "grouped": (trunks.grouped, (1, 6, 6)),
    "transposed": (trunks.transposed, (1, 6, 6)),
    "saturating": (trunks.saturating, (4,)),
    "tied": (trunks.Tied, (4,)),
    "frozen": (trunks.frozen, (4,)),
    "zeros": (trunks.zeros, (4,)),
}
"""Name -> (width -> trunk, shape of one input)."""


def architectures() -> dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]]:
    """Those, and what other packages register."""
    return {**foreign.networks(), **ARCHITECTURES}


@dataclasses.dataclass(frozen=True)
class NetworkExample:
    """The recipe of a network and its data."""

    architecture: str
    width: int
    n_tasks: int
    seed: int

    @property
    def family(self) -> str:
        """The architecture."""
        return self.architecture

    def simpler(self) -> Iterator[NetworkExample]:
        """The same architecture with less, boldest first."""
        yield from (dataclasses.replace(self, width=w) for w in (2, 3) if w < self.width)
        yield from (dataclasses.replace(self, n_tasks=k) for k in (2, 3) if k < self.n_tasks)
        yield from (dataclasses.replace(self, seed=s) for s in (0, 1, 2) if s < self.seed)

    def size(self) -> tuple[int, int, int]:
        """What "smaller" means."""
        return self.width, self.n_tasks, self.seed

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> NetworkExample:
        """The inverse of :meth:`to_json`."""
        return NetworkExample(**data)

    def build(self, dtype: torch.dtype = torch.float64) -> Network:
        """The same network every time, up to the rounding of ``dtype``; the global generators are left as they were."""
        made = _trained(self, *architectures()[self.architecture]).copy()
        return made if dtype == torch.float64 else made.to(dtype)


@functools.lru_cache(maxsize=256)  # several laws ask about one network
def _trained(example: NetworkExample, make: Callable[[int], nn.Module], shape: tuple[int, ...]) -> Network:
    """The network after three steps, with an optimizer that has a history. It is not to be changed."""
    with torch.random.fork_rng(devices=[]):
        seeded(example.seed)
        trunk = make(example.width).double()
        heads = nn.ModuleDict({f"task{i}": nn.Linear(example.width, 1) for i in range(example.n_tasks)}).double()
    made = Network(trunk, heads, shape)
    for step in range(3):
        made.optimizer.zero_grad()
        torch.stack(list(made.batch(100 + step)()[0].values())).sum().backward()
        made.optimizer.step()
    made.optimizer.zero_grad()
    return made


def seeded(seed: int) -> None:
    """The processor's global generator, alone: ``torch.manual_seed`` also makes a note, with a traceback, for each
    accelerator that is not in use yet, which takes longer than a small network."""
    torch.default_generator.manual_seed(seed)


class Network:
    """A trunk, its heads, an optimizer over both, and as many batches as there are seeds."""

    def __init__(self, trunk: nn.Module, heads: nn.ModuleDict, shape: tuple[int, ...]) -> None:
        self.trunk, self.heads, self.shape, self.dtype = trunk, heads, shape, torch.float64
        self.optimizer = torch.optim.Adam(self._parameters(), lr=1e-2)

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        """A copy of the modules, for forward passes. Its optimizer has no history: to copy one takes longer."""
        trunk, heads = copy.deepcopy((self.trunk, self.heads), memo)
        made = Network(trunk, heads, self.shape)
        made.dtype = self.dtype
        return made

    def copy(self) -> Network:
        """A copy with the optimizer's history."""
        made = copy.deepcopy(self)
        for old, new in zip(self._parameters(), made._parameters(), strict=True):
            if old in self.optimizer.state:
                made.optimizer.state[new] = {name: value.clone() for name, value in self.optimizer.state[old].items()}
        return made

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.trunk.parameters(), *self.heads.parameters()]

    def to(self, dtype: torch.dtype) -> Network:
        """Parameters, buffers and the optimizer's moments in another dtype."""
        self.trunk, self.heads = self.trunk.to(dtype), self.heads.to(dtype)
        for state in self.optimizer.state.values():
            state.update({name: state[name].to(dtype) for name in ("exp_avg", "exp_avg_sq")})
        self.dtype = dtype
        return self

    def batch(self, seed: int, size: int = 24) -> Closure:
        """Task i regresses on sin(i + a fixed projection of the input), at its own loss scale. Losses are in the dtype
        of the network."""
        forward = self._forward(seed, size)

        def closure() -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            losses, features = forward()
            return {name: loss.to(self.dtype) for name, loss in losses.items()}, (features,)

        return closure

    def exact(self, seed: int, size: int = 24) -> Callable[[], dict[str, Tensor]]:
        """The same losses in float64, of what the network gives in its dtype."""
        forward = self._forward(seed, size)
        return lambda: forward()[0]

    def _forward(self, seed: int, size: int) -> Callable[[], tuple[dict[str, Tensor], Tensor]]:
        x = torch.randn(size, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        flat, shown = x.flatten(1), x.to(self.dtype)
        teacher = torch.linspace(-1.0, 1.0, flat.shape[1], dtype=torch.float64)

        def forward() -> tuple[dict[str, Tensor], Tensor]:
            features = self.trunk(shown)
            losses = {
                name: 10.0**i * (head(features).squeeze(-1).double() - torch.sin(i + flat @ teacher)).square().mean()
                for i, (name, head) in enumerate(self.heads.items())
            }
            return losses, features

        return forward


def networks() -> Strata:
    """One stratum per architecture."""

    def recipes(name: str) -> Stratum:
        def recipe(draw: Draw) -> NetworkExample:
            return NetworkExample(
                name, draw(st.sampled_from([2, 3, 6])), draw(st.integers(2, 4)), draw(st.integers(0, 50))
            )

        return Stratum(recipe, name, alike=True)

    return Strata(tuple(recipes(name) for name in architectures()), pool="networks")
