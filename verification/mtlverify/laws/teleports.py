"""Laws about teleports. Every proposal is asked for through the core's transaction, which then does not move."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore import Displacement, StepView, TeleportProblem, TeleportStrategy
from mtlcore.contracts import Map
from mtlcore.report import TeleportResult
from mtlcore.teleporting import Teleporter
from mtlverify import tolerance
from mtlverify.law import Margin, given, law, worst
from mtlverify.laws.compare import agreement, same
from mtlverify.laws.universal import (
    VERDICT,
    differences,
    generators_restored,
    reseed,
    side_effects,
    traces,
    unless,
    verdict,
)
from mtlverify.strategies.networks import Network, NetworkExample, networks

HOUSE = "contract of mtlcore.TeleportStrategy"
FEW = 0.25
"""A proposal is an optimisation, so a quarter of the usual inputs are tried: 3 or 4 of every architecture."""

MOVES = "the strategy proposes to move"
ACCEPTED = "the transaction accepts the proposal"


@dataclasses.dataclass(frozen=True)
class Recorder(TeleportStrategy):
    """Asks the strategy, records its answer, and proposes no move; the transaction then has to undo everything."""

    inner: Any = None
    proposals: list[Displacement] = dataclasses.field(default_factory=list)

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        """An empty displacement."""
        self.proposals.append(self.inner.propose(problem, generator))
        return Displacement({})


def ask(plugin: Any, made: Network, seed: int) -> Displacement:
    """The strategy's proposal on batch 0. If transaction and strategy are sound, the network does not change."""
    recorder = Recorder(plugin)
    _attempt(recorder, made, seed)
    return recorder.proposals[0]


def moves(displacement: Displacement) -> bool:
    """Whether the proposal changes anything."""
    return bool(displacement.parameters) or bool(displacement.head_parameters)


def apply(displacement: Displacement, made: Network) -> None:
    """Write the new values into the network."""
    with torch.no_grad():
        for module, values in ((made.trunk, displacement.parameters), (made.heads, displacement.head_parameters)):
            known = dict(module.named_parameters())
            for name, value in values.items():
                known[name].copy_(value)


def tensors(displacement: Displacement) -> dict[str, Tensor]:
    """All new values, by the place they are for."""
    heads = {f"heads.{n}": v for n, v in displacement.head_parameters.items()}
    return {**{f"trunk.{n}": v for n, v in displacement.parameters.items()}, **heads}


def losses_at(made: Network, seeds: range) -> dict[str, float]:
    """Losses in evaluation mode on batches that no strategy has seen; deterministic."""
    return {f"{task} {seed}": float(v) for seed in seeds for task, v in _quietly(made, seed).items()}


def losses_in_training(made: Network, seeds: range) -> dict[str, float]:
    """The same in training mode: with the statistics of the batch, and with the same dropout masks every time."""
    trained = copy.deepcopy(made)
    trained.trunk.train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return {
            f"{task} {seed} in training": float(v) for seed in seeds for task, v in trained.batch(seed)()[0].items()
        }


def change_by(displacement: Displacement, made: Network, *, training: bool = False) -> Margin:
    """Apply the displacement; margin of the largest relative change of a task's loss, to half of the digits, on batches
    that no strategy has seen."""
    seeds = range(50, 53)
    looks = (losses_at, losses_in_training) if training else (losses_at,)
    before = [look(made, seeds) for look in looks]
    apply(displacement, made)
    after = [look(made, seeds) for look in looks]
    changes = {k: (abs(now[k] - old) / abs(old), old, now[k]) for b, now in zip(before, after) for k, old in b.items()}
    most = max(changes, key=lambda k: math.inf if math.isnan(changes[k][0]) else changes[k][0])
    change, old, new = changes[most]
    return agreement(change, tolerance.HALF_DIGITS, f"the loss of {_batch(most)} goes from {old:.6g} to {new:.6g}")


