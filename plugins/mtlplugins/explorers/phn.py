"""``phn``: a Pareto hypernetwork, which computes the weights from the preference (Navon et al. 2021)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore import Explorer, choice, integer, number, text
from mtlcore.contracts import Learnt
from mtlcore.errors import ConfigurationError
from mtlcore.exploring import Exploration
from mtlplugins.explorers.draws import dirichlet
from mtlplugins.explorers.epo import Rays, positive

INNER = "inner."
SPREAD = "spread."
CENTRE = "centre."
BUFFER = "buffer."
FLOOR = 1e-3
"""Smallest entry of a ray."""


@dataclasses.dataclass(frozen=True)
class PHN(Explorer):
    """theta(a) = theta_0 + W h(a) / width, where h is a network with two hidden layers, and a is drawn from
    Dirichlet(p, ..., p) in every step.

    The objective of a step [paper*, official code]:

    - ``balance="ls"`` (PHN-LS): sum_i a_i L_i(theta(a)).
    - ``balance="epo"`` (PHN-EPO): K sum_i b_i L_i(theta(a)), with b from the linear programs of ``epo`` for the ray a
      and the gradients. The aim is then a_1 L_1 = ... = a_K L_K for every a. A step costs K backward passes; losses
      must not be negative. Gradients are taken with respect to what computes the shared weights; in the code, with
      respect to all learned parameters. Entries of a below 1e-3 are raised to 1e-3, as in ``epo``. [choice]

    One linear map per parameter computes its entries from h(a) [paper*]. Its bias starts at the user's model. Its
    weights start so that W h / width has about a tenth of the parameter's standard deviation; so training starts near
    the user's network [choice]. By the division by the width a step of Adam is as long as in the user's own network;
    without it, the same learning rate would be width times too large [choice]. The hypernetwork has about ``width``
    times as many parameters as the model.

    Args:
        concentration: p; 0.2 [paper*], which gives preferences mostly near the corners.
        width: width of h; 100 in the paper [paper*], smaller here, because the memory is width times the model's
            [choice].
        balance: the weights of the losses: "ls" or "epo", as above.
        aggregator: name of the method that combines the weighted losses, with "ls".

    Raises:
        ConfigurationError: an aggregator together with ``balance="epo"``.
        LossError: a negative loss, with ``balance="epo"``.
    """

    paper = "https://arxiv.org/abs/2010.04104"

    claims: ClassVar[frozenset[str]] = frozenset()

    concentration: float = number(0.2, low=0.0, open_low=True)
    width: int = integer(16, low=1)
    balance: str = choice("ls", ("ls", "epo"))
    aggregator: str = text("sum")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance == "epo" and self.aggregator != "sum":
            raise ConfigurationError(f"phn: balance='epo' weighs the losses itself: leave out {self.aggregator!r}.")

    def search(self, work: Exploration) -> dict[str, Tensor]:
        """The hypernetwork; the map that computes the weights of a head is task-specific."""
        model = work.fresh()
        learnt = self._start(model, work)
        epo = self.balance == "epo"
        steps = work.steps(work.price(Rays() if epo else self.aggregator))
        drawn = [dirichlet(self.concentration, len(work.tasks), work.generator) for _ in range(steps)]

        def closure(step: int) -> dict[str, Tensor]:
            found = work.losses(model, step, weights(learnt, drawn[step]))
            if epo:
                return found
            return {n: share * loss for share, (n, loss) in zip(drawn[step].tolist(), found.items(), strict=True)}

        of_heads = dict(model.named_parameters()).keys() - work.shared
        apart = {prefix + n for prefix in (SPREAD, CENTRE) for n in of_heads}
        shared, own = ([v for n, v in learnt.items() if (n in apart) == other] for other in (False, True))
        method = Rays(tuple(positive(a, FLOOR) for a in drawn)) if epo else self.aggregator
        work.train(closure, shared, own, method, steps=steps)
        buffers = {BUFFER + n: v for n, v in model.named_buffers() if n in model.state_dict()}
        return {n: v.detach() for n, v in learnt.items()} | buffers

    def _start(self, model: nn.Module, work: Exploration) -> dict[str, nn.Parameter]:
        named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        like = next(iter(named.values()))

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=work.generator, dtype=torch.float64).to(like)

        out, before = {}, len(work.tasks)
        for layer in ("0", "1"):
            out[f"{INNER}{layer}.weight"] = drawn(self.width, before) * (2.0 / before) ** 0.5
            out[f"{INNER}{layer}.bias"] = drawn(self.width) * 0.0
            before = self.width
        for name, value in named.items():
            deviation = float(value.double().std()) if value.numel() > 1 else 0.0
            spread = 0.1 * (deviation or float(value.abs().max()) or 0.1) * self.width**0.5
            out[SPREAD + name] = drawn(*value.shape, self.width).to(value) * spread
            out[CENTRE + name] = value.clone()
        return {n: nn.Parameter(v) for n, v in out.items()}

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        """The weights that the hypernetwork computes."""
        return weights(learnt, preference) | {
            n.removeprefix(BUFFER): v for n, v in learnt.items() if n.startswith(BUFFER)
        }


def weights(learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
    """theta(a)."""
    hidden = preference.to(learnt[f"{INNER}0.weight"])
    for layer in ("0", "1"):
        hidden = F.relu(F.linear(hidden, learnt[f"{INNER}{layer}.weight"], learnt[f"{INNER}{layer}.bias"]))
    out = {}
    for name, spread in learnt.items():
        if name.startswith(SPREAD):
            plain = name.removeprefix(SPREAD)
            out[plain] = learnt[CENTRE + plain] + spread @ (hidden.to(spread) / len(hidden))
    return out
