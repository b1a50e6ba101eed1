"""What a method may look at in one step."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.errors import PluginError
from mtlcore.presence import Presence


class Needs(enum.IntEnum):
    """How much of the gradients a method reads; a step computes no more than that."""

    LOSSES = 0
    """Only loss values: exactly one backward pass, O(1) in K."""
    GRAMIAN = 1
    """The K x K inner products of the task gradients."""
    JACOBIAN = 2
    """The K x P task gradients themselves."""


@final
class StepView:
    """What a method may look at in one step. Immutable.

    What has one number per task or pair of tasks is on the processor, whatever device the network is on: ``losses``,
    ``gramian`` and ``present`` here, and so the weights and states that methods make of them. Rows and features stay
    where the network is.

    ``losses``, ``gramian`` and ``present`` are handed out as copies, so writing into them changes nothing.
    ``jacobian`` is too large to copy: it is shared, and a method that wrote into it is refused by the step
    (its answer is not used; a write through ``.numpy()`` goes past torch's count of writes and is not seen). Keep a
    ``.clone()`` if rows must outlive the step: their buffer is reused.

    Args:
        losses: (K,) task losses, a tensor or plain numbers. Kept as numbers of double precision.
        gramian: (K, K) inner products of the task gradients (float64), or a function that returns them.
        jacobian: (K, P) task gradients, or a function that returns them.
        present: (K,) bool, False for a task that is missing from this batch, or a :class:`Presence`. Default: all True.
        task_names: K names. Default: ``task0``, ``task1``, ...
        task_index: (K,) positions of these tasks among all tasks of the run (see ``Aggregator.handles_absent``).
        step: number of finished steps.
        generator: source of randomness, the only one a method may use; or its seed, or a function that returns the
            seed. Seeded afresh for every step.
        features: detached tensors between trunk and heads, or () if the caller did not hand them over.
        others: views of further independent batches, for a method with ``batches > 1``.
        inner: the service behind :attr:`inner`; offered by ``MultiTask.step``.
        curvature: the service behind :attr:`curvature`; offered by ``MultiTask.step``.
        needs: the most that may be read; reading beyond it is an error that names the remedy.
    """

    __slots__ = (
        "_curvature",
        "_features",
        "_generator",
        "_gramian",
        "_inner",
        "_jacobian",
        "_losses",
        "_needs",
        "_seed",
        "others",
        "presence",
        "step",
        "task_index",
    )

    _losses: tuple[float, ...]
    _features: tuple[Tensor, ...]
    _gramian: Tensor | Callable[[], Tensor] | None
    _jacobian: Tensor | Callable[[], Tensor] | None
    _seed: torch.Generator | int | Callable[[], int]
    _generator: torch.Generator | None
    _needs: Needs
    _inner: Callable[[StepView, Callable[[StepView], Tensor], int, float], StepView] | None
    _curvature: Callable[[StepView, Tensor], Tensor] | None
    presence: Presence
    task_index: tuple[int, ...]
    step: int
    others: tuple[StepView, ...]

    def __init__(
        self,
        *,
        losses: Tensor | Sequence[float],
        gramian: Tensor | Callable[[], Tensor] | None = None,
        jacobian: Tensor | Callable[[], Tensor] | None = None,
        present: Tensor | Presence | None = None,
        task_names: Sequence[str] | None = None,
        task_index: Sequence[int] | None = None,
        step: int = 0,
        generator: torch.Generator | int | Callable[[], int] = 0,
        features: Sequence[Tensor] = (),
        others: Sequence[StepView] = (),
        inner: Callable[[StepView, Callable[[StepView], Tensor], int, float], StepView] | None = None,
        curvature: Callable[[StepView, Tensor], Tensor] | None = None,
        needs: Needs = Needs.JACOBIAN,
    ) -> None:
        put = object.__setattr__
        if isinstance(losses, Tensor):
            losses = losses.tolist()
        n = len(losses)
        put(self, "_losses", tuple(map(float, losses)))
        put(self, "_gramian", gramian)
        put(self, "_jacobian", jacobian)
        put(self, "presence", _presence(n, task_names, present))
        put(self, "_seed", generator)
        put(self, "_generator", None)
        put(self, "_needs", needs)
        put(self, "_inner", inner)
        put(self, "_curvature", curvature)
        put(self, "task_index", tuple(range(n)) if task_index is None else tuple(task_index))
        put(self, "step", step)
        put(self, "_features", tuple(features))
        put(self, "others", tuple(others))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"StepView is immutable: a method cannot set view.{name}; return what you computed.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"StepView is immutable: a method cannot delete view.{name}.")

    def __reduce__(self) -> Any:
        raise TypeError(
            "a StepView belongs to its step and cannot be copied or pickled: keep what you need of it, such as "
            "view.losses, view.gramian (copies already) or view.jacobian.clone()."
        )

    @property
    def n_tasks(self) -> int:
        """K."""
        return len(self._losses)

    @property
    def losses(self) -> Tensor:
        """(K,) float64 copy; NaN for a task that is not present."""
        return linalg.vector(self._losses)

    @property
    def loss_values(self) -> tuple[float, ...]:
        """The same as plain numbers: for arithmetic so short that a tensor operation costs more than all of it."""
        return self._losses

    @property
    def features(self) -> tuple[Tensor, ...]:
        """Detached tensors between trunk and heads, or () if the caller did not hand them over."""
        return tuple([f.detach() for f in self._features])

    @property
    def task_names(self) -> tuple[str, ...]:
        """K names."""
        return self.presence.names

    @property
    def present(self) -> Tensor:
        """(K,) bool copy."""
        return self.presence.mask()

    @property
    def complete(self) -> bool:
        """Whether every task is present."""
        return self.presence.complete

    @property
    def gramian(self) -> Tensor:
        """(K, K) float64 copy of J J^T, exactly symmetric."""
        self._check(Needs.GRAMIAN, "gramian")
        return self._shared_gramian().clone()

    @property
    def jacobian(self) -> Tensor:
        """(K, P) task gradients. Shared, not copied: read only."""
        self._check(Needs.JACOBIAN, "jacobian")
        return self._shared_jacobian()

    @property
    def generator(self) -> torch.Generator:
        """A CPU generator, seeded from the run's seed and the step: the same step draws the same numbers."""
        generator, seed = self._generator, self._seed
        if generator is None:
            if isinstance(seed, torch.Generator):
                generator = seed
            else:
                generator = torch.Generator().manual_seed(seed if isinstance(seed, int) else seed())
            object.__setattr__(self, "_generator", generator)
        return generator

    @property
    def inner(self) -> Callable[[Callable[[StepView], Tensor], int, float], StepView] | None:
        """``view.inner(weigh, steps, lr)``: the view at the point that inner gradient steps would reach.

        ``weigh(view) -> (K,)`` gives the task weights at each inner point. The network is back bit for bit
        afterwards (see :mod:`mtlcore.inner_loop`). None where the view has no network, or in
        ``MultiTask.backward``, which cannot evaluate the batch again.
        """
        return None if self._inner is None else functools.partial(self._inner, self)

    @property
    def curvature(self) -> Callable[[Tensor], Tensor] | None:
        """``view.curvature(vectors)``: how the rows change along vectors, sum_i H_i v_i.

        ``vectors`` is v, (K, P), with columns as in ``jacobian``; H_i is the Hessian of task i's loss over the
        parameters that these columns stand for. The answer is (P,). The network is back bit for bit afterwards (see
        :mod:`mtlcore.curvature`, also for what it costs and raises). For a method with ``needs = Needs.JACOBIAN``. None
        where the view has no network, or in ``MultiTask.backward``, which cannot evaluate the batch again.
        """
        return None if self._curvature is None else self._products

    def _products(self, vectors: Tensor) -> Tensor:
        self._check(Needs.JACOBIAN, "curvature")
        assert self._curvature is not None
        return self._curvature(self, vectors)

    def _check(self, wanted: Needs, name: str) -> None:
        if self._needs < wanted:
            raise PluginError(
                f"view.{name} was read by a method that declares needs = Needs.{self._needs.name}. "
                f"Declare needs = Needs.{wanted.name} in the class."
            )

    def _shared_gramian(self) -> Tensor:
        gramian = self._gramian
        if not isinstance(gramian, Tensor):
            gramian = linalg.gramian(self._shared_jacobian()) if gramian is None else gramian()
        gramian = gramian.cpu()
        object.__setattr__(self, "_gramian", gramian)
        return gramian

    def _shared_jacobian(self) -> Tensor:
        jacobian = self._jacobian
        if jacobian is None:
            raise PluginError("view.jacobian is not available in this view: it was made from a Gramian alone.")
        if not isinstance(jacobian, Tensor):
            jacobian = jacobian()
            object.__setattr__(self, "_jacobian", jacobian)
        return jacobian

    def limited_to(self, needs: Needs) -> StepView:
        """The same view with ``needs`` as the most that may be read, for another reader: what was drawn before is drawn
        again, so that a detector that draws does not change what the method draws."""
        untouched = needs == self._needs and self._generator is None
        return self if untouched else self._replaced(needs=needs, generator=self._seed)

    def restricted(self, keep: Tensor) -> StepView:
        """The sub-problem of the tasks where ``keep`` (K,) is True; ``task_index`` says which they are."""
        index = keep.cpu().nonzero().flatten()
        positions = index.tolist()
        jacobian = self._jacobian
        return self._replaced(
            losses=[self._losses[i] for i in positions],
            gramian=None if self._gramian is None else lambda: self._shared_gramian()[index][:, index],
            jacobian=None if jacobian is None else lambda: _rows(self._shared_jacobian(), index),
            present=None if self.complete else self.present[index],
            task_names=[self.task_names[i] for i in positions],
            task_index=[self.task_index[i] for i in positions],
        )

    def _replaced(self, **changes: Any) -> StepView:
        fields: dict[str, Any] = {
            "losses": self._losses,
            # Through functions, so that a value computed later is computed once and shared by both views.
            "gramian": self._gramian if isinstance(self._gramian, Tensor) else self._shared_gramian,
            "jacobian": None if self._jacobian is None else self._shared_jacobian,
            "present": self.presence,
            "task_names": self.task_names,
            "task_index": self.task_index,
            "step": self.step,
            "generator": self._seed if self._generator is None else self._generator,
            "features": self._features,
            "others": self.others,
            "inner": self._inner,
            "curvature": self._curvature,
            "needs": self._needs,
        }
        return StepView(**{**fields, **changes})


def _presence(n: int, task_names: Sequence[str] | None, present: Tensor | Presence | None) -> Presence:
    if isinstance(present, Presence):
        return present
    names = tuple(f"task{i}" for i in range(n)) if task_names is None else tuple(task_names)
    if present is None:
        return Presence(names)
    return Presence.of(names, [n for n, there in zip(names, present.tolist()) if there])


def _rows(jacobian: Tensor, index: Tensor) -> Tensor:
    return jacobian[index.to(jacobian.device)]
