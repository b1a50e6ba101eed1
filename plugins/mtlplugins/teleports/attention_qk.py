"""The symmetry between queries and keys (and between values and the output projection) of attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlcore import Displacement, TeleportProblem, TeleportStrategy, choice, flag, integer, number
from mtlplugins.teleports.channels import shared_modules
from mtlplugins.teleports.relu_rescaling import sound
from mtlplugins.teleports.scaling import Group, Member, rescale


@dataclass(frozen=True)
class AttentionQK(TeleportStrategy):
    """Per head channel c: (W_Q, b_Q)[c] *= lambda_c and (W_K, b_K)[c] /= lambda_c. [derived, seeds 2.3]

    Scores are sums of q_c k_c, so nothing changes on any input. Likewise (W_V, b_V)[c] *= lambda_c against column c of
    the output projection. The full symmetry is GL(d) per head; its diagonal is used here because optimizer histories
    then follow exactly and the Gramian has the closed form of ``scaling.py``. [choice]

    Serves every ``nn.MultiheadAttention`` of the trunk, packed or with separate projections; one with ``add_bias_kv``
    (for keys), hooks, parametrisations, frozen or tied parameters is left alone. Attention written out with plain
    Linear layers cannot be told apart from other products and is left alone too.

    Args:
        values: also rescale values against the output projection.
        objective, bound, stiffness, steps: as in ``relu-rescaling``.
    """

    exact = True
    claims = frozenset({"loss-invariant", "maps-tell-the-truth", "lowers-conflict"})

    values: bool = flag(True)
    objective: str = choice("dominated", ("dominated", "pairwise"))
    bound: float = number(0.7, low=0.0, open_low=True)
    stiffness: float = number(0.01, low=0.0)
    steps: int = integer(60, low=0)

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        """A point on the network's symmetry orbit, with its maps."""
        unsafe = shared_modules(problem.trunk)
        found: list[Group] = []
        for name, module in problem.trunk.named_modules():
            if type(module) is nn.MultiheadAttention and module not in unsafe:
                found += _groups(module, f"{name}." if name else "", self.values and module.out_proj not in unsafe)
        groups = sound(problem, tuple(found), generator)
        if not groups:
            return Displacement(
                {}, diagnostics={"reason": "the trunk has no nn.MultiheadAttention that is free to rescale"}
            )
        return rescale(
            problem, groups, measure=self.objective, bound=self.bound, stiffness=self.stiffness, steps=self.steps
        )


def _groups(attention: nn.MultiheadAttention, path: str, values: bool) -> list[Group]:
    width = attention.embed_dim
    query, key, value = (_projection(attention, path, i) for i in range(3))
    groups = []
    if attention.bias_k is None:
        members = [Member(n, e, True) for n, e in query] + [Member(n, e, False) for n, e in key]
        groups.append(Group(f"{path}query-key", width, tuple(members)))
    if values and attention.bias_v is None:
        out = attention.out_proj.weight
        columns = torch.arange(out.numel()).view(out.shape).T.contiguous()
        members = [Member(n, e, True) for n, e in value]
        groups.append(Group(f"{path}value-output", width, (*members, Member(f"{path}out_proj.weight", columns, False))))
    return groups


def _projection(attention: nn.MultiheadAttention, path: str, which: int) -> list[tuple[str, Tensor]]:
    """(name, (E, m) flat indices) of weight and bias rows of the query (0), key (1) or value (2) projection."""
    width = attention.embed_dim
    rows = slice(which * width, (which + 1) * width)
    found = []
    if attention.in_proj_weight is not None:
        packed = attention.in_proj_weight
        found.append((f"{path}in_proj_weight", torch.arange(packed.numel()).view(packed.shape)[rows]))
    else:
        name = ("q_proj_weight", "k_proj_weight", "v_proj_weight")[which]
        own = getattr(attention, name)
        found.append((f"{path}{name}", torch.arange(own.numel()).view(own.shape)))
    if attention.in_proj_bias is not None:
        found.append((f"{path}in_proj_bias", torch.arange(3 * width).view(-1, 1)[rows]))
    return found
