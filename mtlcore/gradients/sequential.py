"""K vector-Jacobian products, one per task, rows kept. Works with every module autograd can differentiate.

The reference: "auto" trusts no other source without having compared it on the user's own network, unless memory
forbids (``gradient_memory``).
"""

from __future__ import annotations

from typing import ClassVar

from mtlcore.contracts import Needs
from mtlcore.gradients import jacobian
from mtlcore.gradients.source import GradientProblem, GradientSource, TaskGradients
from mtlcore.gradients.storage import Storage


class Sequential(GradientSource):
    """For each task one ``torch.autograd.grad`` through its head and one through the trunk. K x P numbers."""

    name: ClassVar[str] = "sequential"
    provides: ClassVar[Needs] = Needs.JACOBIAN

    def __init__(self, storage: Storage | None = None) -> None:
        self._storage = storage or Storage()

    def collect(self, problem: GradientProblem, keep_graph: bool = False) -> TaskGradients:
        """Fill the rows; the graph is freed by the last task."""
        return jacobian.collect(problem, self._storage, know_uses=False, factors=False, chunk=1, keep_graph=keep_graph)
