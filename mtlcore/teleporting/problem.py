"""One batch during a transaction, as strategy and verdict see it: losses, task gradients, how bad the conflict is."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mtlcore import linalg, trajectory
from mtlcore.contracts import ConflictDetector, Needs, StepView, TeleportProblem, task_rows
from mtlcore.geometry import moves
from mtlcore.presence import Presence
from mtlcore.teleporting.transaction import Transaction

T = TypeVar("T")
Evaluation = tuple[dict[str, Tensor], tuple[Tensor, ...]]
Closure = Callable[[], Evaluation]


class Together(Protocol):
    """Other processes that search with this one, each on a batch of its own."""

    @property
    def size(self) -> int:
        """How many they are."""

    def everywhere(self, work: Callable[[], tuple[Presence, list[float]]]) -> list[float]:
        """Mean losses of tasks that all processes have; fails on all if on one."""

    def settled(self, work: Callable[[], T]) -> T:
        """Something of this process's own; fails on all if on one."""

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Each becomes the mean over the processes, in place."""

    def averaged(self, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """The means of gradients; None where no process has one."""

    def alike(self, tensors: Mapping[str, Tensor], who: str) -> None:
        """Fails on all processes if these are not the same bits everywhere."""


class _Mean(torch.autograd.Function):
    """A loss of this process that shows the mean of all; its gradient is this process's share of the mean's."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, mean: float) -> Tensor:
        return torch.full_like(loss, mean)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return cotangents[0], None


