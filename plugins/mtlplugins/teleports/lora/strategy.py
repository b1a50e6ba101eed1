"""COST's teleport: a low-rank displacement of the trunk that keeps the losses and reduces the conflict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import Displacement, TeleportProblem, TeleportStrategy, choice, flag, integer, number, texts
from mtlcore.errors import ConfigurationError
from mtlplugins.teleports.lora import low_rank, objectives, penalty, prospect, tangent
from mtlplugins.teleports.lora.field import Field


@dataclass(frozen=True)
class LoRA(TeleportStrategy):
    """Displace the trunk by low-rank factors so that L_i(theta + Delta) = L_i(theta) for all i, with less conflict.

    The transaction around the strategy decides whether the displacement is kept.

    Args:
        objective: what is maximised.
            "conflict": the cosines with the mean gradient, of the tasks with the smallest ones. [choice; the default,
            because gradient norms are most easily increased by increasing the losses: see
            benchmarks/mtlbench/speed/teleports.py]
            "progress": the relative decrease of the losses in the next ``horizon`` steps of the optimizer, for the
            tasks with the smallest decrease. It needs an optimizer whose steps are known (SGD, Adam, AdamW, RMSprop,
            Adagrad). ``Teleporter(..., accept="progress")`` accepts by the same measure. [ours]
            "sharpness": max over perturbations of L_i(theta + Delta + eps) - L_i(theta + Delta), divided by delta.
            [paper]
            "gradient-norm": what sharpness estimates. [choice]
        estimator: how the gradient of the objective is computed. "sphere": n random perturbations [paper], for
            sharpness only; "finite-difference": one more gradient per curvature product (the only one for progress);
            "double-backward": exact, for networks whose operations can be differentiated twice. [choice]
        search: "tangent": predictor-corrector on the surface of constant losses, a few steps [choice];
            "penalty": Adam on L_t - gamma L_g [paper].
        rank: rank of every weight's displacement. [paper: 5]
        gamma: weight of the objective in the penalty [paper: 0.1]. With 0 there is nothing to gain, and nothing moves
            (either search).
        steps: number of steps of the search.
        drift: tangent only: largest relative change of a loss on the trigger batch.
        reach: tangent only: gain of the objective that a step aims at first.
        lr: penalty only: Adam's step size. [code: the learning rate of the training]
        alpha: penalty only: Delta = alpha / rank * B A. [code: 8]
        adapter: penalty only: how the factors are made: "low-rank" (own), or by PEFT: "peft-lora", "peft-loha",
            "peft-lokr".
        relative: losses and gradient norms are relative to their values before the search, so that the unit of a loss
            does not matter [choice]; False: absolute [paper].
        samples: n, the number of perturbations on the sphere. [code: 5]
        delta: radius of the sphere. [code: 1e-4]
        per_tensor: the noise of every tensor has norm delta [code]; False: that of the whole vector [paper's wording].
        perturb: sphere only: the parameters that are perturbed. "trunk" [choice], because a teleport moves the trunk
            only; or "all", the heads, too [code], which must then be given (``MultiTask(..., heads=...)``).
        horizon: progress only: number of future steps. [choice]
        targets: patterns of the names of weights that move. Default: every weight of two or more dimensions.
    """

    paper = "https://arxiv.org/abs/2503.04046"

    exact = False
    packages: ClassVar[Mapping[str, str]] = {"peft": "adapter = peft-lora, peft-loha or peft-lokr"}
    claims = frozenset({"lowers-conflict", "zero-steps-stay", "gamma-zero-keeps-losses"})

    objective: str = choice("conflict", ("conflict", "progress", "sharpness", "gradient-norm"))
    estimator: str = choice("finite-difference", ("finite-difference", "double-backward", "sphere"))
    search: str = choice("tangent", ("tangent", "penalty"))
    rank: int = integer(5, low=1)
    gamma: float = number(0.1, low=0.0)
    steps: int = integer(2, low=0)
    drift: float = number(0.01, low=0.0, open_low=True)
    reach: float = number(0.3, low=0.0, open_low=True)
    lr: float = number(1e-3, low=0.0, open_low=True, log=True)
    alpha: int = integer(8, low=1)
    adapter: str = choice("low-rank", ("low-rank", "peft-lora", "peft-loha", "peft-lokr"))
    relative: bool = flag(True)
    samples: int = integer(5, low=1)
    delta: float = number(1e-4, low=0.0, open_low=True, log=True)
    per_tensor: bool = flag(True)
    perturb: str = choice("trunk", ("trunk", "all"))
    horizon: int = integer(10, low=1)
    targets: tuple[str, ...] = texts()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator == "sphere" and self.objective != "sharpness":
            raise ConfigurationError(
                f"LoRA(objective={self.objective!r}, estimator='sphere'): random perturbations estimate "
                f"sharpness only; use estimator='finite-difference' or objective='sharpness'."
            )
        if self.estimator == "double-backward" and self.objective == "progress":
            raise ConfigurationError(
                "LoRA(objective='progress', estimator='double-backward'): its curvature product is taken by "
                "differences; use estimator='finite-difference'."
            )

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        """The displacement; an empty one if there is nothing to adapt, nothing to gain, or nothing is found."""
        weights = low_rank.adapted(problem.parameters(), self.targets)
        if not weights:
            return _stay("the trunk has no trainable weight of two or more dimensions")
        if self.gamma == 0.0 or self.steps == 0:
            return _stay("nothing to gain: gamma or steps is 0")
        if self.perturb == "all" and problem.heads is None:
            raise ConfigurationError(
                "LoRA(perturb='all') moves the parameters of the heads, which are unknown: pass MultiTask(..., "
                "heads=...), or use perturb='trunk'."
            )
        if self.estimator == "double-backward" and problem.processes > 1:
            raise ConfigurationError(
                "LoRA(estimator='double-backward') differentiates the gradients of one process's batch: with several "
                "processes use estimator='finite-difference'."
            )
        pace = problem.pace() if self.objective == "progress" else None
        if self.objective == "progress" and pace is None:
            return _stay("the next steps of the optimizer are not known, or it has taken none")
        field = Field(problem)
        if len(field.tasks) < 2:
            return _stay("one task only: nothing can conflict")
        if self.search == "tangent":
            found, log = tangent.search(
                field,
                list(weights),
                self._objective(field, pace),
                rank=self.rank,
                steps=self.steps,
                drift=self.drift,
                reach=self.reach,
                generator=generator,
            )
        else:
            found = penalty.search(
                field,
                low_rank.make(self.adapter, weights, self.rank, self.alpha, generator),
                self._objective(field, pace),
                gamma=self.gamma,
                steps=self.steps,
                lr=self.lr,
                relative=self.relative,
                generator=generator,
            )
            log = {}
        moved = {n: d for n, d in found.items() if bool(d.any())}
        if not moved:
            return _stay("no direction keeps every loss and gives more of the objective", **log)
        return Displacement({n: weights[n].detach() + d for n, d in moved.items()}, diagnostics=log)

    def _objective(self, field: Field, pace: list[Tensor] | None = None) -> objectives.Objective:
        exact = self.estimator == "double-backward"
        if self.objective == "conflict":
            return objectives.Conflict(exact)
        if pace is not None:
            return prospect.Progress(pace, self.horizon)
        factor = objectives.balance(field.rows_at_start)
        if self.relative:
            norms = objectives.norms(field.rows_at_start)
            factor = torch.where(norms > 0.0, factor / norms, torch.zeros_like(factor))
        if self.estimator == "sphere":
            return objectives.Sharpness(factor, self.samples, self.delta, self.per_tensor, self.perturb == "all")
        return objectives.GradientNorm(factor, exact)


def _stay(reason: str, **log: float) -> Displacement:
    return Displacement({}, diagnostics={"reason": reason, **log})
