"""Scalar objectives of loss-level methods. Their derivatives, taken by autograd, are what the weights must be.

An objective may have variables of its own (log-variances, logits, a router). It trains them with torch's optimizers,
so that a run of the reference and a run of the method can be compared step by step. Nothing here knows a formula for a
weight: only objectives, as the papers write them.
"""

# ruff: noqa: D102  (the docstring of a class says what its methods compute)

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtlcore.hosting import registry

_KNOWN: dict[str, type[Objective]] = {}
ObjectiveClass = TypeVar("ObjectiveClass", bound="type[Objective]")


def objective(*names: str) -> Callable[[ObjectiveClass], ObjectiveClass]:
    """``@objective("uw")``: the class is the scalar objective of the method registered under that name."""

    def declare(cls: ObjectiveClass) -> ObjectiveClass:
        _KNOWN.update(dict.fromkeys(names, cls))
        return cls

    return declare


class Objective:
    """Base: an objective without variables.

    Args:
        plugin: whose hyper-parameters are read.
        n_tasks: K.
    """

    clipped = False
    """Whether the method keeps the non-negative part of the derivative only."""
    positive_only = True
    """Whether it takes logarithms or quotients of the losses, so that it exists for positive ones only."""

    def __init__(self, plugin: Any, n_tasks: int) -> None:
        self.plugin, self.n_tasks = plugin, n_tasks
        self.prepare()

    def prepare(self) -> None:
        """Variables before the first step."""

    def value(self, losses: Tensor, number: int) -> Tensor:
        """The scalar in step ``number`` at (K,) losses."""
        raise NotImplementedError

    def advance(self, losses: Tensor, later: Tensor, number: int) -> None:
        """Move the variables after step ``number``, which took the losses to ``later``."""

    def weights(self, losses: Tensor, number: int) -> Tensor:
        """(K,) derivatives with respect to the losses."""
        leaf = losses.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(self.value(leaf, number), leaf)
        return found.clamp_min(0.0) if self.clipped else found

    def descend(self, optimizer: torch.optim.Optimizer, variable: Tensor, value: Tensor) -> None:
        """One step of the optimizer of one variable on ``value``."""
        (variable.grad,) = torch.autograd.grad(value, variable)
        optimizer.step()


@objective("sum", "ls")
class Linear(Objective):
    """sum_i u_i L_i: u = 1 (``sum``), 1/K or given weights on the simplex (``ls``). [textbook]"""

    positive_only = False

    def value(self, losses: Tensor, number: int) -> Tensor:
        given = getattr(self.plugin, "weights", None)
        if given is None:
            return losses.sum() if _name(self.plugin) == "sum" else losses.mean()
        u = torch.tensor(given, dtype=torch.float64)
        return (u / u.sum()) @ losses


@objective("si")
class LogSum(Objective):
    """sum_i log L_i (``si``). [paper*: the scale-invariant baseline of Nash-MTL and FAMO]"""

    def value(self, losses: Tensor, number: int) -> Tensor:
        return losses.log().sum()


@objective("gls")
class GeometricMean(Objective):
    """(prod_i L_i)^(1/K) (``gls``), through logarithms. [Chennupati et al. 2019]"""

    def value(self, losses: Tensor, number: int) -> Tensor:
        return losses.log().mean().exp()


def _logsumexp(x: Tensor) -> Tensor:
    # torch's derivative is exp(x - value), which keeps no digits of equal shares where x is of size 1e10.
    top = x.detach().max()
    return top + torch.logsumexp(x - top, 0)


@objective("stch")
class SmoothMaximum(Objective):
    """mu log sum_i exp(x_i / mu) (``stch``). [Lin et al. 2024; the two forms and the nadir as in the method's docs]"""

    def prepare(self) -> None:
        self.nadir = torch.zeros(self.n_tasks, dtype=torch.float64)

    def value(self, losses: Tensor, number: int) -> Tensor:
        mu, plugin = self.plugin.mu, self.plugin
        if plugin.form == "plain":
            p = torch.tensor(plugin.preferences or [1.0] * self.n_tasks, dtype=torch.float64)
            z = torch.tensor(plugin.ideal or [0.0] * self.n_tasks, dtype=torch.float64)
            return mu * _logsumexp(p * (losses - z) / mu)
        if number < plugin.warmup_steps + plugin.nadir_steps:
            return losses.log().sum()
        return self.n_tasks * mu * _logsumexp((losses / self.nadir).log() / mu)

    def advance(self, losses: Tensor, later: Tensor, number: int) -> None:
        if 0 <= number - self.plugin.warmup_steps < self.plugin.nadir_steps:
            self.nadir += losses / self.plugin.nadir_steps


