"""``cosmos``: one network that takes the preference as an input (Ruchte and Grabocka 2021)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlcore import Explorer, number, text
from mtlcore.contracts import Learnt
from mtlcore.errors import ConfigurationError
from mtlcore.exploring import Exploration
from mtlplugins.explorers.draws import dirichlet

SHIFT = "shift."
ENTRY = "model."


@dataclasses.dataclass(frozen=True)
class COSMOS(Explorer):
    """min sum_i a_i L_i - lambda cos(a, L) for a from Dirichlet(p, ..., p), drawn anew in every step. [paper*]

    In the paper a is concatenated to the input of the network. For a first layer with a bias this is the same as a bias
    that depends on a: W [x; a] = W_x x + W_a a. So here the bias of the first layer (the first linear or convolutional
    module) is b + V a. V is learned and starts at zero; for every preference the result is a plain network of the
    user's own form. [choice; with zero padding, a convolution differs at the borders from one with constant input
    channels]

    The loss of task i is weighted by the derivative of the objective, a_i - lambda (a_i / n - cos(a, L) L_i / |L|^2)
    with n = |a| |L|. ``aggregator`` combines the weighted losses. A weight can be negative.

    Args:
        concentration: p; 1.2 [paper*].
        lamb: lambda; its unit is that of the losses.
        aggregator: name of the method that combines the weighted losses.

    Raises:
        ConfigurationError: no linear or convolutional module, or the first one has no bias.
    """

    paper = "https://arxiv.org/abs/2103.13392"

    claims: ClassVar[frozenset[str]] = frozenset()

    concentration: float = number(1.2, low=0.0, open_low=True)
    lamb: float = number(0.01, low=0.0)
    aggregator: str = text("sum")

    def search(self, work: Exploration) -> dict[str, Tensor]:
        """One network for all preferences."""
        model = work.fresh()
        bias = _first_bias(model)
        start = dict(model.named_parameters())[bias]
        shift = nn.Parameter(start.new_zeros(len(work.tasks), *start.shape))

        def closure(step: int) -> dict[str, Tensor]:
            a = dirichlet(self.concentration, len(work.tasks), work.generator)
            found = work.losses(model, step, {bias: start + torch.tensordot(a.to(shift), shift, dims=1)})
            weights = self._weights(a, torch.stack([v.detach().double().cpu() for v in found.values()]))
            return {name: w * loss for w, (name, loss) in zip(weights, found.items(), strict=True)}

        shared, own = work.split(model)
        steps = work.steps(work.price(self.aggregator))
        work.train(closure, [*shared, shift], own, self.aggregator, steps=steps)
        entries = {ENTRY + n: v.detach() for n, v in model.state_dict().items()}
        return entries | {SHIFT + bias: shift.detach()}

    def _weights(self, a: Tensor, losses: Tensor) -> list[float]:
        length = float(losses.norm())
        if length == 0.0:
            return list(map(float, a))
        ray, unit = a / a.norm(), losses / length
        found: list[float] = (a - self.lamb * (ray - float(ray @ unit) * unit) / length).tolist()
        return found

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        """The network with the bias of this preference."""
        out = {n.removeprefix(ENTRY): v for n, v in learnt.items() if n.startswith(ENTRY)}
        for name, shift in learnt.items():
            if name.startswith(SHIFT):
                bias = name.removeprefix(SHIFT)
                out[bias] = out[bias] + torch.tensordot(preference.to(shift), shift, dims=1)
        return out


def _first_bias(model: nn.Module) -> str:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            if module.bias is None:
                raise ConfigurationError(
                    f"cosmos gives the preference to the first layer through its bias, but layer {name!r} has none: "
                    "make it with bias=True, or take another explorer (pamal, phn)."
                )
            return f"{name}.bias" if name else "bias"
    raise ConfigurationError(
        "cosmos gives the preference to the first linear or convolutional layer, but the model has none; take another "
        "explorer (pamal, phn)."
    )
