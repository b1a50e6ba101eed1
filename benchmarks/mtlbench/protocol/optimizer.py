"""Optimizer and schedule, equal for all methods."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mtlbench.tasks.base import Budget, Network
from mtlcore.errors import ConfigurationError, did_you_mean

_NEEDS_A_CLOSURE = ("LBFGS",)


def optimizer_of(network: Network | _Probe, budget: Budget) -> torch.optim.Optimizer:
    """The optimizer of a budget over all parameters, in two groups if the heads have a rate of their own.

    Raises:
        ConfigurationError: there is no such optimizer, or it has no such options.
    """
    if budget.optimizer in _NEEDS_A_CLOSURE:
        raise ConfigurationError(
            f"optimizer {budget.optimizer!r} evaluates the losses several times a step, which no method here can serve."
        )
    kind = _class(torch.optim, torch.optim.Optimizer, "optimizer", budget.optimizer)
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if budget.head_learning_rate is not None:
        heads = {"params": list(network.heads.parameters()), "lr": budget.head_learning_rate}
        groups = [{"params": list(network.trunk.parameters())}, heads]
    options = dict(budget.optimizer_options)
    if budget.weight_decay:
        options["weight_decay"] = budget.weight_decay
    made: torch.optim.Optimizer = _made(kind, budget.optimizer, groups, {"lr": budget.learning_rate, **options})
    return made


def check(budget: Budget) -> None:
    """Make optimizer and schedule once, on two numbers: a mistake is better known before certificates and trainings.

    Raises:
        ConfigurationError: what is wrong with them.
    """
    Schedule(optimizer_of(_Probe(), budget), budget, 1)


class _Probe(nn.Module):
    """What an optimizer needs of a network. Matrices, because some optimizers take nothing else; no random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = (nn.ParameterList([torch.zeros(1, 1)]) for _ in range(2))


class Schedule:
    """The learning rate along a run: told of every step, and of every look at validation."""

    def __init__(self, optimizer: torch.optim.Optimizer, budget: Budget, steps_per_epoch: int) -> None:
        self._epoch = steps_per_epoch
        self._rule: Any = None
        self._every = "step"
        if budget.schedule == "cosine":
            self._rule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=budget.steps)
        elif budget.schedule != "constant":
            known = torch.optim.lr_scheduler.LRScheduler
            kind = _class(torch.optim.lr_scheduler, known, "schedule", budget.schedule, ("cosine", "constant"))
            self._rule = _made(kind, budget.schedule, optimizer, budget.schedule_options)
            plateau = isinstance(self._rule, torch.optim.lr_scheduler.ReduceLROnPlateau)
            self._every = "look" if plateau else "epoch"

    def after_step(self, step: int) -> None:
        """After the step of this number, from 0."""
        due = self._every == "step" or (self._every == "epoch" and (step + 1) % self._epoch == 0)
        if self._rule is None or not due:
            return
        with warnings.catch_warnings():  # a first step that the scaler of fp16 skips is a step of the schedule
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self._rule.step()

    def after_look(self, score: float | None) -> None:
        """After a look at validation, with its score; lower is better."""
        if self._every == "look" and score is not None:
            self._rule.step(score)


def _class(module: Any, base: type, what: str, name: str, besides: tuple[str, ...] = ()) -> Any:
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        return found
    known = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, base) and v is not base]
    known = sorted({*besides, *known} - set(_NEEDS_A_CLOSURE))
    hint = did_you_mean(name, known, "Allowed", n=1)
    raise ConfigurationError(f"budget: there is no {what} {name!r} in torch. {hint}")


def _made(kind: Any, name: str, first: Any, options: Mapping[str, Any]) -> Any:
    try:
        # TOML has no tuples, and Adam wants its betas in one.
        return kind(first, **{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"budget: {name} cannot be made with {dict(options)}: {error}") from error