@objective("uw")
class Uncertainty(Objective):
    """sum_i (exp(-s_i) L_i + s_i) / 2 with s trained by Adam (``uw``). [Kendall et al. 2018; code for Adam]"""

    def prepare(self) -> None:
        self.s = torch.full((self.n_tasks,), self.plugin.start, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.s], lr=self.plugin.lr)

    def value(self, losses: Tensor, number: int) -> Tensor:
        return ((-self.s).exp() * losses + self.s).sum() / 2

    def advance(self, losses: Tensor, later: Tensor, number: int) -> None:
        self.descend(self.adam, self.s, self.value(losses, number))


@objective("imtl-l")
class Impartial(Objective):
    """sum_i (exp(s_i) L_i - s_i) with s trained by Adam (``imtl-l``). [Liu et al. 2021; Adam is a choice]"""

    def prepare(self) -> None:
        self.s = torch.zeros(self.n_tasks, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.s], lr=self.plugin.lr)

    def value(self, losses: Tensor, number: int) -> Tensor:
        return (self.s.exp() * losses - self.s).sum()

    def advance(self, losses: Tensor, later: Tensor, number: int) -> None:
        self.descend(self.adam, self.s, self.value(losses, number))


@objective("famo")
class EqualRates(Objective):
    """c sum_i z_i log L_i with z = softmax(u) and c (a constant) such that the weights sum to one (``famo``).

    Afterwards u descends on sum_i z_i (log L_i before - log L_i after). [Liu et al. 2023; code for Adam and decay]
    """

    def prepare(self) -> None:
        self.u = torch.zeros(self.n_tasks, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.u], lr=self.plugin.lr, weight_decay=self.plugin.gamma)

    def value(self, losses: Tensor, number: int) -> Tensor:
        z = self.u.softmax(0)
        return (z @ losses.log()) / (z / losses).sum().detach()

    def advance(self, losses: Tensor, later: Tensor, number: int) -> None:
        self.descend(self.adam, self.u, self.u.softmax(0) @ (losses.log() - later.log()))


