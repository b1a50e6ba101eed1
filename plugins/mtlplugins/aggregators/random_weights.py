"""``random``: weights drawn anew in every step, from one of the distributions of random loss weighting."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import choice
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView

_FORMS = ("uniform", "normal", "dirichlet", "bernoulli", "one-task")


@dataclasses.dataclass(frozen=True)
class RandomWeights(Aggregator):
    """w is drawn in every step from a distribution that treats tasks alike: five of those of Lin et al. 2022 [paper*].

        uniform     w = u / sum u, u_i ~ U(0, 1)           normal      w = softmax(z), z ~ N(0, I)  (= ``rlw``)
        dirichlet   w ~ Dirichlet(1, ..., 1), uniform on the simplex
        bernoulli   w = b / sum b, b_i ~ Bernoulli(1/2), drawn again while all are 0
        one-task    w = e_i, i uniform: a step on one task, as in alternating training

    E[w] = 1/K in every form, so the expected step is that of the mean gradient: a baseline for loss balancers. The
    forms differ in variance: K^2 Var(w_i) is K - 1 for "one-task", and tends to 1/3 ("uniform"), 1 ("dirichlet",
    "bernoulli") and e - 1 ("normal") for many tasks [derived]. The normalisation to sum 1 is a [choice] for "bernoulli"
    and "uniform". The weights are drawn for the tasks present. Cost: one backward pass.

    Args:
        form: the distribution; "dirichlet" is the default because it is uniform on the simplex [choice].
        total: "one", or "n-tasks" for weights that sum to K (the paper allows both).
    """

    needs = Needs.LOSSES
    paper: ClassVar[str] = "https://arxiv.org/abs/2111.10603"

    form: str = choice("dirichlet", _FORMS)
    total: str = choice("one", ("one", "n-tasks"))

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; the weights sum to one only with total="one"."""
        always = {"conic-combination", "resume-equivalent", "one-backward-pass", "equivariant-in-distribution"}
        return frozenset(always | ({"simplex-weights"} if self.total == "one" else set()))

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) that sum to one or to K."""
        weights = _draw(self.form, view.n_tasks, view.generator)
        return Aggregation(weights=weights * view.n_tasks if self.total == "n-tasks" else weights, state=state)


def _draw(form: str, k: int, generator: torch.Generator) -> Tensor:
    """(K,) on the simplex."""
    if form == "normal":
        return torch.softmax(torch.randn(k, generator=generator, dtype=torch.float64, device="cpu"), 0)
    if form == "one-task":
        chosen = int(torch.randint(k, (1,), generator=generator, device="cpu"))
        return torch.nn.functional.one_hot(torch.tensor(chosen, device="cpu"), k).double()
    while True:
        draw = torch.rand(k, generator=generator, dtype=torch.float64, device="cpu")
        if form == "dirichlet":
            draw = -torch.log1p(-draw)  # exponentials, normalised, are flat on the simplex
        elif form == "bernoulli":
            draw = (draw < 0.5).double()
        if bool(draw.any()):  # all zero: no draw
            return draw / draw.sum()