def _batch(key: str) -> str:
    """The key of a loss as text."""
    task, seed, *mode = key.split(" ", 2)
    return f"{task} on the unseen batch {seed} {' '.join(mode) or 'in evaluation'}"


@law("finite", kind="teleport", statement="A proposal consists of finite numbers.", source=HOUSE, universal=True,
     margin=VERDICT, examples=networks, effort=FEW, decode=NetworkExample.from_json)  # fmt: skip
def finite(plugin: Any, example: NetworkExample) -> float:
    """Inputs include the smallest networks."""
    found = tensors(ask(plugin, example.build(), 0))
    return unless([f"{name} is not finite" for name, value in found.items() if not value.isfinite().all()])


@law(
    "shape-dtype-device",
    kind="teleport",
    statement="A proposal names trainable parameters and gives each a value of its shape, dtype and device.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
)
def shape_dtype_device(plugin: Any, example: NetworkExample) -> float:
    """The law is about the parameters of trunk and heads."""
    made = example.build()
    displacement = ask(plugin, made, 0)
    if not isinstance(displacement, Displacement):
        return verdict(False, f"propose returns {type(displacement).__name__}, not an mtlcore.Displacement")
    faults = []
    for part, module, values in (
        ("trunk", made.trunk, displacement.parameters), ("heads", made.heads, displacement.head_parameters),
    ):  # fmt: skip
        known = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for name, value in values.items():
            if name not in known:
                faults.append(f"{part}.{name} is not the name of a trainable parameter")
            elif value.requires_grad:
                faults.append(f"{part}.{name} still has a graph behind it (requires_grad)")
            elif _form(value) != _form(known[name]):
                faults.append(f"{part}.{name} is {_form(value)}; the parameter is {_form(known[name])}")
    return unless(faults)


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} {value.dtype} on {value.device}"


@law(
    "deterministic",
    kind="teleport",
    statement="The same network, batch and seed give the same proposal bit for bit.",
    source=HOUSE,
    universal=True,
    margin=VERDICT,
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
)
def deterministic(plugin: Any, example: NetworkExample) -> float:
    """The question is repeated after one about another network, and under other global seeds."""
    first = tensors(ask(plugin, example.build(), 0))
    ask(plugin, dataclasses.replace(example, seed=example.seed + 1).build(), 1)
    with generators_restored():
        reseed(example.seed + 12345)
        again = tensors(ask(plugin, example.build(), 0))
    return unless(differences(first, again))


@law("pure", kind="teleport", statement="A strategy remembers nothing and draws from no global generator.",
     source=HOUSE, universal=True, margin=VERDICT, examples=networks, effort=FEW,
     decode=NetworkExample.from_json)  # fmt: skip
def pure(plugin: Any, example: NetworkExample) -> float:
    """The strategy may change the network while it searches; rollback-exact checks that this is undone."""
    made = example.build()
    before = traces(plugin)
    ask(plugin, made, 0)
    return unless(side_effects(plugin, before))


@law(
    "rollback-exact",
    kind="teleport",
    statement="A teleport that was searched for and not made leaves parameters, buffers, flags, hooks, predictions and "
    "the optimizer's history bit for bit as they were.",
    source="mtlcore.teleporting: a transaction",
    universal=True,
    margin=VERDICT,
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
)
def rollback_exact(plugin: Any, example: NetworkExample) -> float:
    """Predictions are compared, too: they show changes that the transaction does not know of."""
    made = example.build()
    made.trunk.train()
    before = _everything(made)
    ask(plugin, made, 0)
    after = _everything(made)
    return unless([f"{what} not as before" for what in before if not same(before[what], after[what])])


@law(
    "loss-invariant",
    kind="teleport",
    statement="An exact teleport keeps every task's loss on inputs it has never seen, in evaluation and in training.",
    source="a symmetry of the network is one on every input and in every mode: training goes on in training mode",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: None if plugin.exact else "calls itself approximate: the transaction checks it on a probe",
)
def loss_invariant(plugin: Any, example: NetworkExample) -> float:
    """Changes are relative to the losses. The tolerance is half of the digits, because rescaling changes the rounding
    errors in the whole network."""
    made = example.build()
    displacement = ask(plugin, made, 0)
    given(moves(displacement), MOVES)
    return change_by(displacement, made, training=True)


