"""``layerwise``: any method, applied to each group of parameters separately."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import Aggregation, Needs, StepView, linalg, vector
from mtlcore.contracts import State
from mtlcore.errors import ConfigurationError
from mtlplugins.wrapping import Curvature, Wrapper, changed

_GROUP = "group"


def _key(group: int, name: str) -> str:
    return f"{_GROUP}{group}.{name}"


def _part(state: State, group: int) -> State:
    """The method's state for one group."""
    prefix = _key(group, "")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _within(view: StepView, columns: slice) -> Curvature | None:
    """Products with the group's own blocks of the Hessians."""
    curvature = view.curvature
    if curvature is None:
        return None

    def products(_: StepView, vectors: Tensor) -> Tensor:
        whole = vectors.new_zeros(len(vectors), view.jacobian.shape[1])
        whole[:, columns] = vectors
        return curvature(whole)[columns]

    return products


@dataclasses.dataclass(frozen=True)
class Layerwise(Wrapper):
    """The columns of J are divided into groups, and the method is applied to each: d = (A(J_1), A(J_2), ...). [choice]

    The groups are given by ``sizes``, in the order of the trunk's parameters. :func:`mtlplugins.layers.sizes_of` gives
    the sizes of the layers of a module. Examples are the groups of GradVac and grouped aggregation in other libraries.

    With one group the answer is the method's own. All its promises are kept except for the single backward pass.

    Proved: no conflict is kept, because inner products add up over the groups: if no group's direction conflicts with a
    task's part of the gradient in that group, d conflicts with no task. Linearity in the rows and symmetry are kept,
    too. Dropped: the cone (each group has its own weights), invariance under a rotation that mixes groups, and
    stationarity. Heads get the factors that the method returns for the first group. Groups draw different random
    numbers.

    Args:
        method: any aggregator with one batch a step. What it remembers it remembers for each group.
        sizes: numbers of parameters per group, in order; what they leave over is a last group. None: one group.

    Raises:
        ConfigurationError: the method wants several batches; sizes are not whole or more than there are.
    """

    paper: ClassVar[str] = ""
    least = Needs.JACOBIAN
    keeps = frozenset(
        {
            "non-conflicting",
            "permutation-equivariant",
            "positively-homogeneous",
            "linear-under-scaling",
            "no-conflict-identity",
            "strongly-stationary-zero",
        }
    )

    sizes: tuple[float, ...] | None = vector(None, low=1.0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """With one group, all promises of the method about gradients; otherwise those that hold for several groups."""
        if self.sizes is None:
            return (self.wrapped.claims - {"one-backward-pass"}) | self.adds
        return super().claims

    def init(self, n_tasks: int) -> State:
        """The method's state for each group, the one that ``sizes`` leave over included."""
        if self.wrapped.batches > 1:
            raise ConfigurationError(
                f"layerwise divides the gradients of one batch, and {type(self.wrapped).__name__} compares those of "
                f"{self.wrapped.batches}; choose a method that needs one batch."
            )
        groups = 1 if self.sizes is None else len(self.sizes) + 1
        return {_key(g, name): value for g in range(groups) for name, value in self.wrapped.init(n_tasks).items()}

    def observe(self, view: StepView, state: State) -> State:
        """The method's second look, for each group."""
        groups = sorted({int(name.partition(".")[0].removeprefix(_GROUP)) for name in state})
        looked = {g: self.wrapped.observe(view, _part(state, g)) for g in groups}
        return {_key(g, name): value for g in groups for name, value in looked[g].items()}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """A direction (P,)."""
        rows, parts, answers, new = view.jacobian, [], [], dict(state)
        groups = self._groups(rows.shape[1])
        for number, columns in enumerate(groups):
            whole = len(groups) == 1
            block = rows if whole else rows[:, columns].contiguous()
            seen = changed(view, jacobian=block, curvature=None if whole else _within(view, columns))
            seen = seen.limited_to(self.wrapped.needs)
            answer = self.wrapped.aggregate(seen, _part(state, number))
            new.update({_key(number, name): value for name, value in answer.state.items()})
            if whole:
                notes = {**answer.diagnostics, "groups": 1}
                return dataclasses.replace(answer, state=new, diagnostics=notes, head_weights=self.heads(answer))
            direction = answer.direction
            if direction is None:
                assert answer.weights is not None
                direction = linalg.combine(block, answer.weights)
            parts.append(direction.to(rows.dtype))
            answers.append(answer)
        heads = self.heads(answers[0])
        return Aggregation(
            direction=torch.cat(parts), state=new, diagnostics={"groups": len(parts)}, head_weights=heads
        )

    def _groups(self, n: int) -> list[slice]:
        sizes = [] if self.sizes is None else [int(s) for s in self.sizes]
        if self.sizes is not None and any(s != int(s) for s in self.sizes):
            raise ConfigurationError(f"layerwise: sizes must be whole numbers of parameters, found {self.sizes}.")
        if sum(sizes) > n:
            raise ConfigurationError(
                f"layerwise: sizes sum to {sum(sizes)}, but the trunk has {n} parameters that need gradients."
            )
        ends, groups, start = [*sizes], [], 0
        if sum(sizes) < n:
            ends.append(n - sum(sizes))
        for size in ends:
            groups.append(slice(start, start + size))
            start += size
        return groups