@objective("bilb4mtl", "bilb4mtl-double-loop")
class Total(Objective):
    """TOTAL = sum_i sigma_i l~_i / S + lambda * discrepancy(tau_i l~_i), with the router trained on the same
    scalar (``bilb4mtl``; its double loop without an inner loop is the same). [code: OptMN-Lab/LDC-MTL, one backward on
    g + lamb f; paper: arXiv 2502.08585 for f and g]

    The router is a free vector with a fixed start. Adam's eps is relative to the terms of dTOTAL/dsigma [choice].
    """

    def prepare(self) -> None:
        plugin = self.plugin
        self.clipped = plugin.pareto_safe
        self.w = torch.full((self.n_tasks,), plugin.init_low, dtype=torch.float64, requires_grad=True)
        if plugin.router_optimizer == "adam":
            betas = (plugin.beta1, plugin.beta2)
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam([self.w], lr=plugin.router_lr, betas=betas)
        else:
            self.optimizer = torch.optim.SGD([self.w], lr=plugin.router_lr)
        self.reference, self.period = torch.ones(self.n_tasks, dtype=torch.float64), -1

    def value(self, losses: Tensor, number: int) -> Tensor:
        return self.total(self.sigma(), losses, number)

    def total(self, sigma: Tensor, losses: Tensor, number: int) -> Tensor:
        """TOTAL as a function of the router's output and the losses."""
        plugin, normalised = self.plugin, self.normalised(losses, number)
        s = {"one": sigma.new_ones(()), "sum": sigma.sum(), "detached-sum": sigma.sum().detach()}[plugin.divide_by]
        spread = self.discrepancy(normalised * (sigma if plugin.tau == "sigma" else 1.0))
        return sigma @ normalised / s + plugin.lamb * spread

    def sigma(self) -> Tensor:
        """(K,) router outputs."""
        plugin = self.plugin
        squash: dict[str, Callable[[Tensor], Tensor]] = {
            "softmax": lambda w: w.softmax(0), "sigmoid": torch.sigmoid, "relu-sigmoid": lambda w: w.relu().sigmoid(),
        }  # fmt: skip
        squashed = squash[plugin.squash](self.w)
        if plugin.clamp_low is None and plugin.clamp_high is None:
            return squashed
        return squashed.clamp(plugin.clamp_low, plugin.clamp_high)

    def normalised(self, losses: Tensor, number: int) -> Tensor:
        """(K,) l~."""
        plugin = self.plugin
        if plugin.normalisation == "identical":
            return losses
        every = plugin.log_reference_every if plugin.normalisation == "log" else None
        period = 0 if every is None else number // every
        if period != self.period:
            self.reference, self.period = losses.detach().clone(), period
        # The quotient first: at the reference it is exactly 1, and in exact arithmetic all tasks are tied there.
        quotient = losses / self.reference
        return quotient.log() if plugin.normalisation == "log" else quotient * self.reference.min()

    def discrepancy(self, v: Tensor) -> Tensor:
        """How far apart the tasks' values are; autograd's derivative of |x| at 0 is 0: ties pull nobody."""
        kind, k = self.plugin.discrepancy, len(v)
        if kind == "adjacent":
            return v.diff().abs().sum()
        if kind == "all-pairs":
            return (v[:, None] - v[None, :]).abs().sum() / k  # each pair is there twice
        return v.amax() - v.amin()

    def size(self, losses: Tensor, number: int) -> float:
        """Of the derivatives with respect to sigma, every sigma_i l~_i and the discrepancy by itself: what they may
        have lost to cancellation in their sum is rounding, and must not count as a gradient."""
        plugin, normalised = self.plugin, self.normalised(losses, number)
        sigma = self.sigma().detach().requires_grad_()
        spread = self.discrepancy(normalised * (sigma if plugin.tau == "sigma" else 1.0))
        upper = torch.autograd.grad(spread, sigma)[0] if plugin.tau == "sigma" else torch.zeros(())
        s = 1.0 if plugin.divide_by == "one" else float(sigma.detach().sum())
        return float(normalised.abs().max() / s + plugin.lamb * upper.abs().max())

    def advance(self, losses: Tensor, later: Tensor, number: int) -> None:
        if isinstance(self.optimizer, torch.optim.Adam):
            # No derivative at all: 0 / tiny instead of 0 / 0; without memory of earlier ones either, no step.
            smallest = torch.finfo(torch.float64).tiny if self.plugin.beta2 > 0.0 else float("inf")
            self.optimizer.param_groups[0]["eps"] = self.plugin.eps * self.size(losses, number) or smallest
        self.descend(self.optimizer, self.w, self.value(losses, number))


def missing(plugin: Any) -> str | None:
    """None if the objective of this method is known for its hyper-parameters, else why not."""
    kind = _kind(plugin)
    if kind is None:
        return "no scalar objective of this method is known to the harness"
    if getattr(plugin, "concentration", None) is not None and plugin.preferences is None:
        return "its preferences are drawn in every step, which the reference does not follow"
    if kind is Total and (plugin.router != "free" or plugin.init_low != plugin.init_high):
        return "its router starts at random or reads features, which the reference does not follow"
    return None


def defined(plugin: Any, losses: Tensor) -> bool:
    """Whether the objective exists at these losses: all but weighted sums take logarithms or quotients of them."""
    kind = _kind(plugin)
    return kind is None or not kind.positive_only or bool((losses > 0).all())


def objective_of(plugin: Any, n_tasks: int) -> Objective:
    """A fresh objective of a method for which :func:`missing` returned None."""
    kind = _kind(plugin)
    assert kind is not None
    return kind(plugin, n_tasks)


def _kind(plugin: Any) -> type[Objective] | None:
    from mtlverify.references import scalarisations  # registers its own

    assert scalarisations is not None
    return _KNOWN.get(_name(plugin))


def _name(plugin: Any) -> str:
    """Registered name; an unregistered class may name the method it implements in an attribute ``reference``."""
    return getattr(plugin, "reference", None) or registry().name_of(plugin)
