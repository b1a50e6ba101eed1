"""Reinforcement learning from logged steps: four goals in one maze, one policy for each, a shared network."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.tasks.base import BenchmarkTask, Budget, Metric, Split, Splits

_SEED = 20_212
_MAZE = (
    ".....#.....",
    ".....#.....",
    "...........",
    ".....#.....",
    ".....#.....",
    "#.####.....",
    ".....###.##",
    ".....#.....",
    ".....#.....",
    "...........",
    ".....#.....",
)  # four rooms [paper*: Sutton, Precup, Singh 1999]
_GOALS = {"north-west": (0, 0), "north-east": (0, 10), "south-west": (10, 0), "south-east": (10, 10)}
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
_DISCOUNT = 0.95
_STEPS = 12_000


@dataclasses.dataclass(frozen=True)
class Gridworlds(BenchmarkTask):
    """Policies from what a random walker did in a maze of four rooms: for each goal a policy of its own head.

    Each logged step has a state, an action and, for each goal, how much better the discounted return after that action
    is than the mean of the state: the advantage of the random policy, exact, in units of the state's largest. The loss
    is the expected advantage that the policy gives away: up to a constant the policy gradient's
    objective, and never negative. [choice] Logged data, so that every method sees the same; the environment is not
    entered while training. The metric is the exact discounted return of the learned policy from start states of the
    part.
    """

    title = "Gridworlds: four goals in a maze of four rooms"
    about = (
        "Made up: offline reinforcement learning, one improvement of the random policy towards each of four corners. "
        "Where corners are opposite, the policies' gradients are, too."
    )
    sources = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The goals."""
        return tuple(_GOALS)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Discounted return: 1 at the goal."""
        return tuple(Metric(name, "return", higher_is_better=True) for name in self.tasks)

    @property
    def budget(self) -> Budget:
        """A few seconds of one core."""
        return Budget(steps=300, batch_size=256, learning_rate=5e-3, evaluations=10)

    def load(self) -> Splits:
        """Logged steps; validation and test are all states, with different start states."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, 22) row and column, each one-hot -> (N, 16)."""
        return nn.Sequential(nn.Linear(2 * len(_MAZE), 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())

    def head(self, task: str) -> nn.Module:
        """Scores of the four moves."""
        return nn.Linear(16, len(_MOVES))

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """The advantage given away; targets are (N, 2): the logged action, and its advantage for this goal."""
        action, advantage = target[:, :1].long(), target[:, 1]
        taken = torch.softmax(output, dim=1).gather(1, action)[:, 0]
        return torch.mean(torch.where(advantage > 0, (1 - taken) * advantage, -taken * advantage))

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(states, 5): the policy in each state, and whether it is a start state; targets are (N, 2) there."""
        rows = torch.cat([torch.softmax(output.double(), dim=1), target[:, 1:].double()], dim=1)
        found = torch.zeros(len(_cells()), rows.shape[1], dtype=torch.float64, device=rows.device)
        return found.index_add(0, target[:, 0].long(), rows)

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """The exact return from the start states, by the linear system of the policy."""
        values = _values(_GOALS[task], tally[:, :4].numpy())
        starts = tally[:, 4].numpy() > 0
        return {"return": float(values[starts].mean())}


@functools.cache
def _cells() -> tuple[tuple[int, int], ...]:
    return tuple((r, c) for r, row in enumerate(_MAZE) for c, mark in enumerate(row) if mark == ".")


@functools.cache
def _next_states() -> np.ndarray:
    """(states, 4) where each move leads; into a wall: nowhere."""
    index = {cell: i for i, cell in enumerate(_cells())}
    return np.array([[index.get((r + a, c + b), i) for a, b in _MOVES] for i, (r, c) in enumerate(_cells())])


def _values(goal: tuple[int, int], policy: np.ndarray) -> np.ndarray:
    """(states,) discounted return of a policy (states, 4): 1 when the goal is entered, and the episode ends there."""
    after, n = _next_states(), len(_cells())
    at = _cells().index(goal)
    moves = np.zeros((n, n))
    np.add.at(moves, (np.arange(n)[:, None], after), policy)
    moves[at] = 0.0
    reward = moves[:, at].copy()
    moves[:, at] = 0.0
    values = np.linalg.solve(np.eye(n) - _DISCOUNT * moves, reward)
    values[at] = 1.0
    return values


def _advantages(goal: tuple[int, int]) -> np.ndarray:
    """(states, 4) of the random policy, in units of the state's largest: far from the goal they are tiny."""
    values = _values(goal, np.full((len(_cells()), 4), 0.25))
    at = _cells().index(goal)
    after = _next_states()
    outcome = np.where(after == at, 1.0, _DISCOUNT * values[after])
    outcome[at] = 1.0
    found: np.ndarray = outcome - outcome.mean(axis=1, keepdims=True)
    size = np.abs(found).max(axis=1, keepdims=True)
    return found / np.where(size > 0, size, 1.0)


def _seen(states: np.ndarray) -> Tensor:
    cells = np.array(_cells())[states]
    return torch.from_numpy(np.concatenate([np.eye(len(_MAZE))[cells[:, i]] for i in (0, 1)], axis=1)).float()


@functools.cache
def _load() -> Splits:
    generator = np.random.default_rng(_SEED)
    n = len(_cells())
    states, actions = generator.integers(n, size=_STEPS), generator.integers(4, size=_STEPS)
    logged = {
        name: torch.from_numpy(np.stack([actions, _advantages(goal)[states, actions]], axis=1)).float()
        for name, goal in _GOALS.items()
    }
    parts = {"train": Split(_seen(states), logged, np.arange(_STEPS))}
    order = generator.permutation(n)
    for i, (part, starts) in enumerate({"validation": order[: n // 2], "test": order[n // 2 :]}.items()):
        where = torch.from_numpy(np.stack([np.arange(n), np.isin(np.arange(n), starts)], axis=1).astype(np.float32))
        parts[part] = Split(_seen(np.arange(n)), dict.fromkeys(_GOALS, where), _STEPS + 1000 * i + starts)
    return Splits(**parts)
