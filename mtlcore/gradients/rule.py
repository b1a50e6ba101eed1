"""Which plan a step takes: a function of what is asked and of the network's shape, never of the clock.

The same program therefore takes the same plans on every machine of a device type, and two runs with one seed are equal
bit for bit. The cost model, in words:

* a method that reads the Gramian needs no weight gradients where factors are smaller (streaming); one that reads rows
  does (sequential, batched);
* a function of the graph costs its arithmetic and a fixed price for being dispatched. One task at a time pays that
  price K times; all tasks at once pay it once, a few times over, because vmap dispatches more. So tasks go together
  where a function has little to compute and there are enough tasks;
* vmap has no good rule for the weight gradients of convolutions on a processor;
* it needs features that separate the heads from the trunk.

The numbers below were fitted on the workloads of ``mtlbench.speed.gradients``; docs/explanation/gradients.md has the
table, and says where the rule errs. ``MultiTask.tune`` measures instead.
"""

from __future__ import annotations

import dataclasses

from mtlcore.contracts import Needs
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.plan import PLANS, Plan
from mtlcore.gradients.torch_internals import shows_saved


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the rule looks at.

    Args:
        tasks: K, those present.
        functions: of the graph behind the features.
        work: multiply-adds of a vector-Jacobian product through the weights behind the features, as far as they are
            used in known ways.
        convolutions: whether weight gradients of convolutions are among them.
        separated: whether the features separate heads from trunk.
        accelerator: whether the trunk is not on the processor.
    """

    tasks: int
    functions: int
    work: int
    convolutions: bool
    separated: bool
    accelerator: bool

    @classmethod
    def of(cls, batch: Batch) -> Shape:
        """Of one forward pass. Walks the graph once."""
        separated = batch.separated
        roots = batch.features if separated else batch.losses
        functions = graph.count(roots)
        found = graph.uses(roots) if separated and shows_saved() else {}
        mine = [(u, p) for p in batch.shared for u in found.get(id(p)) or ()]
        return cls(
            tasks=len(batch.losses),
            functions=functions,
            work=sum(graph.work(u, p) for u, p in mine),
            convolutions=any(u.kind == "convolution" for u, _ in mine),
            separated=separated,
            accelerator=batch.shared[0].device.type != "cpu",
        )


_PROCESSOR = 2_000_000
"""Multiply-adds per function and task up to which K tasks at once are faster than one after the other, on a processor
..."""
_ACCELERATOR = 50_000_000
"""... and on an accelerator, where a launch takes as long as much more arithmetic, ..."""
_FEW = 8
"""... and from how many tasks on there: vmap launches more kernels for a function."""


def preferences(needs: Needs, shape: Shape) -> tuple[tuple[Plan, ...], str]:
    """Plans in the order in which to try them, and why the first is first. The last is the reference."""
    reference = PLANS["sequential"]
    if shape.tasks == 1 and needs == Needs.JACOBIAN:
        return (reference,), "one task"
    alone = [PLANS["streaming"]] if needs == Needs.GRAMIAN else []
    together = PLANS["streaming-together" if needs == Needs.GRAMIAN else "batched"]
    why = _against_together(shape)
    if why is None:
        return (together, *alone, reference), "each function has little to compute for a task"
    return (*alone, reference), f"one task after the other, for {why}"


def _against_together(shape: Shape) -> str | None:
    if shape.tasks == 1:
        return "there is only one"
    if not shape.separated:
        return "no features separate heads from trunk"
    per_function = shape.work / max(1, shape.functions)
    if shape.accelerator:
        if shape.tasks < _FEW:
            return "there are few"
        return "each function has much to compute" if per_function > _ACCELERATOR else None
    if shape.convolutions:
        return "convolutions are slow for several at once"
    return "each function has much to compute" if per_function > _PROCESSOR else None
