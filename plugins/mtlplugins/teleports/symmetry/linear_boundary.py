"""The symmetry at the boundary between trunk and heads: an invertible map, and its inverse in every head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from mtlcore import Displacement, TeleportProblem, TeleportStrategy, choice, integer, number
from mtlcore.contracts import MatrixMap
from mtlplugins.teleports.symmetry.general_maps import Block, optimise
from mtlplugins.teleports.symmetry.plainness import altered, shared_modules, uncompiled
from mtlplugins.teleports.symmetry.tracing import traces


@dataclass(frozen=True)
class LinearBoundary(TeleportStrategy):
    """The trunk ends in z = A x + b, every head starts with U_k z: A <- M A, b <- M b, U_k <- U_k M^{-1}.

    It is exact for every invertible M and every input [derived]. The trunk's gradients become
    g' = M^{-T} g, so one pass of task gradients gives the Gramian for every M (see ``general_maps.py``). Momentum is
    transported by M^{-T}, exactly; second moments are estimated (see ``mtlcore.trajectory``).

    It needs ``MultiTask(..., heads=...)``: a module whose children are the heads (ModuleDict, ModuleList), or one head.
    Each head must get the trunk's output itself and use it in Linear layers only; the trunk must end in a Linear layer.
    Otherwise nothing is proposed, and the diagnostics say why.

    Args:
        objective: "dominated" or "pairwise", as in ``relu-rescaling``.
        bound: largest |log singular value of M|. [choice]
        directions: dimension of the subspace that M acts on. [choice]
        stiffness: mu of the penalty mu mean(log^2) over the singular values of M in that subspace. [choice]
        steps: number of steps of the optimisation on the K x K tables.
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
            "helps-where-it-must",
        }
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
        with _strangers(problem.trunk, problem.heads) as strangers:
            losses, blocks = problem.rows()
        if strangers:
            between = f"head {strangers[0]} does not receive the trunk's own output: something lies between them"
            return Displacement({}, diagnostics={"reason": between})
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
    """There is no such symmetry; the message says why."""


@contextlib.contextmanager
def _strangers(trunk: nn.Module, heads: nn.Module | None) -> Iterator[list[str]]:
    """Names of the heads that are called, inside the context, with anything but a tensor that the trunk returned."""
    made: list[object] = []
    found: list[str] = []

    def leave(module: nn.Module, args: object, output: object) -> None:
        made.extend(output if isinstance(output, (tuple, list)) else [output])

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def enter(module: nn.Module, args: tuple[object, ...]) -> None:
            if not args or not any(args[0] is z for z in made):
                found.append(name)

        return enter

    hooks = [trunk.register_forward_hook(leave)]
    hooks += [head.register_forward_pre_hook(watch(_shown(name))) for name, head in _heads(heads)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _heads(heads: nn.Module | None) -> list[tuple[str, nn.Module]]:
    if isinstance(heads, (nn.ModuleDict, nn.ModuleList)):
        return list(heads.named_children())
    return [] if heads is None else [("", heads)]


def _shown(name: str) -> str:
    return repr(name) if name else "(the only one)"


def _last_linear(trunk: nn.Module) -> str:
    """Prefix of the Linear whose output is the trunk's output."""
    whole, (trunk, prefix) = trunk, uncompiled(trunk)
    unsafe = shared_modules(trunk)
    if altered(whole, trunk):
        raise _NoBoundaryError("hooks or an own forward of the trunk do what its graph does not show")
    if type(trunk) is nn.Linear and trunk not in unsafe:
        return prefix
    try:
        graphs = traces(trunk)
    except Exception as error:
        raise _NoBoundaryError(f"the trunk cannot be traced ({type(error).__name__})") from error
    ends = {_end(trunk, graph, unsafe) for graph in graphs}
    if len(ends) > 1:
        raise _NoBoundaryError("the trunk ends in different layers in training and in evaluation")
    return f"{prefix}{ends.pop()}."


def _end(trunk: nn.Module, graph: fx.Graph, unsafe: set[nn.Module]) -> str:
    """Name of the Linear whose output is the output of one graph."""
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
    name = str(node.target)
    module = trunk.get_submodule(name)
    if type(module) is not nn.Linear or module in unsafe or _touched(graph, name) != 1 or len(node.users) != 1:
        raise _NoBoundaryError(f"the trunk ends in {name!r}, which is not a Linear layer used once and free to move")
    return name


def _touched(graph: fx.Graph, name: str) -> int:
    """How often a layer is called, or one of its parameters is read directly."""
    return sum(
        (n.op == "call_module" and n.target == name)
        or (n.op == "get_attr" and str(n.target).rpartition(".")[0] == name)
        for n in graph.nodes
    )


def _first_linears(heads: nn.Module | None, last: str) -> Iterator[str]:
    """Names of the weights that meet the trunk's output, in all heads."""
    if heads is None:
        raise _NoBoundaryError("the heads are unknown: pass MultiTask(..., heads=...)")
    unsafe = shared_modules(heads)
    for prefix, whole in _heads(heads):
        head, inner = uncompiled(whole)
        path = f"{prefix}.{inner}" if prefix else inner
        if altered(whole, head):
            raise _NoBoundaryError(f"hooks or an own forward of head {_shown(prefix)} do what its graph does not show")
        if type(head) is nn.Linear and head not in unsafe:
            yield f"{path}weight"
            continue
        shown = _shown(prefix)
        try:
            graphs = traces(head)
        except Exception as error:
            raise _NoBoundaryError(f"head {shown} cannot be traced ({type(error).__name__})") from error
        met = [_met(head, graph, unsafe) for graph in graphs]
        if not met[0] or met[0] != met[-1]:
            raise _NoBoundaryError(f"head {shown} does more with its input than Linear layers")
        yield from (f"{path}{name}.weight" for name in met[0])


def _met(head: nn.Module, graph: fx.Graph, unsafe: set[nn.Module]) -> list[str]:
    """The Linear layers that one graph of a head uses its input in; none if it is used in anything else."""
    inputs = [n for n in graph.nodes if n.op == "placeholder" and n.users]
    users = [u for n in inputs for u in n.users]
    linears = [u for u in users if u.op == "call_module" and type(head.get_submodule(str(u.target))) is nn.Linear]
    names = [str(u.target) for u in linears]
    free = [n for n in names if head.get_submodule(n) not in unsafe and _touched(graph, n) == 1]
    return free if len(inputs) == 1 and len(free) == len(users) else []
