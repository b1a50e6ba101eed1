"""Which plan a step takes: a function of what is asked and of the network's shape, never of the clock.

The same program therefore takes the same plans on every machine of a device type, and two runs with one seed are equal
bit for bit. The cost model, in words:

* A method that reads the Gramian needs no weight gradients where factors are smaller: streaming. Where they save
  nothing, plain rows are faster (sequential); one that reads rows needs them anyway.
* A function of the graph costs its arithmetic and a fixed price for being dispatched. One task at a time pays that
  price K times; all tasks at once pay it once, a few times over, because vmap dispatches more. So from a few tasks on
  they go together; in a tiny network, where vmap's own price is all there is, from a few more; and not where a function
  has so much to compute that nobody sees the dispatch, unless factors make all tasks one product.
* vmap has no good rule for the weight gradients of convolutions on a processor.
* It needs features that separate the heads from the trunk.

The numbers below were fitted on the workloads of ``mtlbench.speed.gradients`` (two cores) and on the accelerator table
of docs/explanation/gradients.md, which also says where the rule errs. ``MultiTask.tune`` measures instead.
"""

from __future__ import annotations

import dataclasses

import torch

from mtlcore.contracts import Needs
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.plan import PLANS, Plan
from mtlcore.gradients.rows import parts
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
        kept: numbers that streaming keeps per task, over P: below 1 where factors save something.
        capped: whether that is more than a streaming plan may store.
        separated: whether the features separate heads from trunk.
        accelerator: whether the trunk is not on the processor.
    """

    tasks: int
    functions: int
    work: int
    convolutions: bool
    kept: float
    capped: bool
    separated: bool
    accelerator: bool

    @property
    def per_function(self) -> float:
        """Multiply-adds of one function, in the mean."""
        return self.work / max(1, self.functions)

    @classmethod
    def of(cls, batch: Batch) -> Shape:
        """Of one forward pass. Walks the graph once."""
        separated = batch.separated
        roots = batch.features if separated else batch.losses
        functions = graph.count(roots)
        found = graph.uses(roots) if shows_saved() else {}
        mine = [(u, p) for p in batch.shared for u in found.get(id(p)) or ()]
        with torch.no_grad():
            stored = sum(piece.width for piece in parts(batch.shared, found, factors=True, products=False))
        limit = PLANS["streaming"].limit(len(batch.losses), batch.size, None)
        assert limit is not None
        return cls(
            tasks=len(batch.losses),
            functions=functions,
            work=sum(graph.work(u, p) for u, p in mine),
            convolutions=any(u.kind == "convolution" for u, _ in mine),
            kept=stored / max(1, batch.size),
            capped=len(batch.losses) * stored > limit,
            separated=separated,
            accelerator=batch.shared[0].device.type != "cpu",
        )


_SAVES = 0.95
"""Up to this share of the rows' numbers, factors are worth their Gramian's triangles."""
_TINY = 100_000
"""Multiply-adds per function up to which the price of triangles and of vmap shows on a processor, and ..."""
_FEW_TINY = 5
"""... from how many tasks on all at once pay there; ..."""
_FEW = 3
"""... and else; ..."""
_FEW_LAUNCHES = 8
"""... and on an accelerator, where a vmapped function is several launches."""
_MUCH = 20_000_000
"""Multiply-adds per function from which tasks one after the other cost no more than together, on a processor ..."""
_MUCH_LAUNCHED = 50_000_000
"""... and on an accelerator."""


def preferences(needs: Needs, shape: Shape) -> tuple[tuple[Plan, ...], str]:
    """Plans in the order in which to try them, and why the first is first. The last is the reference."""
    factors = needs == Needs.GRAMIAN and shape.kept <= _SAVES
    worth = factors and not shape.capped and (shape.accelerator or shape.per_function >= _TINY)
    alone = (PLANS["streaming"],) if worth else ()
    together = PLANS["streaming-together" if needs == Needs.GRAMIAN else "batched"]
    against = _against_together(shape, factors)
    if against is None:
        return (together, *alone, PLANS["sequential"]), "all tasks at once save dispatch"
    form = "factors are smaller than weight gradients" if alone else "rows are as small as factors"
    if needs == Needs.JACOBIAN:
        form = "the method reads rows"
    return (*alone, PLANS["sequential"]), f"{form}; one task at a time, for {against}"


def _against_together(shape: Shape, factors: bool) -> str | None:
    if shape.tasks == 1:
        return "there is only one"
    if not shape.separated:
        return "no features separate heads from trunk"
    if shape.accelerator:
        if shape.tasks < _FEW_LAUNCHES:
            return "there are few"
        return "each function has much to compute" if shape.per_function > _MUCH_LAUNCHED else None
    if shape.convolutions:
        return "convolutions are slow for several at once"
    if shape.tasks < (_FEW_TINY if shape.per_function < _TINY else _FEW):
        return "there are few"
    return "each function has much to compute" if shape.per_function > _MUCH and not factors else None
