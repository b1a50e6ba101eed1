"""The ways of obtaining task gradients, each a value. Every exact one gives the same numbers; they differ in cost.

**sequential**: K vector-Jacobian products, one per task, rows kept. Works with every module autograd can differentiate.

**batched**: the same for up to 16 tasks in one product under vmap. Fast where many small operations dominate (small
networks, many tasks, attention), slow where vmap has no good rule (weight gradients of convolutions), refused where it
has none (recurrent kernels on accelerators, custom Functions without a vmap rule, compiled trunks). Weight gradients of
matrix products are multiplied out in one product for all tasks instead of by vmap.

**streaming**: the Gramian without the K x P rows. For a weight matrix used in y = A W^T, task i's gradient is D_i^T A
with the cotangent D_i (N, out) of y. When N (the batch, or batch x tokens) is at most half the fan-in, only D_i is
kept, N/fan-in of the row. The Gramian's share is <D_i, (A A^T) D_j> and the weighted gradient is (sum_i w_i D_i)^T A:
the K weight gradients are never formed, so that a step costs K passes for the *activations* only. Convolutions with few
sites are treated the same way, embeddings keep the rows that were looked up, all else keeps its part of the row. Exact,
with weights used several times included. Where that does not save enough, parameters are taken block by block, each
block with K passes of its own, and the weighted gradient is one more backward pass: slower, and never more than a fifth
of the K x P numbers for many tasks.

What streaming guarantees less than rows: there the direction is the given combination of the very rows whose inner
products were taken, to float64 rounding. Here the Gramian is exact for the factors, and the gradient is rounded to the
parameters' dtype as one backward pass of the weighted loss is.

**streaming-together**: the same factors, up to 16 tasks in one product under vmap, without the limit on memory.

**losses**: one backward pass of the weighted losses; no task gradients.

**features**: the Gramian at the shared representation; cheap, a surrogate.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from mtlcore.contracts import Needs

_TOGETHER = 16
"""Tasks differentiated at once: more gain little speed and cost memory."""
_SHARE = 0.17
"""Of K x P numbers, what a capped plan stores at most ..."""
_LEAST = 6
"""... but for few tasks never less than so many gradients: it would take many passes to save little."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way.

    Args:
        name: as reports show it and ``gradients=`` takes it.
        provides: the most that a method may read.
        tasks: differentiated at once, under vmap if more than one.
        weights: who makes the gradients of weights in matrix products: autograd, a product of this package's own for
            all tasks and uses at once, or nobody ("factors" are kept instead where they are smaller).
        capped: whether to take more passes where the numbers to be stored exceed :meth:`limit`.
    """

    name: str
    provides: Needs
    tasks: int = 1
    weights: Literal["autograd", "products", "factors"] = "autograd"
    capped: bool = False

    @property
    def together(self) -> bool:
        """Whether several tasks are differentiated at once."""
        return self.tasks > 1

    def limit(self, n_tasks: int, n_parameters: int, most: int | None) -> int | None:
        """How many numbers may be stored, ``most`` being the user's own bound; None for any number."""
        if not self.capped:
            return None
        own = int(max(_SHARE * n_tasks, _LEAST) * n_parameters)
        return own if most is None else min(own, most)


PLANS: dict[str, Plan] = {
    p.name: p
    for p in (
        Plan("losses", Needs.LOSSES),
        Plan("features", Needs.GRAMIAN),
        Plan("sequential", Needs.JACOBIAN),
        Plan("batched", Needs.JACOBIAN, tasks=_TOGETHER, weights="products"),
        Plan("streaming", Needs.GRAMIAN, weights="factors", capped=True),
        Plan("streaming-together", Needs.GRAMIAN, tasks=_TOGETHER, weights="factors"),
    )
}
"""By name, every way there is."""
