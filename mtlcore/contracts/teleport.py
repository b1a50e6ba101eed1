"""Proposes a point with the same task losses and less conflict."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mtlcore.contracts.detector import ConflictDetector
from mtlcore.contracts.view import StepView
from mtlcore.hyperparameters import Validated


@final
@dataclasses.dataclass(frozen=True)
class MatrixMap:
    """The linear reparametrisation theta' = M theta along one dimension of a parameter.

    Args:
        matrix: (n, n), invertible; n is the parameter's size in that dimension.
        dim: the dimension. W' = M W is ``MatrixMap(M, 0)``; U' = U N is ``MatrixMap(N.T, 1)``.
    """

    matrix: Tensor
    dim: int


Map = Tensor | MatrixMap
"""D of a diagonal reparametrisation, broadcastable to the parameter, or a :class:`MatrixMap`."""


@final
@dataclasses.dataclass(frozen=True)
class Displacement:
    """Where a teleport wants to go: new values of some parameters, and how the optimizer's history follows.

    Args:
        parameters: name in the trunk -> new value, same shape. Parameters not named stay.
        maps: for an exact linear reparametrisation theta' = D theta, name in the trunk -> D, which broadcasts to
            the parameter; the optimizer's history is then transported exactly (m <- m / D, v <- v / D^2). A full matrix
            along one dimension is a :class:`MatrixMap`. A trunk parameter that moved and has no entry gets historical
            trajectory reuse instead.
        head_parameters: the same for the heads, by name in ``problem.heads`` (a boundary symmetry moves them too).
        head_maps: the same for the heads. Every head parameter that moves needs one: heads are only ever
            reparametrised, never displaced.
        diagnostics: anything worth logging.
    """

    parameters: Mapping[str, Tensor]
    maps: Mapping[str, Map] = dataclasses.field(default_factory=dict)
    head_parameters: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    head_maps: Mapping[str, Map] = dataclasses.field(default_factory=dict)
    diagnostics: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class TeleportProblem(abc.ABC):
    """What a teleport strategy may use. The network is at the point to leave; whatever a strategy does to it
    while searching (adapters, perturbations) is undone by the transaction around it.

    Dropout is off and batch norms use their running statistics while a strategy searches, and every evaluation
    starts from the same random state: the losses are a deterministic function of the parameters.
    """

    trunk: nn.Module
    """The shared network."""
    heads: nn.Module | None
    """The task-specific networks, if the user handed them over (boundary symmetries need them)."""
    view: StepView
    """Losses and Gramian at the trigger."""
    detector: ConflictDetector | None
    """The detector that fired, if any."""

    processes: int = 1
    """How many processes search together, each with a batch of its own. Losses that :meth:`evaluate` gives are means
    over them, equal everywhere; gradients that you take of them are those of this process, until :meth:`averaged` has
    seen them. :meth:`rows` and :meth:`task_gradients` give means. All processes must call the same methods in the same
    order, and propose the same."""

    def averaged(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """The means over the processes of gradients with respect to :meth:`parameters`, in that order; None where no
        process has one. With one process, what was given."""
        return tuple(gradients)

    @abc.abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the trunk by qualified name."""

    @abc.abstractmethod
    def evaluate(self) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Losses by task (with graph) and features of the trigger batch at the network's current parameters."""

    @abc.abstractmethod
    def task_gradients(self) -> Iterator[tuple[str, list[Tensor | None]]]:
        """For each present task its name and its gradient on the trigger batch at the network's current parameters,
        parameter by parameter, in the order of :meth:`parameters`. Costs one pass; nothing is written to ``.grad``."""

    def pace(self) -> list[Tensor] | None:
        """How far one step of the optimizer moves each coordinate for each unit of a gradient that stays the same,
        with the learning rate: (numel,) float64 for each of :meth:`parameters`, as its state is before the teleport;
        0 for a coordinate of which it knows nothing. None if its steps are not known, or it has none behind it."""
        return None

    def rows(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Detached losses by task, and per parameter (in the order of :meth:`parameters`) the (K, numel) matrix of task
        gradients at the network's current parameters; zeros where a task does not depend on it. Costs one pass."""
        return task_rows(self.evaluate()[0], list(self.parameters().values()))


def task_rows(losses: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Detached losses, and per parameter the (K, numel) matrix of their gradients; frees the graph."""
    last = len(losses) - 1
    blocks = [p.new_zeros(len(losses), p.numel()) for p in parameters]
    for i, loss in enumerate(losses.values()):
        found = torch.autograd.grad(loss, parameters, retain_graph=i < last, allow_unused=True)
        for block, gradient in zip(blocks, found):
            if gradient is not None:
                block[i] = (gradient.to_dense() if gradient.is_sparse else gradient).flatten()
    return {n: v.detach() for n, v in losses.items()}, blocks


@dataclasses.dataclass(frozen=True)
class TeleportStrategy(Validated, abc.ABC):
    """Proposes a point with the same task losses and less conflict."""

    exact: ClassVar[bool] = False
    """True: a symmetry of the network, every loss is kept on every input. False: kept only approximately, near
    the probe data."""
    improves: ClassVar[bool] = True
    """False for a baseline that does not look at the conflict: it is then accepted on the losses alone."""
    claims: ClassVar[frozenset[str]] = frozenset()
    """Ids of the laws this strategy promises."""

    @abc.abstractmethod
    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        """The displacement; empty ``parameters`` means "stay"."""
