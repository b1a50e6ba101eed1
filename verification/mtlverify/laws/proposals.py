"""A teleport strategy's proposal on a network, and looks at the network before and after it: for laws about teleports.

Every proposal is asked for through the core's transaction, which then does not move.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore import Displacement, StepView, TeleportProblem, TeleportStrategy
from mtlcore.contracts import Map
from mtlcore.report import TeleportResult
from mtlcore.teleporting import Teleporter
from mtlverify import tolerance
from mtlverify.law import Margin, OutsideLaw
from mtlverify.laws.compare import agreement
from mtlverify.memory import remembered
from mtlverify.strategies.networks import Network, NetworkExample, seeded

FEW = 0.25
"""A proposal is an optimisation, so a quarter of the usual inputs are tried: about two of every architecture."""

MOVES = "the strategy proposes to move"
ACCEPTED = "the transaction accepts the proposal"

KEPT = 400
"""Answers that are remembered: as many as the laws have inputs at the usual depth, with those that do not count."""


@dataclasses.dataclass(frozen=True)
class Recorder(TeleportStrategy):
    """Asks the strategy, records its answer, and proposes no move; the transaction then has to undo everything."""

    inner: Any = None
    proposals: list[Displacement] = dataclasses.field(default_factory=list)

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        """An empty displacement."""
        self.proposals.append(self.inner.propose(problem, generator))
        return Displacement({})


def asked(plugin: Any, example: NetworkExample) -> Displacement:
    """The strategy's proposal, maybe from an earlier law: for laws that look at the proposal only."""
    question = ("proposal", example)
    found: Displacement = remembered(plugin, question, lambda: ask(plugin, example.build(), example.seed), KEPT)
    return found


def teleported(plugin: Any, example: NetworkExample) -> Network:
    """The network after a transaction that accepted a move, maybe from an earlier law. It is not to be changed.

    Raises:
        OutsideLaw: the transaction accepted none.
    """

    def moved() -> Network | None:
        made = example.build()
        return made if attempt(plugin, made, example.seed).accepted else None

    found: Network | None = remembered(plugin, ("transaction", example), moved, KEPT)
    if found is None:
        raise OutsideLaw(ACCEPTED)
    return found


def ask(plugin: Any, made: Network, seed: int) -> Displacement:
    """The strategy's proposal on batch 0. If transaction and strategy are sound, the network does not change."""
    recorder = Recorder(plugin)
    attempt(recorder, made, seed)
    return recorder.proposals[0]


def attempt(plugin: Any, made: Network, seed: int) -> TeleportResult:
    """A transaction that searches on batch 0 and checks on batch 1; an accepted move is not undone."""
    losses = quietly(made, 0)
    return Teleporter(plugin, name="asked").attempt(
        trunk=made.trunk,
        heads=made.heads,
        closure=made.batch(0),
        probe=made.batch(1),
        view=StepView(losses=torch.stack(list(losses.values())), task_names=tuple(losses)),
        optimizer=made.optimizer,
        generator=torch.Generator().manual_seed(seed),
    )


def moves(displacement: Displacement) -> bool:
    """Whether the proposal changes anything."""
    return bool(displacement.parameters) or bool(displacement.head_parameters)


def apply(displacement: Displacement, made: Network) -> None:
    """Write the new values into the network."""
    with torch.no_grad():
        for module, values in ((made.trunk, displacement.parameters), (made.heads, displacement.head_parameters)):
            known = dict(module.named_parameters())
            for name, value in values.items():
                known[name].copy_(value)


def mapped(found: Map, old: Tensor) -> Tensor:
    """The old value under the map."""
    if isinstance(found, Tensor):
        return found * old
    return torch.tensordot(found.matrix, old, dims=([1], [found.dim])).movedim(0, found.dim)


def tensors(displacement: Displacement) -> dict[str, Tensor]:
    """All new values, by the place they are for."""
    heads = {f"heads.{n}": v for n, v in displacement.head_parameters.items()}
    return {**{f"trunk.{n}": v for n, v in displacement.parameters.items()}, **heads}


def trainable(made: Network) -> list[tuple[str, str, nn.Parameter]]:
    """(room, name, parameter) of all trainable parameters."""
    rooms = (("trunk", made.trunk), ("heads", made.heads))
    return [(room, n, p) for room, module in rooms for n, p in module.named_parameters() if p.requires_grad]


def losses_at(made: Network, seeds: range) -> dict[str, float]:
    """Losses in evaluation mode on batches that no strategy has seen; deterministic."""
    return {f"{task} {seed}": float(v) for seed in seeds for task, v in quietly(made, seed).items()}


def losses_in_training(made: Network, seeds: range) -> dict[str, float]:
    """The same in training mode: with the statistics of the batch, and with the same dropout masks every time."""
    trained = copy.deepcopy(made)
    trained.trunk.train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        seeded(0)
        return {
            f"{task} {seed} in training": float(v) for seed in seeds for task, v in trained.batch(seed)()[0].items()
        }


def quietly(made: Network, seed: int) -> dict[str, Tensor]:
    """Losses in evaluation mode, so that batch statistics do not change."""
    mode = made.trunk.training
    made.trunk.eval()
    with torch.no_grad():
        losses, _ = made.batch(seed)()
    made.trunk.train(mode)
    return losses


def change_by(displacement: Displacement, made: Network, *, training: bool = False) -> Margin:
    """Apply the displacement; margin of the largest relative change of a task's loss, to half of the digits, on batches
    that no strategy has seen."""
    seeds = range(50, 53)
    looks = (losses_at, losses_in_training) if training else (losses_at,)
    before = [look(made, seeds) for look in looks]
    apply(displacement, made)
    after = [look(made, seeds) for look in looks]
    changes = {k: (abs(now[k] - old) / abs(old), old, now[k]) for b, now in zip(before, after) for k, old in b.items()}
    most = max(changes, key=lambda k: math.inf if math.isnan(changes[k][0]) else changes[k][0])
    change, old, new = changes[most]
    return agreement(change, tolerance.HALF_DIGITS, f"the loss of {_batch(most)} goes from {old:.6g} to {new:.6g}")


def _batch(key: str) -> str:
    """The key of a loss as text."""
    task, seed, *mode = key.split(" ", 2)
    return f"{task} on the unseen batch {seed} {' '.join(mode) or 'in evaluation'}"


def gradients(made: Network, seed: int) -> list[list[tuple[str, str, Tensor]]]:
    """For each task the gradient of every trainable parameter on one batch in evaluation mode, with room and name."""
    mode = made.trunk.training
    made.trunk.eval()
    losses, _ = made.batch(seed)()
    made.trunk.train(mode)
    own = trainable(made)
    rows = []
    for loss in losses.values():
        found = torch.autograd.grad(loss, [p for _, _, p in own], retain_graph=True, allow_unused=True)
        rows.append([(r, n, torch.zeros_like(p) if g is None else g) for (r, n, p), g in zip(own, found)])
    return rows


def worst_cosine(made: Network, seed: int) -> float:
    """Smallest cosine of a task's trunk gradient with their mean, on one batch, in evaluation mode."""
    rows = torch.stack([torch.cat([g.flatten() for r, _, g in row if r == "trunk"]) for row in gradients(made, seed)])
    units, mean = rows / rows.norm(dim=1, keepdim=True), rows.mean(dim=0)
    return float((units @ (mean / mean.norm())).min())
