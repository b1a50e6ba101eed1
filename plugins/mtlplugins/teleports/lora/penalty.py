"""The paper's search: Adam on the factors of the adapter, for L_t - gamma L_g. [paper Eq. 7-11]"""

from __future__ import annotations

import torch
from torch import Tensor

from mtlplugins.teleports.lora.field import Field, combine
from mtlplugins.teleports.lora.low_rank import Adapter
from mtlplugins.teleports.lora.objectives import Objective


def search(
    field: Field,
    adapter: Adapter,
    objective: Objective,
    *,
    gamma: float,
    steps: int,
    lr: float,
    relative: bool,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Minimise L_t - gamma O over the factors; returns the displacement.

    L_t = (1/K) sum_i |L_i(theta + Delta) - L_i*|, with L_i* cached for this very batch [choice; the code compares a
    minibatch with a mean over the training set, which can never reach 0]; ``relative``: each term divided by |L_i*|.
    """
    optimizer = torch.optim.Adam(adapter.factors, lr=lr)
    unit = field.unit if relative else torch.ones_like(field.unit)
    for _ in range(steps):
        deltas = adapter.deltas()
        field.displace({n: d.detach() for n, d in deltas.items()})
        drift = field.losses() - field.reference
        _, (invariance,) = field.gradients(drift.sign() / unit / len(field.tasks))
        terms = [(1.0, invariance)]
        if gamma > 0.0:
            terms.append((-gamma, objective.ascent(field, generator)[1]))
        total = dict(zip(field.names, combine(terms)))
        optimizer.zero_grad()
        # The chain rule from the weights to the factors, for any adapter.
        torch.autograd.backward(list(deltas.values()), [total[n] for n in deltas])
        optimizer.step()
    found = {n: d.detach() for n, d in adapter.deltas().items()}
    field.displace({})
    return found
