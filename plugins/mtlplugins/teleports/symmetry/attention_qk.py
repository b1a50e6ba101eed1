"""The symmetry between queries and keys (and between values and the output projection) of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlcore import Displacement, TeleportProblem, TeleportStrategy, choice, flag, integer, number
from mtlcore.contracts import MatrixMap
from mtlcore.trajectory import apply_along
from mtlplugins.teleports.symmetry.general_maps import Block, optimise
from mtlplugins.teleports.symmetry.plainness import shared_modules
from mtlplugins.teleports.symmetry.relu_rescaling import sound
from mtlplugins.teleports.symmetry.scaling import Group, Member, rescale


@dataclass(frozen=True)
class AttentionQK(TeleportStrategy):
    """Per head: (W_Q, b_Q) <- M (W_Q, b_Q) and (W_K, b_K) <- M^{-T} (W_K, b_K), M invertible. [derived]

    Scores are inner products <q, k>, so no output changes on any input. In the same way (W_V, b_V) <- M (W_V, b_V) with
    W_O <- W_O M^{-1} for the head's columns of the output projection. One pass of task gradients gives the Gramian for
    every M (``scaling.py``, ``general_maps.py``).

    ``maps="diagonal"`` is the default because then all of Adam's history is transported exactly. A full M mixes
    coordinates. The mean of (sum_j a_j g_j)^2 contains mean products of different coordinates, which Adam does not
    store; two histories with the same second moment have different ones after M, so there is no exact transport. First
    moments (momentum) are transported exactly; second moments are estimated as if coordinates were uncorrelated.
    [choice; see ``mtlcore.trajectory``] For SGD with momentum a full M is as exact as a diagonal one.

    It is applied to every ``nn.MultiheadAttention`` of the trunk, packed or with separate projections. It is not
    applied to those with ``add_bias_kv`` (for keys), hooks, parametrisations, frozen or tied parameters, and not to
    attention made of plain Linear layers, which cannot be distinguished from other products.

    Args:
        maps: "diagonal": M = diag(lambda), lambda > 0; "full": any invertible M per head.
        values: also apply the symmetry between values and output projection.
        objective, bound, stiffness, steps: as in ``relu-rescaling``; for "full", of |log singular value|.
        directions: full only: dimension of the subspace of a head that M acts on. [choice]
    """

    paper = "https://arxiv.org/abs/2503.04046"

    exact = True
    claims = frozenset(
        {
            "loss-invariant",
            "maps-tell-the-truth",
            "history-in-new-coordinates",
            "gradients-in-new-coordinates",
            "lowers-conflict",
            "zero-steps-stay",
        }
    )

    maps: str = choice("diagonal", ("diagonal", "full"))
    values: bool = flag(True)
    objective: str = choice("dominated", ("dominated", "pairwise"))
    bound: float = number(0.7, low=0.0, open_low=True)
    stiffness: float = number(0.01, low=0.0)
    steps: int = integer(60, low=0)
    directions: int = integer(16, low=1)

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        """A point on the network's symmetry orbit, with its maps."""
        unsafe = shared_modules(problem.trunk)
        found: list[Group] = []
        widths: dict[str, int] = {}
        for name, module in problem.trunk.named_modules():
            if type(module) is nn.MultiheadAttention and module not in unsafe:
                groups = _groups(module, f"{name}." if name else "", self.values and module.out_proj not in unsafe)
                found += groups
                widths |= dict.fromkeys([g.name for g in groups], module.head_dim)
        free = sound(problem, tuple(found), generator)
        if not free:
            reason = "the trunk has no nn.MultiheadAttention that is free to rescale"
            if found:
                reason += "; what it has looks free, but the losses of this batch depend on its scales"
            return Displacement({}, diagnostics={"reason": reason})
        if self.maps == "full":
            return self._full(problem, free, widths)
        return rescale(
            problem, free, measure=self.objective, bound=self.bound, stiffness=self.stiffness, steps=self.steps
        )

    def _full(self, problem: TeleportProblem, groups: Sequence[Group], widths: Mapping[str, int]) -> Displacement:
        """One matrix per group and head. A group whose rescaling is a symmetry has the symmetry of all invertible maps,
        too: it consists of the two factors of one sum over a head's channels."""
        losses, gradients = problem.rows()
        if len(losses) < 2:
            return Displacement({}, diagnostics={"reason": "one task only: nothing can conflict"})
        rows = dict(zip(problem.parameters(), gradients))
        heads = [(g, at, widths[g.name]) for g in groups for at in range(0, g.units, widths[g.name])]
        matrices = optimise(
            [
                Block(*(_beside(rows, group, slice(start, start + width), side) for side in (True, False)))
                for group, start, width in heads
            ],
            _untouched(rows, groups),
            self.objective,
            bound=self.bound,
            directions=self.directions,
            stiffness=self.stiffness,
            steps=self.steps,
        )
        if matrices is None:
            return Displacement({}, diagnostics={"reason": "no map of the heads lowers the conflict"})
        parameters = dict(problem.trunk.named_parameters())
        maps: dict[str, MatrixMap] = {}
        for (group, start, width), matrix in zip(heads, matrices):
            dual = torch.linalg.inv(matrix).T
            for member in group.members:
                parameter, dim = parameters[member.parameter], _dim(member)
                if member.parameter not in maps:
                    maps[member.parameter] = MatrixMap(
                        torch.eye(parameter.shape[dim], dtype=matrix.dtype, device=matrix.device), dim
                    )
                at = slice(first := _position(member, parameter, start), first + width)
                maps[member.parameter].matrix[at, at] = matrix if member.produces else dual
        moved = {n: apply_along(m.matrix, parameters[n].detach(), m.dim) for n, m in maps.items()}
        return Displacement(moved, maps=maps, diagnostics={"heads": len(heads)})