@law(
    "maps-tell-the-truth",
    kind="teleport",
    statement="Where a proposal comes with a map, the new value is the map applied to the old one.",
    source="the optimizer's history is transported by the maps: a wrong one would corrupt it silently",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: None if plugin.exact else "calls itself approximate, and needs no maps",
)
def maps_tell_the_truth(plugin: Any, example: NetworkExample) -> float:
    """There are two kinds of map: a factor for each entry, and a matrix along one dimension."""
    made = example.build()
    displacement = ask(plugin, made, 0)
    given(moves(displacement), MOVES)
    margins = [Margin(1.0)]
    for module, values, maps in (
        (made.trunk, displacement.parameters, displacement.maps),
        (made.heads, displacement.head_parameters, displacement.head_maps),
    ):
        for name, old in module.named_parameters():
            found = maps.get(name)
            if name in values and found is not None:
                size = float(values[name].abs().max().clamp_min(1e-300))
                error = float((mapped(found, old.detach()) - values[name]).abs().max()) / size
                margins.append(agreement(error, tolerance.HALF_DIGITS, f"the map of {name} does not lead to its value"))
    return worst(margins)


def has(option: str, otherwise: str) -> Callable[[Any], str | None]:
    """The law applies to strategies with this hyper-parameter; ``otherwise`` is the reason given for others."""

    def applies(plugin: Any) -> str | None:
        named = dataclasses.is_dataclass(plugin) and any(f.name == option for f in dataclasses.fields(plugin))
        return None if named else otherwise

    return applies


@law(
    "zero-steps-stay",
    kind="teleport",
    statement="A search of no steps proposes the point it started from, bit for bit.",
    source="COST: adapters start at zero; a reparametrisation starts at the identity",
    margin=VERDICT,
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=has("steps", "does not search in steps"),
)
def zero_steps_stay(plugin: Any, example: NetworkExample) -> float:
    """Nothing proposed is fine, too."""
    made = example.build()
    here = {f"{room}.{n}": p.detach().clone() for room, n, p in trainable(made)}
    proposed = tensors(ask(dataclasses.replace(plugin, steps=0), made, example.seed))
    moved = [name for name, value in proposed.items() if name not in here or not torch.equal(value, here[name])]
    return unless([f"{name} moves" for name in moved])


@law(
    "history-in-new-coordinates",
    kind="teleport",
    statement="After an exact teleport theta' = D theta Adam's moments are those of the same path expressed in the new "
    "coordinates: m' = m / D, v' = v / D^2 (theta' = M theta: m' = M^-T m).",
    source="the chain rule: g' = g / D at every point of the path, and both moments are averages of g' and g'^2. (Not "
    "those of a run of Adam in the new coordinates: Adam takes other steps there)",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: None if plugin.exact else "calls itself approximate: its history is reused, not transported",
)
def history_in_new_coordinates(plugin: Any, example: NetworkExample) -> float:
    """The teleport goes through the core's transaction. The second moment is not checked for a dense matrix, for which
    there is no exact rule."""
    made = example.build()
    asked = ask(plugin, made, example.seed)
    maps = {"trunk": asked.maps, "heads": asked.head_maps}
    before = {(room, n): (p.detach().clone(), _moments(made, p)) for room, n, p in trainable(made)}
    given(_attempt(plugin, made, example.seed).accepted, ACCEPTED)
    margins = [Margin(1.0)]
    for room, name, parameter in trainable(made):
        old, (first, second) = before[room, name]
        map_, (now, square) = maps[room].get(name), _moments(made, parameter)
        if map_ is None:
            if not torch.equal(old, parameter):
                return verdict(False, f"{room}.{name} moved, and no map says how its history follows")
            map_ = torch.ones_like(old)
        if isinstance(map_, Tensor):
            # D is computed from the parameter, not taken from the map.
            scale = torch.where(old == 0, map_.expand_as(old), parameter.detach() / old)
            back = [(now * scale, first), (square * scale**2, second)]
        else:
            back = [(mapped(dataclasses.replace(map_, matrix=map_.matrix.T), now), first)]
        error = tolerance.largest(float((b - a).abs().max() / a.abs().max().clamp_min(1e-300)) for b, a in back)
        margins.append(agreement(error, tolerance.HALF_DIGITS, f"a moment of {room}.{name} is another one"))
    return worst(margins)


