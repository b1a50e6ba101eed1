"""The contracts of the three kinds of plugin, and the values that pass between them and a step.

Classes here are either abstract (:class:`Aggregator`, :class:`ConflictDetector`, :class:`TeleportStrategy`)
or final. A plugin subclasses an abstract one; nobody subclasses a plugin: wrap it instead, so that a call
site has exactly one target.

Notation used everywhere: K tasks, P shared parameters, losses L_i, gradients g_i of L_i with respect to the
shared parameters, Jacobian J (K, P) with rows g_i, Gramian G = J J^T (K, K), direction d (P,). Parameters
move along **minus** d: d is what the optimizer receives as "the gradient".
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mtlcore import linalg
from mtlcore.errors import PluginError
from mtlcore.hyperparameters import Validated

State = dict[str, Tensor]


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
        present: (K,) bool, False for a task that is missing from this batch. Default: all True.
        task_names: K names. Default: ``task0``, ``task1``, ...
        task_index: (K,) positions of these tasks among all tasks of the run (see ``Aggregator.handles_absent``).
        step: number of finished steps.
        generator: source of randomness, the only one a method may use; or its seed, or a function that returns the
            seed. Seeded afresh for every step.
        features: detached tensors between trunk and heads, or () if the caller did not hand them over.
        others: views of further independent batches, for a method with ``batches > 1``.
        inner: the service behind :attr:`inner`; offered by ``MultiTask.step``.
        needs: the most that may be read; reading beyond it is an error that names the remedy.
    """

    __slots__ = (
        "_complete",
        "_features",
        "_generator",
        "_gramian",
        "_inner",
        "_jacobian",
        "_losses",
        "_needs",
        "_present",
        "_seed",
        "others",
        "step",
        "task_index",
        "task_names",
    )

    _losses: tuple[float, ...]
    _features: tuple[Tensor, ...]
    _gramian: Tensor | Callable[[], Tensor] | None
    _jacobian: Tensor | Callable[[], Tensor] | None
    _present: Tensor | None
    _complete: bool
    _seed: torch.Generator | int | Callable[[], int]
    _generator: torch.Generator | None
    _needs: Needs
    _inner: Callable[[StepView, Callable[[StepView], Tensor], int, float], StepView] | None
    task_names: tuple[str, ...]
    task_index: tuple[int, ...]
    step: int
    others: tuple[StepView, ...]

    def __init__(
        self,
        *,
        losses: Tensor | Sequence[float],
        gramian: Tensor | Callable[[], Tensor] | None = None,
        jacobian: Tensor | Callable[[], Tensor] | None = None,
        present: Tensor | None = None,
        task_names: Sequence[str] | None = None,
        task_index: Sequence[int] | None = None,
        step: int = 0,
        generator: torch.Generator | int | Callable[[], int] = 0,
        features: Sequence[Tensor] = (),
        others: Sequence[StepView] = (),
        inner: Callable[[StepView, Callable[[StepView], Tensor], int, float], StepView] | None = None,
        needs: Needs = Needs.JACOBIAN,
    ) -> None:
        put = object.__setattr__
        if isinstance(losses, Tensor):
            losses = losses.tolist()
        n = len(losses)
        put(self, "_losses", tuple(map(float, losses)))
        put(self, "_gramian", gramian)
        put(self, "_jacobian", jacobian)
        put(self, "_present", None if present is None else present.cpu())
        put(self, "_complete", present is None or bool(present.all()))
        put(self, "_seed", generator)
        put(self, "_generator", None)
        put(self, "_needs", needs)
        put(self, "_inner", inner)
        put(self, "task_names", tuple(f"task{i}" for i in range(n)) if task_names is None else tuple(task_names))
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
    def present(self) -> Tensor:
        """(K,) bool copy."""
        present = self._present
        if present is None:
            return torch.ones(self.n_tasks, dtype=torch.bool, device="cpu")
        return present.clone()

    @property
    def complete(self) -> bool:
        """Whether every task is present."""
        return self._complete

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
        afterwards (see :mod:`mtlcore.inner_loop`). None where no network stands behind the view, or in
        ``MultiTask.backward``, which cannot evaluate the batch again.
        """
        return None if self._inner is None else functools.partial(self._inner, self)

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
            present=None if self._complete else self.present[index],
            task_names=[self.task_names[i] for i in positions],
            task_index=[self.task_index[i] for i in positions],
        )

    def _replaced(self, **changes: Any) -> StepView:
        fields: dict[str, Any] = {
            "losses": self._losses,
            # Through functions, so that a value computed later is computed once and shared by both views.
            "gramian": self._gramian if isinstance(self._gramian, Tensor) else self._shared_gramian,
            "jacobian": None if self._jacobian is None else self._shared_jacobian,
            "present": self._present,
            "task_names": self.task_names,
            "task_index": self.task_index,
            "step": self.step,
            "generator": self._seed if self._generator is None else self._generator,
            "features": self._features,
            "others": self.others,
            "inner": self._inner,
            "needs": self._needs,
        }
        return StepView(**{**fields, **changes})


def _rows(jacobian: Tensor, index: Tensor) -> Tensor:
    return jacobian[index.to(jacobian.device)]


@final
@dataclasses.dataclass(frozen=True)
class Aggregation:
    """The answer of a method: weights *or* a direction, and the next state.

    Args:
        weights: (K,) so that d = J^T w. A method that returns weights works with every gradient source.
        direction: (P,) when d is not a combination of the rows with one weight per task.
        state: the next state; start from the one received.
        diagnostics: anything worth logging (numbers, short strings, small tensors).
        head_weights: (K,) factors for the task-specific parameters' own gradients. Default: ``weights`` for a
            method that reads losses only (it weights whole losses), ones for a method that reads gradients.
        feature_gradient: extra cotangents, one per tensor of ``view.features``, added to the trunk's backward
            pass; for a method whose weights are themselves a differentiable function of the features.
    """

    weights: Tensor | None = None
    direction: Tensor | None = None
    state: State = dataclasses.field(default_factory=dict)
    diagnostics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_weights: Tensor | None = None
    feature_gradient: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.direction is None):
            raise PluginError("Aggregation needs exactly one of weights=(K,) and direction=(P,).")


@dataclasses.dataclass(frozen=True)
class Aggregator(Validated, abc.ABC):
    """Turns losses, Gramian or Jacobian of one step into task weights or a direction.

    A subclass is a frozen dataclass of hyper-parameters and has no other state: what must survive a step is
    returned in ``Aggregation.state`` and handed back in the next step.
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN
    """The most that ``aggregate`` reads from the view."""
    claims: ClassVar[frozenset[str]] = frozenset()
    """Ids of the laws this method promises. `mtl verify` fails if one of them is refuted. A class whose
    promises depend on hyper-parameters overrides this with a property."""
    handles_absent: ClassVar[bool] = False
    """False: when tasks are missing from a batch, the method is called on the sub-problem of those present and
    the absent ones get weight 0; ``view.task_index`` says which tasks they are. True: the method gets the full
    view (losses and Gramian of absent tasks are NaN, their rows 0) and reads ``view.present`` itself."""
    degree: ClassVar[float] = 1.0
    """p in A(t J) = t^p A(J), for a method that claims "positively-homogeneous"; a class whose degree depends on
    hyper-parameters overrides this with a property."""
    batches: ClassVar[int] = 1
    """How many independent batches one step needs; the further ones arrive in ``view.others``."""

    def init(self, n_tasks: int) -> State:
        """State before the first step: a dict of tensors. K = ``n_tasks``."""
        return {}

    @abc.abstractmethod
    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The method itself. Pure: same view, state and generator seed, same answer; neither is written to."""

    def observe(self, view: StepView, state: State) -> State:
        """Called by ``MultiTask.step`` after the optimizer moved, with the new losses of the same batch.

        Override it only in a method that looks twice (FAMO); it costs one more forward pass a step.
        """
        return state

    @classmethod
    def looks_twice(cls) -> bool:
        """Whether ``observe`` is overridden."""
        return cls.observe is not Aggregator.observe


@final
@dataclasses.dataclass(frozen=True)
class Conflict:
    """What a detector found.

    Args:
        conflicting: the verdict.
        severity: how bad, by the detector's own scale-free measure; larger is worse.
        pairs: (K, K) bool, symmetric, False on the diagonal: pairs of tasks in conflict.
        dominated: (K,) bool: tasks that the mean gradient would harm.
        diagnostics: anything worth logging.
    """

    conflicting: bool
    severity: float
    pairs: Tensor
    dominated: Tensor
    diagnostics: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ConflictDetector(Validated, abc.ABC):
    """Decides whether the task gradients of a step are in conflict. Stateless."""

    needs: ClassVar[Needs] = Needs.GRAMIAN
    """The most that ``detect`` reads from the view."""
    claims: ClassVar[frozenset[str]] = frozenset()
    """Ids of the laws this detector promises."""

    @abc.abstractmethod
    def detect(self, view: StepView) -> Conflict:
        """The verdict on the tasks present; pairs and dominated are False for absent ones."""


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
