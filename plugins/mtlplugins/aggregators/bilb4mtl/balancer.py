"""The common part of the single- and the double-loop form: TOTAL = g + lambda f, its coefficients, the router's step.

With router parameters W, network parameters x, normalised losses l~_i(x) and router outputs sigma_i(W):

    lower level  g(W, x) = sum_i sigma_i l~_i / S          S = 1, sum sigma, or sum sigma held constant
    upper level  f(W, x) = discrepancy of v_i = tau_i l~_i         tau_i = 1 or sigma_i
    TOTAL        g + lambda f

and, with k = df/dv (for adjacent differences k_i = s_i - s_{i-1}, s_i = sign(v_i - v_{i+1}), s_0 = s_K = 0),

    dTOTAL/dl~_i     = c_i = sigma_i / S + lambda tau_i k_i
    dTOTAL/dsigma_i  = dg/dsigma_i + lambda l~_i k_i  (tau = sigma; without the second term for tau = 1)

c_i l~_i'(l_i) is the weight of loss i in the single backward pass. The second line, differentiated through the router,
is the gradient of W. No task gradient is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtlcore import choice, flag, integer, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlcore.errors import ConfigurationError, LossError
from mtlplugins import adam, schedule
from mtlplugins.aggregators.bilb4mtl import discrepancy as discrepancies
from mtlplugins.aggregators.bilb4mtl import features, squash
from mtlplugins.aggregators.bilb4mtl import normalisation as normalisations
from mtlplugins.aggregators.bilb4mtl import router as routers
from mtlplugins.aggregators.bilb4mtl.dense_router import DenseRouter, Layout
from mtlplugins.aggregators.bilb4mtl.free_router import FreeRouter
from mtlplugins.aggregators.bilb4mtl.presets import PRESETS
from mtlplugins.arrays import Array
from mtlplugins.positive import solve_part
from mtlplugins.vectors import Vector, dot, losses_of, mask, take, tensor, tensors

_LOWEST = 1.0 / adam.LARGEST
Weigh = Callable[[StepView], Tensor]
Solve = Callable[[StepView, Weigh], StepView]


@dataclasses.dataclass(frozen=True, init=False)
class Balancer(Aggregator):
    """Abstract: hyper-parameters and mathematics of both forms.

    Args:
        preset: "cityscapes", "nyuv2", "celeba" or "qm9": the published settings of that data set; other options that
            are given have precedence. None: the defaults below, which are our [choice].
        normalisation: "identical", "rescaled" or "log".
        log_reference_every: steps between two references of "log" (an epoch in the published code [code]); None: one
            reference for the whole run.
        tau: "one" or "sigma", the factors in the discrepancy.
        divide_by: S in g: "one", "sum" (of sigma) or "detached-sum" (the same number, but a constant for W).
        discrepancy: "adjacent" (paper), "all-pairs" or "sorted-adjacent".
        lamb: lambda, multiplies the discrepancy (as in the published code; 1/lambda of the penalty form).
        router: "free", "linear" or "mlp"; the last two read the step's features.
        hidden: width of the "mlp".
        squash: "softmax", "sigmoid" or "relu-sigmoid" (sigma >= 1/2; a score below 0 has no gradient).
        clamp_low: lower bound of sigma after the squash, or None.
        clamp_high: upper bound, or None.
        init_low: lower bound of the first scores of a free router.
        init_high: upper bound; if it is equal to init_low, there is no randomness.
        channel_dim: dimension of the features that is not averaged.
        detach_features: False adds the router's derivative with respect to the features to the backward pass.
        router_optimizer: "adam" or "sgd".
        router_lr: the router's step size.
        lr_schedule: how ``router_lr`` changes: "constant" (default [choice], also of the presets, because a method does
            not see the schedule of the training loop), "step" or "cosine" (see mtlplugins.schedule). The published code
            has one optimizer and one schedule for network and router [code]: give the same schedule here.
        lr_steps: length of the schedule in steps.
        lr_factor: factor of the schedule "step".
        beta1: Adam's decay of the first moment.
        beta2: Adam's decay of the second moment.
        eps: Adam's eps, relative to the size of the terms of dTOTAL/dsigma, max_i |l~_i| / S + max_i |lambda l~_i k_i|.
            So the losses' common unit does not matter, and rounding errors of terms that cancel make no step. [choice]
        pareto_safe: clip the coefficients at 0, so that they are non-negative. [choice]

    Raises:
        ConfigurationError: an option out of its range, or options that contradict each other.
    """

    needs = Needs.LOSSES

    preset: str | None = choice(None, (None, *PRESETS))
    normalisation: str = choice("rescaled", normalisations.KINDS)
    log_reference_every: int | None = integer(None, low=1)
    tau: str = choice("sigma", ("one", "sigma"))
    divide_by: str = choice("detached-sum", ("one", "sum", "detached-sum"))
    discrepancy: str = choice("adjacent", discrepancies.KINDS)
    lamb: float = number(0.05, low=0.0)
    router: str = choice("free", routers.KINDS)
    hidden: int = integer(32, low=1)
    squash: str = choice("sigmoid", squash.KINDS)
    clamp_low: float | None = number(None, low=0.0, high=1.0)
    clamp_high: float | None = number(None, low=0.0, high=1.0, open_low=True)
    init_low: float = number(1.0)
    init_high: float = number(1.0)
    channel_dim: int = integer(1)
    detach_features: bool = flag(True)
    router_optimizer: str = choice("adam", ("adam", "sgd"))
    router_lr: float = number(1e-3, low=0.0, log=True)
    lr_schedule: str = choice("constant", schedule.KINDS)
    lr_steps: int | None = integer(None, low=1)
    lr_factor: float = number(0.5, low=0.0, high=1.0, open_low=True)
    beta1: float = number(0.9, low=0.0, high=1.0, open_high=True)
    beta2: float = number(0.999, low=0.0, high=1.0, open_high=True)
    eps: float = number(1e-8, low=0.0)
    pareto_safe: bool = flag(True)

    def __init__(self, preset: str | None = None, **options: Any) -> None:
        # Written out because a preset must yield to an option given beside it, which the generated __init__,
        # blind to what was given and what is a default, cannot tell.
        fields = {f.name: f.default for f in dataclasses.fields(self)}
        unknown = sorted(set(options) - set(fields))
        if unknown:
            options_text = ", ".join(fields)
            raise ConfigurationError(f"{type(self).__name__} has no option {unknown[0]!r}: it takes {options_text}.")
        for name, value in {**fields, **PRESETS.get(str(preset), {}), **options, "preset": preset}.items():
            object.__setattr__(self, name, value)
        self.__post_init__()
        schedule.check(type(self).__name__, self.lr_schedule, self.lr_steps)
        if self.clamp_low is not None and self.clamp_high is not None and self.clamp_low > self.clamp_high:
            raise ConfigurationError(f"clamp_low={self.clamp_low} is larger than clamp_high={self.clamp_high}.")
        if self.init_low > self.init_high:
            raise ConfigurationError(f"init_low={self.init_low} is larger than init_high={self.init_high}.")
        if self.pareto_safe and not self.detach_features and self.router != "free":
            raise ConfigurationError(
                "pareto_safe=True promises a non-negative combination of task gradients, but detach_features=False "
                "adds the router's own derivative to it: detach the features, or set pareto_safe=False."
            )

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; it depends on the options."""
        promised = {"resume-equivalent"}
        if self.pareto_safe:
            promised.add("conic-combination")
        if self.router == "free" and self.init_low == self.init_high:
            promised.add("coefficient-identity")
        if self.normalisation == "log" or (self.normalisation == "rescaled" and self.router_optimizer == "adam"):
            promised.add("loss-unit-invariant")
        if self.discrepancy != "adjacent" and self.router == "free" and self.init_low == self.init_high:
            promised.add("permutation-equivariant")
        return frozenset(promised)

    def init(self, n_tasks: int) -> State:
        """References and router. A router with random first values, or with a size that depends on the features, is
        initialised in the first step; until then it is NaN, or empty."""
        rows = 4 if self.router_optimizer == "adam" else 1
        router = torch.zeros(rows, n_tasks if self.router == "free" else 0, dtype=torch.float64, device="cpu")
        router[0] = self.init_low if self.init_low == self.init_high else math.nan
        references = normalisations.fresh(self.normalisation, n_tasks)
        # K itself, for a first batch that lacks some tasks.
        return {"n_tasks": torch.tensor(n_tasks, device="cpu"), "router": router, **references.state()}

    def _step(self, view: StepView, state: State, solve: Solve | None = None) -> Aggregation:
        """One step. ``solve`` takes the view at x and the weights of g as a function of a view, and returns the view
        at z_N, an approximate minimiser of g(W, .); without it grad_W g(W, z_N) is dropped."""
        losses, old = losses_of(view), normalisations.read(self.normalisation, state)
        keep = normalisations.usable(self.normalisation, view, old)
        if keep is not None:
            return solve_part(view, keep, state, lambda part: self._step(part, state, solve))
        references = normalisations.updated(self.normalisation, self.log_reference_every, view, losses, old)
        router = self._router(view, state)
        level = _LowerLevel(self, router, references)

        here = level.at(view, losses)
        upper = self._upper(here)
        gradient, by_phi = level.to_router(here, upper.by_sigma)
        diagnostics, size = upper.diagnostics, upper.size
        if solve is not None:
            dropped, further, notes = _at_minimiser(view, solve, level, here)
            gradient, size, diagnostics = np.subtract(gradient, dropped), size + further, {**diagnostics, **notes}
        weights = list(map(operator.mul, upper.coefficients, here.slope))
        if self.pareto_safe:
            diagnostics["clipped"] = mask([weight < 0.0 for weight in weights])
            weights = [0.0 if weight < 0.0 else weight for weight in weights]
        feature_gradient: tuple[Tensor, ...] = ()
        if by_phi is not None and not self.detach_features:
            feature_gradient = features.spread(view, self.channel_dim, by_phi)
        new = {**state, "router": router.trained(view, gradient, self._rule(view, size, references))}
        if references is not old:
            new |= references.state()
        return Aggregation(
            weights=tensor(weights),
            state=new,
            diagnostics=diagnostics,
            feature_gradient=feature_gradient,
        )

    def _upper(self, here: _Point) -> _Upper:
        """The upper level's part of the coefficients of the losses and of the router's gradient."""
        values = here.normalised if self.tau == "one" else list(map(operator.mul, here.sigma, here.normalised))
        gap, pull = discrepancies.discrepancy(self.discrepancy, values)
        by_sigma, size = here.by_sigma, here.size
        pushes = [self.lamb * k for k in pull]
        if self.tau == "sigma":
            upper = list(map(operator.mul, here.normalised, pushes))
            size += max(max(upper), -min(upper))
            by_sigma = list(map(operator.add, by_sigma, upper))
            pushes = list(map(operator.mul, here.sigma, pushes))
        coefficients = list(map(operator.add, here.coefficients, pushes))
        notes = {"sigma": here.sigma, "coefficients": coefficients, "pull": pull}
        if self.discrepancy == "adjacent":
            notes["signs"] = list(itertools.accumulate(pull[:-1]))
        lower = dot(here.coefficients, here.normalised)
        return _Upper(coefficients, by_sigma, size, {**tensors(**notes), "lower": lower, "discrepancy": gap})

    def _rule(self, view: StepView, size: float, references: normalisations.References) -> routers.Rule:
        """The router's optimizer in this step; the size of the gradient is the unit of Adam's eps."""
        unit = normalisations.unit(self.normalisation, references)
        if size and not _LOWEST <= size / unit <= adam.LARGEST:
            unit = size / min(max(size / unit, _LOWEST), adam.LARGEST)
        lr = schedule.rate(self.router_lr, self.lr_schedule, self.lr_steps, self.lr_factor, view.step)
        return routers.Rule(lr, self.beta1, self.beta2, self.eps * size / unit, unit)

    def _router(self, view: StepView, state: State) -> routers.Router:
        """The router of this step; in the first step it is initialised."""
        if self.router == "free":
            free = FreeRouter.read(view, state)
            fresh = math.isnan(free.all_rows[0][0])
            return FreeRouter.drawn(view, state, self.init_low, self.init_high) if fresh else free
        n, width = int(state["n_tasks"]), features.width(view, self.channel_dim)
        layout = Layout(self.router, n, width, self.hidden, self.channel_dim)
        fresh = not state["router"].numel()
        return DenseRouter.drawn(layout, state, view.generator) if fresh else DenseRouter.read(layout, state)