@law(
    "gradients-in-new-coordinates",
    kind="teleport",
    statement="After an exact teleport theta' = M theta the task Gramian on an unseen batch is that of the old "
    "gradients in the new coordinates, g' = M^-T g: the closed form that spares a search all further passes.",
    source="the chain rule, for a symmetry that holds around theta and not only at it",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: (
        None if plugin.exact else "calls itself approximate: no closed form ties old to new gradients"
    ),
)
def gradients_in_new_coordinates(plugin: Any, example: NetworkExample) -> float:
    """Errors are relative to the product of the norms of the gradients of all parameters of trunk and heads."""
    made = example.build()
    displacement = ask(plugin, made, example.seed)
    given(moves(displacement), MOVES)
    maps = {"trunk": displacement.maps, "heads": displacement.head_maps}
    expected = _gramian([[_pulled(maps[r].get(n), g) for r, n, g in row] for row in _gradients(made, 60)])
    apply(displacement, made)
    found = _gramian([[g for _, _, g in row] for row in _gradients(made, 60)])
    norms = expected.diagonal().sqrt().clamp_min(1e-300)
    error = float(((found - expected) / (norms[:, None] * norms[None, :])).abs().max())
    return agreement(error, tolerance.HALF_DIGITS, "the Gramian is not that of the old gradients in new coordinates")


@law(
    "gamma-zero-keeps-losses",
    kind="teleport",
    statement="With gamma = 0 nothing is to be gained, and every task's loss is kept on inputs never seen.",
    source="COST: the objective is L_t - gamma L_g, and L_t is smallest where the losses are kept",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=has("gamma", "does not weigh a gain by gamma"),
)
def gamma_zero_keeps_losses(plugin: Any, example: NetworkExample) -> float:
    """Nothing proposed is fine, too."""
    made = example.build()
    displacement = ask(dataclasses.replace(plugin, gamma=0.0), made, example.seed)
    return change_by(displacement, made)


def _gradients(made: Network, seed: int) -> list[list[tuple[str, str, Tensor]]]:
    """For each task the gradient of every trainable parameter on one batch in evaluation mode, with room and name."""
    mode = made.trunk.training
    made.trunk.eval()
    losses, _ = made.batch(seed)()
    made.trunk.train(mode)
    own = trainable(made)
    rows = []
    for loss in losses.values():
        found = torch.autograd.grad(loss, [p for _, _, p in own], retain_graph=True, allow_unused=True)
        rows.append([(r, n, torch.zeros_like(p) if g is None else g) for (r, n, p), g in zip(own, found)])
    return rows


def _gramian(rows: list[list[Tensor]]) -> Tensor:
    jacobian = torch.stack([torch.cat([g.flatten().to(torch.float64) for g in row]) for row in rows])
    return jacobian @ jacobian.T


def _pulled(found: Map | None, gradient: Tensor) -> Tensor:
    """M^-T g."""
    if found is None:
        return gradient
    if isinstance(found, Tensor):
        return gradient / found
    return mapped(dataclasses.replace(found, matrix=torch.linalg.inv(found.matrix).T), gradient)


def trainable(made: Network) -> list[tuple[str, str, nn.Parameter]]:
    """(room, name, parameter) of all trainable parameters."""
    rooms = (("trunk", made.trunk), ("heads", made.heads))
    return [(room, n, p) for room, module in rooms for n, p in module.named_parameters() if p.requires_grad]


