"""The law about teleports of networks in low precision."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mtlcore import Displacement
from mtlverify import tolerance
from mtlverify.law import Margin, given, law
from mtlverify.laws.compare import agreement
from mtlverify.laws.proposals import FEW, MOVES, apply, ask, moves, trainable
from mtlverify.laws.universal import verdict
from mtlverify.strategies.networks import Network, NetworkExample, networks, seeded

COARSE = torch.bfloat16
UNSEEN = range(50, 53)
MODES = ("evaluation", "training")
"""In this order: a forward pass in training mode moves the statistics of batch norms."""


@law(
    "low-precision-network",
    kind="teleport",
    statement="On a network in bfloat16 the proposal of an exact teleport is in bfloat16, and every task's loss is "
    "kept on inputs never seen, in evaluation and in training, as far as the last bits of the parameters determine it.",
    source="a symmetry is one in every dtype, up to its rounding; what is small in bfloat16 is not what is small in "
    "float64",
    examples=networks,
    universal=True,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: None if plugin.exact else "calls itself approximate: the transaction checks it on a probe",
)
def low_precision_network(plugin: Any, example: NetworkExample) -> float:
    """Losses are computed in float64 from the network's output; the strategy gets them in bfloat16."""
    made = example.build(COARSE)
    displacement = ask(plugin, made, example.seed)
    given(moves(displacement), MOVES)
    wrong = _not_of_its_parameters(displacement, made)
    if wrong:
        return verdict(False, wrong)
    return _kept(displacement, made)


def _not_of_its_parameters(displacement: Displacement, made: Network) -> str:
    """A message about the first new value that is not finite or not in the network's dtype; "" if there is none."""
    for values in (displacement.parameters, displacement.head_parameters):
        for name, value in values.items():
            if value.dtype != COARSE:
                return f"{name} is proposed in {value.dtype}, and the network is in {COARSE}"
            if not bool(value.isfinite().all()):
                return f"{name} is not finite"
    return ""


def _kept(displacement: Displacement, made: Network) -> Margin:
    """Margin of the largest change of a loss, relative to its change when all parameters move by their last bit."""
    before = _losses(copy.deepcopy(made))
    noise = [(_losses(_shaken(made, probe)) - before).abs() for probe in range(tolerance.PROBES)]
    allowed = tolerance.LAST_BITS * torch.stack(noise).amax(dim=0)
    moved = copy.deepcopy(made)
    apply(displacement, moved)
    error = (_losses(moved) - before).abs()
    most = int((error / allowed.clamp_min(1e-300)).argmax())
    where = MODES[most * len(MODES) // len(before)]
    what = f"a loss of {float(before[most]):.4g} changes in {where}"
    return agreement(float(error[most]), float(allowed[most]), what)


def _losses(judged: Network) -> Tensor:
    """All tasks' losses in each mode on all unseen batches, in float64; dropout masks are the same every time. The
    statistics of the network move: it is not used again."""
    found = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for mode in MODES:
            judged.trunk.train(mode == "training")
            seeded(0)
            found += [loss for seed in UNSEEN for loss in judged.exact(seed)().values()]
    return torch.stack(found)


def _shaken(made: Network, probe: int) -> Network:
    """A copy in which every parameter is moved by at most one unit in its last place, at random."""
    found, generator = copy.deepcopy(made), torch.Generator().manual_seed(probe)
    with torch.no_grad():
        for _, _, parameter in trainable(found):
            drawn = 2.0 * torch.rand(parameter.shape, generator=generator) - 1.0
            parameter.mul_((1.0 + tolerance.eps(COARSE) * drawn).to(COARSE))
    return found