class _Point(NamedTuple):
    """g(W, x) and its derivatives at one x; every vector is (K,), for the tasks present."""

    view: StepView
    losses: Vector
    normalised: Vector
    slope: Vector
    seen: Any
    """The router's input."""
    scores: Vector
    raw: Vector
    sigma: Vector
    coefficients: Vector
    """dg/dl~"""
    by_sigma: Vector
    """dg/dsigma"""
    size: float
    """Size of the terms of by_sigma, before they cancel."""


class _Upper(NamedTuple):
    """The upper level's part at a point."""

    coefficients: Vector
    by_sigma: Vector
    size: float
    diagnostics: dict[str, Any]


def _at_minimiser(view: StepView, solve: Solve, level: _LowerLevel, here: _Point) -> tuple[Any, float, dict[str, Any]]:
    """grad_W g(W, z_N), the term that the single loop leaves out; its size, and diagnostics."""
    there = level.inside(solve(view, level.weights))
    kept, dropped = (level.to_router(point, point.by_sigma)[0] for point in (here, there))
    sizes = float(np.linalg.norm(kept)), float(np.linalg.norm(dropped))
    notes = {"inner_losses": tensor(there.losses), "kept_norm": sizes[0], "dropped_norm": sizes[1]}
    return dropped, there.size, {**notes, "dropped_ratio": sizes[1] / sizes[0] if sizes[0] else math.inf}


