"""Ways of doing one multi-task training step, all the same job: gradients in .grad of trunk and heads.

A contender is a class with ``step()``; it is built once, so that it may keep buffers, as a training loop would.
Each is checked against the explicit Jacobian before it is timed.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

import mtlcore
from mtlbench.speed.workloads import Workload
from mtlcore import Aggregation, Aggregator, MultiTask, Needs, StepView
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.task_gradients import Answer
from mtlcore.presence import Presence


@dataclasses.dataclass(frozen=True)
class FixedWeights(Aggregator):
    """Given weights from a method that asks for the Gramian: for checking that everybody does the same job."""

    values: tuple[float, ...] = ()

    def aggregate(self, view: StepView, state: dict[str, Tensor]) -> Aggregation:
        """The given weights."""
        return Aggregation(weights=torch.tensor(self.values, dtype=torch.float64), state=state)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A method, for every contender: UPGrad, or fixed weights 1, 2, ... (scaled) when only equality is at stake."""

    name: str

    def aggregator(self, k: int) -> Aggregator:
        """For mtlcore."""
        if self.name == "fixed":
            return FixedWeights(tuple((i + 1) / k for i in range(k)))
        method: Aggregator = mtlcore.create("aggregator", self.name)
        return method

    def weights(self, gramian: Tensor) -> Tensor:
        """For hand-written loops: the same solver as mtlcore's."""
        k = gramian.shape[0]
        view = StepView(losses=torch.ones(k), gramian=gramian.to(torch.float64))
        method = self.aggregator(k)
        answer = method.aggregate(view, method.init(k)).weights
        assert answer is not None
        return answer

    def torchjd(self, work: Workload) -> Any:
        """For TorchJD: its own method of that name."""
        from torchjd import aggregation

        if self.name == "fixed":
            k, device = work.n_tasks, work.inputs[0].device
            return aggregation.Constant(torch.tensor([(i + 1) / k for i in range(k)], device=device))
        return getattr(aggregation, {"upgrad": "UPGrad", "mgda": "MGDA"}[self.name])()


class Contender(abc.ABC):
    """One way of doing a step."""

    label: ClassVar[str]
    complete: ClassVar[bool] = True
    """Whether .grad is the method's gradient (a floor does less)."""

    def __init__(self, work: Workload, rule: Rule) -> None:
        self.work = work
        self.rule = rule
        self.shared = list(work.trunk.parameters())

    def step(self) -> None:
        """Zero the gradients, forward, backward."""
        self.work.zero_grad()
        losses, z = self.work.forward()
        self.backward(losses, z)

    @abc.abstractmethod
    def backward(self, losses: list[Tensor], z: Tensor) -> None:
        """From losses to .grad."""

    def ready(self) -> bool:
        """Whether warming up is over."""
        return True


class PlainSum(Contender):
    """No multi-task method at all."""

    label = "plain sum"
    complete = False

    def backward(self, losses: list[Tensor], z: Tensor) -> None:
        """sum(losses).backward()."""
        torch.stack(losses).sum().backward()


def _heads(work: Workload, losses: list[Tensor], z: Tensor) -> list[Tensor]:
    """Heads' own gradients into .grad; the cotangents of the features."""
    out = []
    for head, loss in zip(work.heads, losses):
        own = list(head.parameters())
        cotangent, *found = torch.autograd.grad(loss, [z, *own])
        for p, g in zip(own, found):
            p.grad = g
        out.append(cotangent)
    return out


class Floor(Contender):
    """Forward, heads, K trunk VJPs whose rows are dropped: the price of K gradients."""

    label = "floor"
    complete = False

    def backward(self, losses: list[Tensor], z: Tensor) -> None:
        """Nothing is kept."""
        cotangents = _heads(self.work, losses, z)
        for i, c in enumerate(cotangents):
            torch.autograd.grad(z, self.shared, c, retain_graph=i < len(cotangents) - 1)


class HandWritten(Contender):
    """What a careful user writes: cotangents at the features, rows kept, Gramian, J^T w."""

    label = "hand-written"

    def backward(self, losses: list[Tensor], z: Tensor) -> None:
        """Rows as one vector per task."""
        cotangents = _heads(self.work, losses, z)
        rows = []
        for i, c in enumerate(cotangents):
            found = torch.autograd.grad(z, self.shared, c, retain_graph=i < len(cotangents) - 1)
            rows.append(torch.cat([g.flatten() for g in found]))
        jacobian = torch.stack(rows)
        direction = self.rule.weights(jacobian @ jacobian.T).to(jacobian) @ jacobian
        for p, d in zip(self.shared, direction.split([p.numel() for p in self.shared])):
            p.grad = d.view_as(p)


