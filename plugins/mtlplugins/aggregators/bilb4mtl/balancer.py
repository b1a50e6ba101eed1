"""What the single- and the double-loop form share: TOTAL = g + lambda f, its coefficients, and the router's step.

With router parameters W, network parameters x, normalised losses l~_i(x) and router outputs sigma_i(W):

    lower level  g(W, x) = sum_i sigma_i l~_i / S          S = 1, sum sigma, or sum sigma held constant
    upper level  f(W, x) = discrepancy of v_i = tau_i l~_i         tau_i = 1 or sigma_i
    TOTAL        g + lambda f

and, with k = df/dv (for adjacent differences k_i = s_i - s_{i-1}, s_i = sign(v_i - v_{i+1}), s_0 = s_K = 0),

    dTOTAL/dl~_i     = c_i = sigma_i / S + lambda tau_i k_i
    dTOTAL/dsigma_i  = dg/dsigma_i + lambda l~_i k_i  (tau = sigma; without the second term for tau = 1)

c_i l~_i'(l_i) is the weight of loss i in the one backward pass; the second line, pulled back through the router,
trains W. No task gradient is ever formed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlcore import choice, flag, integer, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlcore.errors import ConfigurationError, FeaturesError
from mtlplugins import adam
from mtlplugins.aggregators.bilb4mtl import discrepancy as discrepancies
from mtlplugins.aggregators.bilb4mtl import normalisation as normalisations
from mtlplugins.aggregators.bilb4mtl import router as routers
from mtlplugins.aggregators.bilb4mtl.presets import PRESETS
from mtlplugins.arrays import Array, Arrays, arrays, losses_of, put, take, tensor, tensors
from mtlplugins.positive import solve_part

Weigh = Callable[[StepView], Tensor]
Solve = Callable[[StepView, Weigh], StepView]


@dataclasses.dataclass(frozen=True, init=False)
class Balancer(Aggregator):
    """Abstract: hyper-parameters and mathematics of both forms.

    Args:
        preset: "cityscapes", "nyuv2", "celeba" or "qm9": the published settings of that data set, over which every
            option given beside it wins. None: the defaults below, which are our [choice].
        normalisation: "identical", "rescaled" or "log".
        log_reference_every: steps between two references of "log" (an epoch in the published code); None: once.
        tau: "one" or "sigma", the factors in the discrepancy.
        divide_by: S in g: "one", "sum" (of sigma) or "detached-sum" (the same number, but a constant for W).
        discrepancy: "adjacent" (paper), "all-pairs" or "sorted-adjacent".
        lamb: lambda, multiplies the discrepancy (as in the published code; 1/lambda of the penalty form).
        router: "free", "linear" or "mlp"; the last two read the step's features.
        hidden: width of the "mlp".
        squash: "softmax", "sigmoid" or "relu-sigmoid" (sigma >= 1/2; a score below 0 gets no gradient any more).
        clamp_low: lower bound of sigma after the squash, or None.
        clamp_high: upper bound, or None.
        init_low: lowest first score of a free router.
        init_high: highest; equal to init_low: no randomness.
        channel_dim: dimension of the features that is not averaged.
        detach_features: False adds the router's derivative with respect to the features to the backward pass.
        router_optimizer: "adam" or "sgd".
        router_lr: its step size.
        beta1: Adam's.
        beta2: Adam's.
        eps: Adam's, relative to max_i |dTOTAL/dsigma_i|, so that the losses' common unit does not matter. [choice]
        pareto_safe: keep the coefficients non-negative by clipping at 0. [choice]

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
    squash: str = choice("sigmoid", routers.SQUASHES)
    clamp_low: float | None = number(None, low=0.0, high=1.0)
    clamp_high: float | None = number(None, low=0.0, high=1.0)
    init_low: float = number(1.0)
    init_high: float = number(1.0)
    channel_dim: int = integer(1)
    detach_features: bool = flag(True)
    router_optimizer: str = choice("adam", ("adam", "sgd"))
    router_lr: float = number(1e-3, low=0.0, log=True)
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
        """What is promised depends on the options."""
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
        """References, router, moments. What the router's size or first values depend on (features, the generator) is
        known in the first step only; until then ``drawn`` is False and the router is of size 0, if not free."""
        size = n_tasks if self.router == "free" else 0
        return tensors(
            {
                "n_tasks": np.array(n_tasks),  # K itself, for a first batch that lacks some tasks
                "drawn": np.array(False),
                "router": np.zeros(size),
                **(adam.fresh(size) if self.router_optimizer == "adam" else {}),
                **normalisations.fresh(self.normalisation, n_tasks),
            }
        )

    def _step(self, view: StepView, state: State, solve: Solve | None = None) -> Aggregation:
        """One step. ``solve`` takes the view at x and the weights of g as a function of a view, and returns the view
        at z_N, an approximate minimiser of g(W, .); without it grad_W g(W, z_N) is dropped."""
        losses, old = losses_of(view), arrays(state)
        keep = normalisations.usable(self.normalisation, view, losses, old)
        if keep is not None:
            return solve_part(view, keep, state, lambda part: self._step(part, state, solve))
        references = normalisations.updated(self.normalisation, self.log_reference_every, view, losses, old)
        layout, flat, moments = self._router(view, old)
        level = _LowerLevel(self, layout, flat, references)

        here = level.at(view)
        tau = here.sigma if self.tau == "sigma" else 1.0
        gap, pull = discrepancies.discrepancy(self.discrepancy, tau * here.normalised)
        coefficients = here.coefficients + self.lamb * tau * pull
        by_sigma = here.by_sigma
        if self.tau == "sigma":
            by_sigma = by_sigma + self.lamb * here.normalised * pull
        gradient, by_phi = level.to_router(here, by_sigma)
        diagnostics: dict[str, Any] = {
            "sigma": torch.from_numpy(here.sigma),
            "coefficients": torch.from_numpy(coefficients),
            "pull": torch.from_numpy(pull),
            "lower": float(here.coefficients @ here.normalised),
            "discrepancy": gap,
        }
        if self.discrepancy == "adjacent":
            diagnostics["signs"] = torch.from_numpy(pull[:-1].cumsum())
        if solve is not None:
            there = level.at(solve(view, level.weights))
            kept, dropped = (level.to_router(point, point.by_sigma)[0] for point in (here, there))
            gradient = gradient - dropped
            sizes = float(np.linalg.norm(kept)), float(np.linalg.norm(dropped))
            diagnostics |= {"inner_losses": torch.from_numpy(there.losses), "kept_norm": sizes[0]}
            diagnostics |= {"dropped_norm": sizes[1], "dropped_ratio": sizes[1] / sizes[0] if sizes[0] else math.inf}

        weights = coefficients * here.slope
        if self.pareto_safe:
            negative = weights < 0
            diagnostics["clipped"] = torch.from_numpy(negative)
            if negative.any():
                weights = np.maximum(weights, 0.0)
        feature_gradient: tuple[Tensor, ...] = ()
        if by_phi is not None and not self.detach_features:
            feature_gradient = routers.spread(view, self.channel_dim, by_phi)
        touched = layout.touched(view)
        if self.router_optimizer == "sgd":
            trained = {"router": flat - self.router_lr * (gradient if touched is None else gradient * touched)}
        else:
            eps = self.eps * float(np.abs(by_sigma).max())
            flat, moments = adam.step(
                flat, gradient, moments, lr=self.router_lr, beta1=self.beta1, beta2=self.beta2, eps=eps, touched=touched
            )
            trained = {"router": flat, **moments}
        if references is not old:
            trained |= references
        if not old["drawn"]:
            trained["drawn"] = np.array(True)
        return Aggregation(
            weights=tensor(weights, view),
            state={**state, **tensors(trained)},
            diagnostics=diagnostics,
            feature_gradient=feature_gradient,
        )

    def _router(self, view: StepView, state: Arrays) -> tuple[routers.Router, Array, Arrays]:
        """Layout, parameters and moments of the router; drawn now if this is the first step."""
        width = 0 if self.router == "free" else routers.width(view, self.channel_dim)
        layout = routers.Router(self.router, int(state["n_tasks"]), width, self.hidden)
        if not state["drawn"]:
            flat = layout.draw(view.generator, self.init_low, self.init_high)
            return layout, flat, adam.fresh(len(flat))
        flat = state["router"]
        if self.router != "free" and len(flat) != layout.size:
            raise FeaturesError(
                f"the features have {width} channels in all, but the router was made for another number in the first "
                f"step ({len(flat)} parameters instead of {layout.size})."
            )
        return layout, flat, state