class _LowerLevel(NamedTuple):
    """g(W, .) for the W of this step."""

    options: Balancer
    router: routers.Router
    references: normalisations.References

    def at(self, view: StepView, losses: Vector) -> _Point:
        options = self.options
        normalised, slope = normalisations.normalise(options.normalisation, view, losses, self.references)
        scores, seen = self.router.scores(view)
        sigma, raw = squash.squash(options.squash, scores, options.clamp_low, options.clamp_high)
        coefficients, by_sigma = sigma, normalised
        size = max(max(normalised), -min(normalised))
        if size == math.inf:
            name = view.task_names[list(map(abs, normalised)).index(size)]
            raise LossError(
                f"the loss of task {name!r} is too large beside its first one for normalisation='rescaled'."
            )
        if options.divide_by != "one":
            total = sum(sigma)
            coefficients, by_sigma = [s / total for s in sigma], [value / total for value in normalised]
            size /= total
            if options.divide_by == "sum":
                mean = dot(coefficients, normalised) / total
                by_sigma = [g - mean for g in by_sigma]
        return _Point(view, losses, normalised, slope, seen, scores, raw, sigma, coefficients, by_sigma, size)

    def inside(self, view: StepView) -> _Point:
        """g at a point of the inner loop, where a loss may have no logarithm. A loss of exactly zero gets weight 0
        there, and its l~ is 0. [choice]"""
        losses, kind = losses_of(view), self.options.normalisation
        keep = normalisations.usable(kind, view, self.references, inner=True)
        if keep is None:
            return self.at(view, losses)
        known = take(self.references.losses, view)
        point = self.at(view, [loss if kept else at for loss, at, kept in zip(losses, known, keep)])
        return point._replace(losses=losses, slope=list(map(operator.mul, point.slope, keep)))

    def weights(self, view: StepView) -> Tensor:
        """Weights of the raw losses in grad_z g."""
        point = self.inside(view)
        return tensor(list(map(operator.mul, point.coefficients, point.slope)))

    def to_router(self, point: _Point, by_sigma: Vector) -> tuple[Any, Array | None]:
        """Cotangents of the router's parameters and of its input."""
        back = squash.unsquash(self.options.squash, point.scores, point.sigma, point.raw, by_sigma)
        return self.router.pullback(point.view, point.seen, back)
