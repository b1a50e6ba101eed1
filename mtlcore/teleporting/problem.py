"""One batch during a transaction, as strategy and verdict see it: losses, task gradients, how bad the conflict is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mtlcore import linalg, trajectory
from mtlcore.contracts import ConflictDetector, Needs, StepView, TeleportProblem, task_rows
from mtlcore.teleporting.transaction import Transaction

Evaluation = tuple[dict[str, Tensor], tuple[Tensor, ...]]
Closure = Callable[[], Evaluation]


class Problem(TeleportProblem):
    """One batch, evaluated deterministically at the network's current parameters."""

    def __init__(
        self, transaction: Transaction, closure: Closure, view: StepView, detector: ConflictDetector | None
    ) -> None:
        self._transaction = transaction
        self._closure = closure
        self.trunk = transaction.trunk
        self.heads = transaction.heads
        self.view = view
        self.detector = detector
        self._mean: dict[str, Tensor] | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """See :class:`TeleportProblem`."""
        return {n: p for n, p in self._transaction.trunk_parameters.items() if p.requires_grad}

    def evaluate(self) -> Evaluation:
        """See :class:`TeleportProblem`."""
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
            yield name, list(torch.autograd.grad(loss, parameters, retain_graph=name != last, allow_unused=True))

    def rows(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See :class:`TeleportProblem`."""
        losses, blocks = super().rows()
        if self._mean is None and self._transaction.at_start():
            self._mean = self._averaged(blocks)
        return losses, blocks

    def mean_gradient(self) -> dict[str, Tensor]:
        """Of the losses at the start, where the network is, by parameter. Usually the search has looked at it."""
        if self._mean is None:
            self._mean = self._averaged(super().rows()[1])
        return self._mean

    def _averaged(self, blocks: Sequence[Tensor]) -> dict[str, Tensor]:
        return {n: b.mean(dim=0).view_as(p) for (n, p), b in zip(self.parameters().items(), blocks)}

    def severity(self, losses: Mapping[str, Tensor]) -> float:
        """How bad the conflict is; ``losses`` as evaluated, with their graph, which is freed."""
        detached, blocks = task_rows(losses, list(self.parameters().values()))
        gram = torch.stack([linalg.gramian(block) for block in blocks]).sum(dim=0)
        wide = self.detector is not None and self.detector.needs >= Needs.JACOBIAN
        return severity(detached, gram, self.detector, self.view, torch.cat(blocks, dim=1) if wide else None)

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


def severity(
    losses: Mapping[str, Tensor],
    gram: Tensor,
    detector: ConflictDetector | None = None,
    view: StepView | None = None,
    rows: Tensor | None = None,
) -> float:
    """How bad the conflict is: the detector's severity, or minus the worst cosine of a task with the mean gradient."""
    if detector is None:
        norms = gram.diagonal().clamp_min(0.0).sqrt()
        size = gram.mean().clamp_min(0.0).sqrt()
        # A mean gradient below this is what rounding leaves of gradients that cancel: it points nowhere.
        alive = (norms > 0.0) & (size > norms.max() * (gram.shape[0] * torch.finfo(gram.dtype).eps) ** 0.5)
        cos = (gram.mean(dim=0) / (norms * size)).clamp(-1.0, 1.0)
        return float(-cos[alive].min()) if bool(alive.any()) else 0.0
    names = tuple(losses)
    positions = [view.task_names.index(n) for n in names] if view is not None else list(range(len(names)))
    return detector.detect(
        StepView(
            losses=torch.stack([v.detach().double() for v in losses.values()]).to(gram.device),
            gramian=gram,
            jacobian=rows,
            task_names=names,
            task_index=positions,
            step=0 if view is None else view.step,
            needs=detector.needs,
        )
    ).severity