@dataclasses.dataclass(frozen=True)
class _Point:
    """g(W, x) at one x, differentiated; everything (K,), for the tasks present."""

    view: StepView
    losses: Array
    normalised: Array
    slope: Array
    phi: Array | None
    last: Array | None
    scores: Array
    raw: Array
    sigma: Array
    coefficients: Array
    """dg/dl~"""
    by_sigma: Array
    """dg/dsigma"""


@dataclasses.dataclass(frozen=True)
class _LowerLevel:
    """g(W, .) for the W of this step."""

    options: Balancer
    layout: routers.Router
    flat: Array
    references: Arrays

    def at(self, view: StepView) -> _Point:
        options, losses = self.options, losses_of(view)
        normalised, slope = normalisations.normalise(options.normalisation, view, losses, self.references)
        phi = None if self.layout.kind == "free" else routers.pooled(view, options.channel_dim)
        scores, last = self.layout.scores(self.flat, phi)
        scores = take(scores, view)
        sigma, raw = routers.squash(options.squash, scores, options.clamp_low, options.clamp_high)
        coefficients, by_sigma = sigma, normalised
        if options.divide_by != "one":
            total = sigma.sum()
            coefficients, by_sigma = sigma / total, normalised / total
            if options.divide_by == "sum":
                by_sigma = by_sigma - (coefficients @ normalised) / total
        return _Point(view, losses, normalised, slope, phi, last, scores, raw, sigma, coefficients, by_sigma)

    def weights(self, view: StepView) -> Tensor:
        """Weights of the raw losses in grad_x g."""
        point = self.at(view)
        return tensor(point.coefficients * point.slope, view)

    def to_router(self, point: _Point, by_sigma: Array) -> tuple[Array, Array | None]:
        """Cotangents of the router's parameters and of its input."""
        back = routers.unsquash(self.options.squash, point.scores, point.sigma, point.raw, by_sigma)
        if point.view.n_tasks < self.layout.n_tasks:
            back = put(np.zeros(self.layout.n_tasks), point.view, back)
        return self.layout.pullback(self.flat, point.phi, point.last, back)