class LibMtlForm(Contender):
    """The shape of LibMTL's backward: a zeroed (K, P) tensor, one grad per loss through the whole graph, copied in
    parameter by parameter; then a weighted sum of the losses backward again."""

    label = "LibMTL's form"

    def backward(self, losses: list[Tensor], z: Tensor) -> None:
        """Heads get their own gradients with weight 1, as everywhere in this comparison."""
        sizes = [p.numel() for p in self.shared]
        jacobian = z.new_zeros(len(losses), sum(sizes))
        for i, loss in enumerate(losses):
            found = torch.autograd.grad(loss, self.shared, retain_graph=True)
            jacobian[i] = torch.cat([g.flatten() for g in found])
        weights = self.rule.weights(jacobian @ jacobian.T).to(jacobian)
        torch.autograd.backward(
            losses, list(torch.ones_like(weights)), inputs=list(self.work.heads.parameters()), retain_graph=True
        )
        torch.autograd.backward(losses, list(weights), inputs=self.shared)


class TorchJd(Contender):
    """The documented path: mtl_backward, then jac_to_grad. vmap over all tasks at once."""

    label = "TorchJD documented"
    chunk: ClassVar[int | None] = None

    def __init__(self, work: Workload, rule: Rule) -> None:
        super().__init__(work, rule)
        self.aggregator = rule.torchjd(work)

    def backward(self, losses: list[Tensor], z: Tensor) -> None:
        """As in TorchJD's multi-task example."""
        from torchjd.autojac import jac_to_grad, mtl_backward

        mtl_backward(losses, features=z, parallel_chunk_size=self.chunk)
        jac_to_grad(self.shared, self.aggregator)


class TorchJdSequential(TorchJd):
    """The same without vmap."""

    label = "TorchJD sequential"
    chunk = 1


class TorchJdAutogram(Contender):
    """TorchJD's Gramian engine, batch_dim=None (with a batch dimension it differentiates one loss per sample)."""

    label = "TorchJD autogram"

    def __init__(self, work: Workload, rule: Rule) -> None:
        super().__init__(work, rule)
        from torchjd.autogram import Engine

        aggregator = rule.torchjd(work)
        self.weighting = aggregator.weighting if rule.name == "fixed" else aggregator.gramian_weighting
        self.engine = Engine(work.trunk, batch_dim=None)

    def backward(self, losses: list[Tensor], z: Tensor) -> None:
        """Gramian, weights, then one weighted pass through the trunk."""
        stacked = torch.stack(losses)
        weights = self.weighting(self.engine.compute_gramian(stacked)).to(stacked)
        torch.autograd.backward(
            stacked, torch.ones_like(stacked), inputs=list(self.work.heads.parameters()), retain_graph=True
        )
        torch.autograd.backward(stacked, weights, inputs=self.shared)


class MtlCore(Contender):
    """mtlcore with gradients="auto"."""

    label = "mtlcore auto"
    source: ClassVar[str] = "auto"

    def __init__(self, work: Workload, rule: Rule) -> None:
        super().__init__(work, rule)
        self.mt = MultiTask(work.trunk, aggregator=rule.aggregator(work.n_tasks), gradients=self.source)
        self.reason = ""

    def backward(self, losses: list[Tensor], z: Tensor) -> None:
        """One call."""
        self.reason = self.mt.backward(losses, features=z).gradient_source

    def ready(self) -> bool:
        """Not in the step that compares."""
        return "compared" not in self.reason


class DifferentiationAlone(MtlCore):
    """What the source that "auto" took needs for K task gradients and one combination of them, without Gramian, method,
    checks and report: no method that reads the Gramian can be faster with it."""

    label = "differentiation alone"
    complete = False

    def backward(self, losses: list[Tensor], z: Tensor) -> None:
        """After the first step, which compares."""
        if not (self.reason and self.ready()):
            super().backward(losses, z)
            return
        presence = Presence(tuple(map(str, range(len(losses)))))
        found, _ = self.mt._run.planner.collect(Needs.GRAMIAN, Batch(presence, tuple(losses), (z,), tuple(self.shared)))
        found.write(Answer(weights=torch.ones(len(losses), dtype=torch.float64)))


def _forced(name: str) -> type[Contender]:
    return type(
        f"MtlCore_{name}", (MtlCore,), {"label": f"mtlcore {name}", "source": name, "__doc__": f"Forced: {name}."}
    )


FORCED = tuple(map(_forced, ("sequential", "batched", "streaming", "streaming-together")))
"""Every exact source by name: what the rule is measured against."""

CONTENDERS: tuple[type[Contender], ...] = (
    Floor,
    PlainSum,
    HandWritten,
    LibMtlForm,
    TorchJd,
    TorchJdSequential,
    TorchJdAutogram,
    MtlCore,
    DifferentiationAlone,
    *FORCED,
)
