"""The symmetry at the boundary between trunk and heads: any invertible map, undone by every head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from mtlcore import Displacement, TeleportProblem, TeleportStrategy, choice, integer, number
from mtlcore.contracts import MatrixMap
from mtlplugins.teleports.channels import shared_modules, trace
from mtlplugins.teleports.scaling import worst_cosine


@dataclass(frozen=True)
class LinearBoundary(TeleportStrategy):
    """The trunk ends in z = A x + b, every head starts with U_k z: A <- M A, b <- M b, U_k <- U_k M^{-1}.

    Exact for every invertible M and every input [derived, seeds 2.3]. The trunk's gradients transform as g' = M^{-T} g,
    so with S = (M^T M)^{-1} the Gramian is Gram(S) = C + [tr(S g_k g_i^T)]_{ik}: linear in S, from one pass of task
    gradients. S = exp(X) is optimised over symmetric X on the leading left singular subspace of the task gradients
    (elsewhere M = I), and M = exp(-X / 2). History: momentum by M^{-T}, exactly; squared moments re-estimated (see
    ``mtlcore.trajectory``).

    Needs ``MultiTask(..., heads=...)``: a module whose children are the heads (ModuleDict, ModuleList), or one head.
    Each must use its input in Linear layers only; the trunk must end in a Linear. Otherwise it stays, and says why.

    Args:
        objective: "dominated" or "pairwise", as in ``relu-rescaling``.
        bound: largest \\|log singular value of M\\|. [choice]
        directions: dimension of the subspace that M acts on. [choice]
        stiffness: mu of the penalty mu |X|^2 / directions. [choice]
        steps: of the optimisation on the small tables.
    """

    exact = True
    claims = frozenset({"loss-invariant", "maps-tell-the-truth", "lowers-conflict"})

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
        matrix = self._matrix(
            [rows.pop(n).view(len(losses), parameters[n].shape[0], -1) for n in ends], list(rows.values())
        )
        if matrix is None:
            return Displacement({}, diagnostics={"reason": "no map of the boundary lowers the conflict"})
        inverse = torch.linalg.inv(matrix)
        heads = {} if problem.heads is None else dict(problem.heads.named_parameters())
        return Displacement(
            parameters={n: (matrix @ parameters[n].detach().double()).to(parameters[n].dtype) for n in ends},
            maps={n: MatrixMap(matrix, 0) for n in ends},
            head_parameters={n: (heads[n].detach().double() @ inverse).to(heads[n].dtype) for n in first},
            head_maps={n: MatrixMap(inverse.T.contiguous(), 1) for n in first},
            diagnostics={"heads": len(first), "condition": float(torch.linalg.cond(matrix))},
        )

    def _matrix(self, ends: list[Tensor], rest: list[Tensor]) -> Tensor | None:
        """M (F, F) in float64, or None if nothing is better than staying."""
        g = torch.cat([e.double() for e in ends], dim=2)  # (K, F, m): weight and bias side by side
        other = g.new_zeros(len(g), len(g))
        for block in rest:
            other += block.double() @ block.double().T
        u = torch.linalg.svd(g.transpose(0, 1).flatten(1), full_matrices=False)[0][:, : self.directions]
        inside = u.T @ g
        tables = torch.einsum("kam,lbm->klab", inside, inside)
        whole = torch.einsum("kfm,lfm->kl", g, g) + other
        fixed = whole - torch.einsum("klaa->kl", tables)
        if int((whole.diagonal() > 0.0).sum()) < 2 or bool(whole.mean() <= 1e-14 * whole.diagonal().max()):
            return None
        size = u.shape[1]
        raw = torch.zeros(size, size, dtype=torch.float64, device=g.device, requires_grad=True)
        optimizer = torch.optim.Adam([raw], lr=0.1)
        best, chosen = -float("inf"), torch.zeros(size, size, dtype=torch.float64, device=g.device)
        with torch.enable_grad():
            for _ in range(self.steps + 1):
                x = self._bounded(raw)
                gram = fixed + torch.einsum("klab,ba->kl", tables, torch.linalg.matrix_exp(x))
                gain = worst_cosine((gram + gram.T) / 2, self.objective) - self.stiffness * x.square().sum() / size
                if float(gain.detach()) > best:
                    best, chosen = float(gain.detach()), x.detach().clone()
                optimizer.zero_grad()
                (-gain).backward()
                optimizer.step()
        if not bool(chosen.any()):
            return None
        identity = torch.eye(u.shape[0], dtype=torch.float64, device=g.device)
        matrix: Tensor = identity + u @ (torch.linalg.matrix_exp(-chosen / 2) - torch.eye(size).to(chosen)) @ u.T
        return matrix

    def _bounded(self, raw: Tensor) -> Tensor:
        """Symmetric, with eigenvalues in [-2 bound, 2 bound] (the Frobenius norm bounds them all)."""
        x: Tensor = (raw + raw.T) / 2
        shrink: Tensor = 2 * self.bound / x.detach().norm().clamp_min(2 * self.bound)
        return x * shrink


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