def _groups(attention: nn.MultiheadAttention, path: str, values: bool) -> list[Group]:
    width = attention.embed_dim
    query, key, value = (_projection(attention, path, i) for i in range(3))
    groups = []
    if attention.bias_k is None:
        members = [Member(n, e, True) for n, e in query] + [Member(n, e, False) for n, e in key]
        groups.append(Group(f"{path}query-key", width, tuple(members)))
    if values and attention.bias_v is None:
        out = attention.out_proj.weight
        columns = torch.arange(out.numel(), device="cpu").view(out.shape).T.contiguous()
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
        found.append((f"{path}in_proj_weight", torch.arange(packed.numel(), device="cpu").view(packed.shape)[rows]))
    else:
        name = ("q_proj_weight", "k_proj_weight", "v_proj_weight")[which]
        own = getattr(attention, name)
        found.append((f"{path}{name}", torch.arange(own.numel(), device="cpu").view(own.shape)))
    if attention.in_proj_bias is not None:
        found.append((f"{path}in_proj_bias", torch.arange(3 * width, device="cpu").view(-1, 1)[rows]))
    return found


def _beside(rows: dict[str, Tensor], group: Group, units: slice, produces: bool) -> Tensor:
    """(K, d, m) task gradients of some units of a group: of the elements that produce them, or that consume them."""
    side = [m for m in group.members if m.produces is produces]
    return torch.cat([rows[m.parameter][:, m.elements[units].to(rows[m.parameter].device)] for m in side], dim=2)


def _untouched(rows: dict[str, Tensor], groups: Sequence[Group]) -> list[Tensor]:
    """Gradients of the elements that belong to no group."""
    rest = []
    for name, block in rows.items():
        free = torch.ones(block.shape[1], dtype=torch.bool, device=block.device)
        for group in groups:
            for m in group.members:
                if m.parameter == name:
                    free[m.elements.flatten().to(block.device)] = False
        if bool(free.any()):
            rest.append(block[:, free])
    return rest


def _dim(member: Member) -> int:
    """The dimension along which units lie: the output projection consumes by columns, all else is rows."""
    return 1 if member.parameter.endswith("out_proj.weight") else 0


def _position(member: Member, parameter: Tensor, unit: int) -> int:
    """The index of a unit in that dimension."""
    element = int(member.elements[unit, 0])
    return element if _dim(member) == 1 else element // (parameter.numel() // parameter.shape[0])