class Problem(TeleportProblem):
    """One batch, evaluated deterministically at the network's current parameters.

    Args:
        transaction: around the search.
        closure: evaluates the batch.
        view: of the step.
        detector: whose severity counts.
        together: the other processes, whose batches count as well.
    """

    def __init__(
        self,
        transaction: Transaction,
        closure: Closure,
        view: StepView,
        detector: ConflictDetector | None,
        together: Together | None = None,
    ) -> None:
        self._transaction = transaction
        self._closure = closure
        self.trunk = transaction.trunk
        self.heads = transaction.heads
        self.view = view
        self.detector = detector
        self._mean: dict[str, Tensor] | None = None
        self._pace: tuple[list[Tensor] | None] | None = None
        self._together = together
        self.processes = 1 if together is None else together.size

    def averaged(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """See :class:`TeleportProblem`."""
        if self._together is None:
            return tuple(gradients)
        return self._together.averaged(list(self.parameters().values()), gradients)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See :class:`TeleportProblem`."""
        return {n: p for n, p in self._transaction.trunk_parameters.items() if p.requires_grad}

    def evaluate(self) -> Evaluation:
        """See :class:`TeleportProblem`."""
        if self._together is None:
            return self._here()
        mine: list[Evaluation] = []

        def work() -> tuple[Presence, list[float]]:
            mine.append(self._here())
            presence = Presence.of(self.view.presence.names, mine[0][0])
            return presence, [float(mine[0][0][n].detach()) for n in presence.present]

        means = self._together.everywhere(work)
        losses, features = mine[0]
        names = Presence.of(self.view.presence.names, losses).present
        return {n: _Mean.apply(losses[n], v) for n, v in zip(names, means)}, features  # type: ignore[no-untyped-call]

    def _here(self) -> Evaluation:
        self._transaction.same_noise()
        torch.clear_autocast_cache()  # in a caller's autocast block it holds the weights of the last place
        with warnings.catch_warnings():
            # A compiled trunk calls the hook that meets modules a second time: it has nothing left to do then.
            warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
            losses, features = self._closure()
        return losses, features

    def task_gradients(self) -> Iterator[tuple[str, list[Tensor | None]]]:
        """See :class:`TeleportProblem`."""
        losses, _ = self.evaluate()
        parameters = list(self.parameters().values())
        last = list(losses)[-1]
        for name, loss in losses.items():
            take = functools.partial(
                torch.autograd.grad, loss, parameters, retain_graph=name != last, allow_unused=True
            )  # fmt: skip
            found = take() if self._together is None else self._together.settled(take)
            yield name, list(self.averaged(found))

    def pace(self) -> list[Tensor] | None:
        """See :class:`TeleportProblem`."""
        if self._pace is None:
            self._pace = (moves.pace(self._transaction.optimizer, list(self.parameters().values())),)
        return self._pace[0]

    def rows(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See :class:`TeleportProblem`."""
        losses, blocks = self.rows_of(self.evaluate()[0])
        if self._mean is None and self._transaction.at_start():
            self._mean = self._averaged(blocks)
        return losses, blocks

    def mean_gradient(self) -> dict[str, Tensor]:
        """Of the losses at the start, where the network is, by parameter. Usually the search has looked at it."""
        if self._mean is None:
            self._mean = self._averaged(self.rows_of(self.evaluate()[0])[1])
        return self._mean

    def rows_of(self, losses: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Detached losses and their gradients, those of all processes; frees the graph."""
        take = functools.partial(task_rows, losses, list(self.parameters().values()))
        if self._together is None:
            return take()
        detached, blocks = self._together.settled(take)
        self._together.mean(blocks)
        return detached, blocks

    def _averaged(self, blocks: Sequence[Tensor]) -> dict[str, Tensor]:
        return {n: b.mean(dim=0).view_as(p) for (n, p), b in zip(self.parameters().items(), blocks)}

    def conflict(self, losses: Mapping[str, Tensor]) -> tuple[float, bool]:
        """How bad the conflict is, and whether it is one; ``losses`` as evaluated, with their graph, which is freed."""
        detached, blocks = self.rows_of(losses)
        gram = torch.stack([linalg.gramian(block) for block in blocks]).sum(dim=0)
        wide = self.detector is not None and self.detector.needs >= Needs.JACOBIAN
        return conflict(detached, gram, self.detector, self.view, torch.cat(blocks, dim=1) if wide else None)

    def losses(self) -> dict[str, Tensor]:
        """Without graphs. They are made, and dropped at once: a closure may differentiate inside (a PINN's does)."""
        return {n: v.detach() for n, v in self.evaluate()[0].items()}

    def losses_with_batch_statistics(self) -> dict[str, Tensor]:
        """Losses with the statistics that a training step would use, if they differ from those of the search."""
        if not self._transaction.has_batch_statistics():
            return {}
        with self._transaction.other_statistics():
            return self.losses()

    def losses_in_training(self) -> dict[str, Tensor]:
        """Losses in the modes in which the network was found, under the step's own noise; empty if all were frozen."""
        if not self._transaction.was_training():
            return {}
        with self._transaction.as_found():
            return self.losses()

    def optimizer_is_blank(self) -> bool:
        """Whether there is no history that a jump could make wrong."""
        optimizers = trajectory.each(self._transaction.optimizer)
        return not any(p in one.state for one in optimizers for p in self.parameters().values())


def conflict(
    losses: Mapping[str, Tensor],
    gram: Tensor,
    detector: ConflictDetector | None = None,
    view: StepView | None = None,
    rows: Tensor | None = None,
) -> tuple[float, bool]:
    """How bad the conflict is, and whether it is one: what the detector says, or minus the worst cosine of a task with
    the mean gradient, and its sign."""
    if detector is None:
        norms = gram.diagonal().clamp_min(0.0).sqrt()
        size = gram.mean().clamp_min(0.0).sqrt()
        # A mean gradient below this is what rounding leaves of gradients that cancel: it points nowhere.
        alive = (norms > 0.0) & (size > norms.max() * (gram.shape[0] * torch.finfo(gram.dtype).eps) ** 0.5)
        cos = (gram.mean(dim=0) / (norms * size)).clamp(-1.0, 1.0)
        worst = float(-cos[alive].min()) if bool(alive.any()) else 0.0
        return worst, worst > 0.0
    names = tuple(losses)
    positions = [view.task_names.index(n) for n in names] if view is not None else list(range(len(names)))
    found = detector.detect(
        StepView(
            losses=torch.stack([v.detach().double() for v in losses.values()]).to(gram.device),
            gramian=gram,
            jacobian=rows,
            task_names=names,
            task_index=positions,
            step=0 if view is None else view.step,
            needs=detector.needs,
        )
    )
    return found.severity, found.conflicting