def _moments(made: Network, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    state = made.optimizer.state[parameter]
    return state["exp_avg"].clone(), state["exp_avg_sq"].clone()


def looks_at_conflict(plugin: Any) -> str | None:
    """The law does not apply to a baseline that ignores the conflict, unless it promises the law."""
    if plugin.improves or "lowers-conflict" in plugin.claims:
        return None
    return "a baseline that does not look at the conflict"


@law(
    "lowers-conflict",
    kind="teleport",
    statement="An accepted teleport has less conflict behind it than before it, on a batch it was not computed on, and "
    "keeps every task's loss on that batch within the tolerance.",
    source="mtlcore.teleporting: what a proposal is accepted for; measured anew, on the network as it is afterwards",
    margin="the smaller of: what is left of the tolerance; gain of the worst cosine of a task with the mean gradient",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=looks_at_conflict,
)
def lowers_conflict(plugin: Any, example: NetworkExample) -> float:
    """The conflict is measured as in a transaction without a detector, but from gradients that are computed here."""
    made = example.build()
    losses, before = losses_at(made, range(1, 2)), worst_cosine(made, 1)
    result = _attempt(plugin, made, example.seed)
    given(result.accepted, ACCEPTED)
    later = losses_at(made, range(1, 2))
    moved = tolerance.largest(abs(later[k] - losses[k]) / abs(losses[k]) for k in losses)
    kept = agreement(moved, Teleporter(plugin, name="asked").tolerance, "a task's loss changes")
    after = worst_cosine(made, 1)
    worse = f"the smallest cosine of a task with the mean was {before:.4g} and is {after:.4g}"
    return worst([kept, Margin(after - before + tolerance.SOLVER, worse)])


def _attempt(plugin: Any, made: Network, seed: int) -> TeleportResult:
    """A transaction that searches on batch 0 and checks on batch 1; an accepted move is not undone."""
    losses = _quietly(made, 0)
    return Teleporter(plugin, name="asked").attempt(
        trunk=made.trunk,
        heads=made.heads,
        closure=made.batch(0),
        probe=made.batch(1),
        view=StepView(losses=torch.stack(list(losses.values())), task_names=tuple(losses)),
        optimizer=made.optimizer,
        generator=torch.Generator().manual_seed(seed),
    )


def worst_cosine(made: Network, seed: int) -> float:
    """Smallest cosine of a task's trunk gradient with their mean, on one batch, in evaluation mode."""
    rows = torch.stack([torch.cat([g.flatten() for r, _, g in row if r == "trunk"]) for row in _gradients(made, seed)])
    units, mean = rows / rows.norm(dim=1, keepdim=True), rows.mean(dim=0)
    return float((units @ (mean / mean.norm())).min())


def mapped(found: Map, old: Tensor) -> Tensor:
    """The old value under the map."""
    if isinstance(found, Tensor):
        return found * old
    return torch.tensordot(found.matrix, old, dims=([1], [found.dim])).movedim(0, found.dim)


def _everything(made: Network) -> dict[str, Any]:
    """Everything that a refused teleport must not change."""
    parts: dict[str, nn.Module] = {"trunk": made.trunk, "heads": made.heads}
    seen: dict[str, Any] = {}
    for where, module in parts.items():
        seen[where] = {n: v.detach().clone() for n, v in module.state_dict().items()}
        seen[f"{where} flags"] = [(p.requires_grad, p.grad is None) for p in module.parameters()]
        seen[f"{where} modes"] = [(type(m).__name__, m.training, len(m._forward_hooks)) for m in module.modules()]
    seen["history"] = copy.deepcopy(made.optimizer.state_dict())
    seen["predictions"] = _quietly(made, 7)
    return seen


def _quietly(made: Network, seed: int) -> dict[str, Tensor]:
    """Losses in evaluation mode, so that batch statistics do not change."""
    mode = made.trunk.training
    made.trunk.eval()
    with torch.no_grad():
        losses, _ = made.batch(seed)()
    made.trunk.train(mode)
    return losses
