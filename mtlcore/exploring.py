"""Models for preferences: ``mtlcore.explore`` and the front that it returns.

The rules that hold for every method are here, the methods themselves are plugins (:class:`mtlcore.Explorer`):

- A budget is counted in passes: one forward and one backward pass through the model on one batch. A step that asks an
  aggregator for task gradients makes one forward and K backward passes; a backward pass costs about twice a forward
  pass, so such a step is charged (1 + 2 K) / 3 passes [choice]. So methods are compared at equal cost.
- Batches are known by their number: two models at their n-th step see the same batch.
- The user's model stays bit for bit as it is, and so does the global random state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mtlcore import configuration, simplex
from mtlcore.contracts.aggregator import Aggregator
from mtlcore.contracts.explorer import Explorer
from mtlcore.contracts.view import Needs
from mtlcore.errors import ConfigurationError, PluginError, StateError, listed
from mtlcore.inputs import whole_number
from mtlcore.multitask import MultiTask
from mtlcore.registry import create
from mtlcore.safety import blame, shown

Losses: TypeAlias = Mapping[str, Tensor]
LossFunction: TypeAlias = Callable[[Any, Any], Losses]
OptimizerMaker: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
ScheduleMaker: TypeAlias = Callable[[torch.optim.Optimizer, int], Any]


def explore(
    model: nn.Module,
    losses: LossFunction,
    batches: Callable[[int], Any],
    method: str | Explorer = "pamal",
    *,
    passes: int,
    optimizer: OptimizerMaker,
    schedule: ScheduleMaker | None = None,
    trunk: nn.Module | None = None,
    seed: int = 0,
) -> Front:
    """Train models for preferences between the tasks.

    Args:
        model: where every search starts; not written to.
        losses: ``losses(model, batch)`` gives {task: scalar}. Two tasks or more, all of them for every batch. The model
            that it receives has the parameters that are tried.
        batches: the batch of the n-th step, n = 0, 1, ...; the same for the same n.
        method: name of an explorer (``mtl list --kind explorer``), or an instance with options of your own.
        passes: how many passes through the model (see above) the whole search may cost.
        optimizer: makes the optimizer of a list of parameters: ``lambda p: torch.optim.Adam(p, lr=1e-3)``.
        schedule: makes its schedule from (optimizer, number of steps); ``step()`` is called on it after every step.
        trunk: the part of the model that all tasks share; None: all of it. Aggregators look at its gradients.
        seed: of every random number, those of dropout included.

    Raises:
        ConfigurationError: an argument that is not what it should be, or a budget that is too small for the method.
        PluginError: the explorer returned something that is not a set of models, or spent more than the budget.
        NonFiniteError, LossError: from a training step; names the task.
        UnknownPluginError: there is no such explorer.
    """
    explorer = _explorer(method)
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model is a {type(model).__name__}; it must be a torch.nn.Module.")
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise ConfigurationError(f"passes is {passes!r}; it must be a whole number of at least 1.")
    for what, function in (("losses", losses), ("batches", batches), ("optimizer", optimizer), ("schedule", schedule)):
        if not callable(function) and not (what == "schedule" and function is None):
            hint = " that makes one of parameters" if what == "optimizer" else ""
            raise ConfigurationError(f"{what} must be a function{hint}, found a {type(function).__name__}.")
    if trunk is not None and not isinstance(trunk, nn.Module):
        raise ConfigurationError(f"trunk is a {type(trunk).__name__}; it must be a module inside of the model.")
    seed = whole_number("seed", seed)
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        work = Exploration(model, losses, batches, optimizer, schedule, _shared(model, trunk), passes, seed)
        learnt = explorer.search(work)
    front = Front(model, explorer, work.tasks, _checked(explorer, learnt))
    front.entries(torch.full((len(work.tasks),), 1.0 / len(work.tasks), dtype=torch.float64))
    return front


class Exploration:
    """What an explorer works with.

    Attributes:
        tasks: names of the K tasks, in the order of the losses.
        passes: the budget; ``spent``: how much of it is gone.
        shared: names of the parameters that all tasks share.
        generator: of the explorer's own random numbers, on the processor.
        seed: from which further ones may be made.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: LossFunction,
        batches: Callable[[int], Any],
        optimizer: OptimizerMaker,
        schedule: ScheduleMaker | None,
        shared: frozenset[str],
        passes: int,
        seed: int,
    ) -> None:
        self._model = copy.deepcopy(model).train()
        self._losses, self._batches, self._optimizer, self._schedule = losses, batches, optimizer, schedule
        self.shared, self.passes, self.seed, self.spent = shared, passes, seed, 0.0
        self.generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            found = losses(self.fresh(), batches(0))
        if not isinstance(found, Mapping) or len(found) < 2:
            raise ConfigurationError("losses(model, batch) must return {task: scalar} with at least two tasks.")
        self.tasks: tuple[str, ...] = tuple(found)

    def fresh(self) -> nn.Module:
        """A copy of the user's model, in training mode."""
        return copy.deepcopy(self._model)

    def reinitialised(self) -> nn.Module:
        """The same with new initial weights, wherever a module has ``reset_parameters()``."""
        made = self.fresh()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
            for module in made.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        return made

    def price(self, aggregator: str | Aggregator) -> float:
        """Passes that a step of this aggregator costs beside further forward passes: 1, or (1 + 2 K) / 3 if it reads
        gradients."""
        made = create("aggregator", aggregator) if isinstance(aggregator, str) else aggregator
        return 1.0 if made.needs == Needs.LOSSES else (1.0 + 2.0 * len(self.tasks)) / 3.0

    def steps(self, cost: float, models: int = 1) -> int:
        """How many steps, at so many passes each, every one of ``models`` can make out of the whole budget.

        Raises:
            ConfigurationError: not a single one.
        """
        found = int(self.passes / (cost * models) + 1e-9)
        if found < 1:
            raise ConfigurationError(
                f"passes = {self.passes} is too little: {models} model(s) at {cost:.3g} passes a step cannot make one "
                "step each. Give more passes, or fewer models."
            )
        return found

    def losses(self, model: nn.Module, step: int, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """{task: loss} of the batch of this step, at one pass.

        Args:
            model: from :meth:`fresh`; its buffers move as in any forward pass.
            parameters: tensors to use in place of its parameters, by name; gradients flow into what they were made of.

        Raises:
            PluginError: the budget is spent.
        """
        self.spend(1.0)
        batch = self._batches(step)
        if parameters is None:
            found = self._losses(model, batch)
        else:
            named = {f"model.{n}": t for n, t in parameters.items()}
            found = torch.func.functional_call(_Evaluation(model, self._losses), named, (batch,))
        if tuple(found) != self.tasks:
            raise ConfigurationError(
                f"losses(model, batch) gave the tasks {', '.join(found)} at step {step}; at first they were "
                f"{', '.join(self.tasks)}. Explorers need all tasks in every batch, in one order."
            )
        return dict(found)

    def train(
        self,
        closure: Callable[[int], dict[str, Tensor]],
        shared: Iterable[nn.Parameter],
        own: Iterable[nn.Parameter] = (),
        aggregator: str | Aggregator = "sum",
        *,
        steps: int,
        index: int = 0,
    ) -> None:
        """``steps`` steps of :class:`mtlcore.MultiTask`, with the user's optimizer and schedule.

        Args:
            closure: the losses of the step of this number, made by :meth:`losses`.
            shared: the parameters that all tasks share.
            own: those of single tasks.
            aggregator: of the task losses or gradients.
            index: of the model, where several are trained: it goes into the seed.

        Raises:
            ConfigurationError: an aggregator that wants a batch twice or several batches in a step: the budget has one
                evaluation of ``closure`` a step, and a second one may draw other preferences.
        """
        shared, own = list(shared), list(own)
        optimizer = self._optimizer([*shared, *own])
        if optimizer is None:
            raise ConfigurationError("optimizer(parameters) returned None; it must return a torch.optim.Optimizer.")
        schedule = None if self._schedule is None else self._schedule(optimizer, steps)
        run = MultiTask(shared, aggregator, optimizer, seed=self.seed + index, tasks=self.tasks)
        extra = self.price(run.aggregator) - 1.0
        if run.aggregator.batches > 1:
            raise _once_a_step(run.aggregator)
        for step in range(steps):
            self.spend(extra)
            looks = iter([step])

            def look(looks: Iterator[int] = looks) -> dict[str, Tensor]:
                for number in looks:
                    return closure(number)
                raise _once_a_step(run.aggregator)

            run.step(look)
            if schedule is not None:
                schedule.step()

    def split(self, model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(shared, own) parameters of a model from :meth:`fresh`, those that can be trained."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return [p for n, p in named if n in self.shared], [p for n, p in named if n not in self.shared]

    def spend(self, passes: float) -> None:
        """Charge passes beside those of :meth:`losses` and :meth:`train`: 2 / 3 for a further backward pass.

        Raises:
            PluginError: the budget is spent.
        """
        self.spent += passes
        if self.spent > self.passes * (1.0 + 1e-9):
            raise PluginError(f"the explorer has spent {self.spent:.6g} passes; its budget is {self.passes}.")


class Front:
    """Models for preferences, as a value.

    ``front.model(preference)`` gives the model; ``front.state_dict()`` is everything that was learnt, in plain values,
    and ``Front.load(model, state)`` makes the same front of it.
    """

    def __init__(
        self, model: nn.Module, explorer: Explorer, tasks: Sequence[str], learnt: Mapping[str, Tensor]
    ) -> None:
        self._model, self.explorer, self.tasks = copy.deepcopy(model), explorer, tuple(tasks)
        self._learnt = {n: t.detach().clone() for n, t in learnt.items()}

    def __repr__(self) -> str:
        numbers = sum(t.numel() for t in self._learnt.values())
        return f"Front({self.explorer!r}, tasks={list(self.tasks)}, {numbers} numbers learnt)"

    def entries(self, preference: Any) -> dict[str, Tensor]:
        """The state dict of the model for a preference: one number per task, not negative, with sum 1 (a sequence, a
        tensor, or {task: number}).

        Raises:
            ConfigurationError: not a preference between these tasks.
            PluginError: the explorer gave something that is not this model.
        """
        wanted = simplex.preference(preference, self.tasks)
        made = {n: t.detach().clone() for n, t in self._model.state_dict().items()}
        who = f"explorer {type(self.explorer).__name__}"
        try:
            found = self.explorer.read(dict(self._learnt), wanted)
        except BaseException as error:
            raise PluginError(f"{who}: read raised {blame(error)}") from error
        if not isinstance(found, dict):
            raise PluginError(f"{who}: read returned a {type(found).__name__}, not a dict of tensors.")
        for name, value in found.items():
            if name not in made:
                raise PluginError(f"{who}: read returned an entry {name!r} that the model does not have.")
            if not isinstance(value, Tensor) or value.shape != made[name].shape:
                raise PluginError(f"{who}: read returned for {name!r} something else than a tensor of its shape.")
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise PluginError(f"{who}: read returned NaN or infinity for {name!r}.")
            made[name] = value.detach().to(made[name], copy=True)
        return made

    def model(self, preference: Any) -> nn.Module:
        """A module of its own for a preference, in evaluation mode. Raises as :meth:`entries`."""
        made = copy.deepcopy(self._model)
        made.load_state_dict(self.entries(preference))
        return made.eval()

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: ``torch.load(..., weights_only=True)`` reads it."""
        learnt = {n: t.clone() for n, t in self._learnt.items()}
        tasks = list(self.tasks)
        return {"explorer": _described(self.explorer), "tasks": tasks, "n_tasks": len(tasks), "learnt": learnt}

    @classmethod
    def load(cls, model: nn.Module, state: Mapping[str, Any], method: str | Explorer) -> Front:
        """The front of :meth:`state_dict`, with the model and the method that it was made with.

        Raises:
            StateError: not such a state, or that of another method or of other options.
        """
        explorer = _explorer(method)
        if not isinstance(state, Mapping) or {"explorer", "tasks", "learnt"} - set(state):
            raise StateError("this is not the state of a front: it needs the entries explorer, tasks and learnt.")
        if not isinstance(state["explorer"], Mapping) or "name" not in state["explorer"]:
            raise StateError("the entry explorer of this state does not describe an explorer: it is damaged.")
        tasks = state["tasks"]
        if not isinstance(tasks, (list, tuple)) or len(tasks) < 2 or len(set(map(repr, tasks))) != len(tasks):
            raise StateError("the entry tasks of this state has no two or more distinct names: it is damaged.")
        if state.get("n_tasks", len(tasks)) != len(tasks):
            raise StateError(
                f"this state was learnt for {shown(state['n_tasks'])} tasks, and its entry tasks has {len(tasks)} "
                f"names ({listed(tasks)}): it is damaged."
            )
        then, now = ({"explorer": {**(d or {}), "distribution": ""}} for d in (state["explorer"], _described(explorer)))
        changed = configuration.differences(then, now)  # a newer version of the same method reads its old state
        if changed:
            raise StateError(f"the state is that of another explorer: {'; '.join(changed)}.")
        front = cls(model, explorer, tasks, _checked(explorer, state["learnt"]))
        try:
            front.entries(torch.full((len(tasks),), 1.0 / len(tasks), dtype=torch.float64))
        except PluginError as error:
            raise StateError(
                f"what this state has learnt gives no model for a preference between {len(tasks)} tasks: it is "
                f"damaged, or was learnt for another network. {error}"
            ) from error
        return front


class _Evaluation(nn.Module):
    """Makes the user's function of a model a forward pass, so that parameters can be replaced by a public call."""

    def __init__(self, model: nn.Module, losses: LossFunction) -> None:
        super().__init__()
        self.model, self._function = model, losses

    def forward(self, batch: Any) -> Losses:
        return self._function(self.model, batch)


def _once_a_step(aggregator: Aggregator) -> ConfigurationError:
    return ConfigurationError(
        f"aggregator {type(aggregator).__name__} wants the losses more than once in a step; a search has one "
        "evaluation a step. Take an aggregator that looks once (`mtl show NAME` says what a step costs)."
    )


def _described(explorer: Explorer) -> dict[str, Any]:
    return configuration.describe(explorer) or {}


def _explorer(method: str | Explorer) -> Explorer:
    explorer = create("explorer", method) if isinstance(method, str) else method
    if not isinstance(explorer, Explorer):
        raise ConfigurationError(f"method is a {type(method).__name__}; it must be a name or an mtlcore.Explorer.")
    return explorer


def _shared(model: nn.Module, trunk: nn.Module | None) -> frozenset[str]:
    inside = None if trunk is None else {id(p) for p in trunk.parameters()}
    names = frozenset(n for n, p in model.named_parameters() if inside is None or id(p) in inside)
    if not names:
        what = "the model has no parameters" if inside is None else "no parameter of trunk is in the model"
        raise ConfigurationError(f"{what}: there is nothing to train together.")
    return names


def _checked(explorer: Explorer, learnt: Any) -> dict[str, Tensor]:
    who = f"explorer {type(explorer).__name__}"
    if not isinstance(learnt, Mapping) or not learnt or not all(isinstance(v, Tensor) for v in learnt.values()):
        raise PluginError(f"{who}: search must return {{name: tensor}}, with at least one entry.")
    for name, value in learnt.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise PluginError(f"{who}: what it learned has NaN or infinity in {name!r}.")
    return {str(n): v.detach() for n, v in learnt.items()}
