"""The symmetry at the boundary between trunk and heads: any invertible map, undone by every head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from mtlcore import Displacement, TeleportProblem, TeleportStrategy, choice, integer, number
from mtlcore.contracts import MatrixMap
from mtlplugins.teleports.channels import shared_modules, trace
from mtlplugins.teleports.general_maps import Block, optimise


@dataclass(frozen=True)
class LinearBoundary(TeleportStrategy):
    """The trunk ends in z = A x + b, every head starts with U_k z: A <- M A, b <- M b, U_k <- U_k M^{-1}.

    Exact for every invertible M and every input [derived, seeds 2.3]. The trunk's gradients transform as g' = M^{-T} g,
    so the Gramian is known for every M from one pass of task gradients (see ``general_maps.py``). History: momentum by
    M^{-T}, exactly; squared moments re-estimated (see ``mtlcore.trajectory``).

    Needs ``MultiTask(..., heads=...)``: a module whose children are the heads (ModuleDict, ModuleList), or one head.
    Each must use its input in Linear layers only; the trunk must end in a Linear. Otherwise it stays, and says why.

    Args:
        objective: "dominated" or "pairwise", as in ``relu-rescaling``.
        bound: largest \\|log singular value of M\\|. [choice]
        directions: dimension of the subspace that M acts on. [choice]
        stiffness: mu of the penalty mu mean(log^2) over the singular values of M in that subspace. [choice]
        steps: of the optimisation on the small tables.
    """

    exact = True
    claims = frozenset(
        {"loss-invariant", "maps-tell-the-truth", "history-in-new-coordinates", "lowers-conflict", "zero-steps-stay"}
    )

    objective: str = choice("dominated", ("dominated", "pairwise"))
    bound: float = number(0.7, low=0.0, open_low=True)
    directions: int = integer(16, low=1)
    stiffness: float = number(0.01, low=0.0)
    steps: int = integer(60, low=0)

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        """A point on the network's symmetry orbit, with its maps."""
        try:
            last = _last_linear(problem.trunk)
            first = list(_first_linears(problem.heads, last))
        except _NoBoundaryError as reason:
            return Displacement({}, diagnostics={"reason": str(reason)})
        names = list(problem.parameters())
        losses, blocks = problem.rows()
        if len(losses) < 2:
            return Displacement({}, diagnostics={"reason": "one task only: nothing can conflict"})
        rows = dict(zip(names, blocks))
        parameters = dict(problem.trunk.named_parameters())
        ends = [n for n in (f"{last}weight", f"{last}bias") if n in parameters]
        # Weight and bias side by side.
        end = torch.cat([rows.pop(n).view(len(losses), parameters[n].shape[0], -1) for n in ends], dim=2)
        found = optimise(
            [Block(end, end[:, :, :0])],
            list(rows.values()),
            self.objective,
            bound=self.bound,
            directions=self.directions,
            stiffness=self.stiffness,
            steps=self.steps,
        )
        if found is None:
            return Displacement({}, diagnostics={"reason": "no map of the boundary lowers the conflict"})
        (matrix,) = found
        inverse = torch.linalg.inv(matrix)
        heads = {} if problem.heads is None else dict(problem.heads.named_parameters())
        return Displacement(
            parameters={n: (matrix @ parameters[n].detach().double()).to(parameters[n].dtype) for n in ends},
            maps={n: MatrixMap(matrix, 0) for n in ends},
            head_parameters={n: (heads[n].detach().double() @ inverse).to(heads[n].dtype) for n in first},
            head_maps={n: MatrixMap(inverse.T.contiguous(), 1) for n in first},
            diagnostics={"heads": len(first), "condition": float(torch.linalg.cond(matrix))},
        )


class _NoBoundaryError(Exception):
    """Why the symmetry is not there."""


def _last_linear(trunk: nn.Module) -> str:
    """Prefix of the Linear whose output is the trunk's output."""
    if type(trunk) is nn.Linear and trunk not in shared_modules(trunk):
        return ""
    try:
        graph = trace(trunk)
    except Exception as error:
        raise _NoBoundaryError(f"the trunk cannot be traced ({type(error).__name__})") from error
    output = next(n for n in graph.nodes if n.op == "output")
    node = output.args[0]
    if isinstance(node, (tuple, list)) and len(node) == 1:
        node = node[0]
    while (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and type(trunk.get_submodule(str(node.target))) is nn.Identity
    ):
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "call_module":
        raise _NoBoundaryError("the trunk does not end in a Linear layer")
    module = trunk.get_submodule(str(node.target))
    calls = sum(n.op == "call_module" and n.target == node.target for n in graph.nodes)
    if type(module) is not nn.Linear or module in shared_modules(trunk) or calls != 1 or len(node.users) != 1:
        raise _NoBoundaryError(
            f"the trunk ends in {node.target!r}, which is not a Linear layer used once and free to move"
        )
    return f"{node.target}."


def _first_linears(heads: nn.Module | None, last: str) -> Iterator[str]:
    """Names of the weights that meet the trunk's output, in all heads."""
    if heads is None:
        raise _NoBoundaryError("the heads are unknown: pass MultiTask(..., heads=...)")
    unsafe = shared_modules(heads)
    containers = (nn.ModuleDict, nn.ModuleList)
    for prefix, head in heads.named_children() if isinstance(heads, containers) else [("", heads)]:
        path = f"{prefix}." if prefix else ""
        if type(head) is nn.Linear and head not in unsafe:
            yield f"{path}weight"
            continue
        try:
            graph = trace(head)
        except Exception as error:
            raise _NoBoundaryError(
                f"head {prefix or '(the only one)'!r} cannot be traced ({type(error).__name__})"
            ) from error
        inputs = [n for n in graph.nodes if n.op == "placeholder" and n.users]
        users = [u for n in inputs for u in n.users]
        linears = [u for u in users if u.op == "call_module" and type(head.get_submodule(str(u.target))) is nn.Linear]
        calls = [n.target for n in graph.nodes if n.op == "call_module"]
        free = [u for u in linears if head.get_submodule(str(u.target)) not in unsafe and calls.count(u.target) == 1]
        if len(inputs) != 1 or not users or len(free) != len(users):
            raise _NoBoundaryError(f"head {prefix or '(the only one)'!r} does more with its input than Linear layers")
        yield from dict.fromkeys(f"{path}{u.target}.weight" for u in free)
