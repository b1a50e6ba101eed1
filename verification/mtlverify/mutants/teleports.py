"""Teleports, one correct twin and its broken copies, each next to the laws that must see it."""

# ruff: noqa: D102  (the docstring of a class says what its one method does)

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mtlcore import Displacement, TeleportProblem, TeleportStrategy

frozen = dataclasses.dataclass(frozen=True)


@frozen
class Rescaling(TeleportStrategy):
    """Scales the first of two linear layers around a ReLU up, unit by unit, and the second down."""

    exact: ClassVar[bool] = True
    improves: ClassVar[bool] = False

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        names = self.layers(problem.trunk)
        if names is None:
            return Displacement({})
        first, second = names
        known = {n: p.detach() for n, p in problem.parameters().items()}
        factors = self.factors(known[f"{first}.weight"][:, 0], generator)
        up, down = factors, 1.0 / factors
        maps = {f"{first}.weight": up[:, None], f"{first}.bias": up, f"{second}.weight": down[None, :]}
        maps = {name: factor for name, factor in maps.items() if name in known}
        return self.finish(problem, known, maps)

    def factors(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """One per hidden unit, from 1/2 to 2."""
        return torch.exp2(2.0 * torch.rand(like.shape, generator=generator, dtype=like.dtype) - 1.0)

    def layers(self, trunk: nn.Module) -> tuple[str, str] | None:
        """Names of two linear layers with nothing but a ReLU between them, if the trunk is a plain sequence."""
        if not isinstance(trunk, nn.Sequential):
            return None
        for i in range(len(trunk) - 2):
            passes = isinstance(trunk[i], nn.Linear) and self.lets_a_scale_through(trunk[i + 1])
            if passes and all(p.requires_grad for layer in (trunk[i], trunk[i + 2]) for p in layer.parameters()):
                return str(i), str(i + 2)
        return None

    def lets_a_scale_through(self, activation: nn.Module) -> bool:
        """f(a x) = a f(x) for a > 0."""
        return isinstance(activation, nn.ReLU)

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        """The new values."""
        return Displacement({n: d * known[n] for n, d in maps.items()}, maps)


@frozen
class Chosen(Rescaling):
    """The same, but to be accepted only if the conflict becomes less: correct."""

    improves: ClassVar[bool] = True


@frozen
class EndsNoConflict(Chosen):
    """Lowers the conflict a little by chance, and promises to end it."""

    claims: ClassVar[frozenset[str]] = frozenset({"helps-where-it-must"})


@frozen
class ConflictBlind(Rescaling):
    """Is accepted for keeping the losses, whatever happens to the conflict, and sold as a remedy."""

    claims: ClassVar[frozenset[str]] = frozenset({"lowers-conflict"})


@frozen
class TakesClippedForReLU(Rescaling):
    """ReLU6 is a ReLU as long as nothing reaches 6."""

    def lets_a_scale_through(self, activation: nn.Module) -> bool:
        return isinstance(activation, (nn.ReLU, nn.ReLU6))


@frozen
class MapsByDivision(Rescaling):
    """A map is the new value divided by the old one, whatever the old one is."""

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        moved = {n: d * known[n] for n, d in maps.items()}
        return Displacement(moved, {n: moved[n] / known[n] for n in maps})


@frozen
class ForgetsTheConsumer(Rescaling):
    """Scales the first layer and not the second."""

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        kept = dict(list(maps.items())[:2])
        return super().finish(problem, known, kept)


@frozen
class ForgetsTheBias(Rescaling):
    """The bias of the first layer stays: exact only where it is zero."""

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        return super().finish(problem, known, {n: d for n, d in maps.items() if not n.endswith("bias")})


@frozen
class Negative(Rescaling):
    """Takes any factor, also negative ones, for a symmetry of ReLU."""

    def factors(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return 2.0 - 4.0 * torch.rand(like.shape, generator=generator, dtype=like.dtype)


@frozen
class TakesAnyActivation(Rescaling):
    """Takes whatever is between two linear layers for a ReLU."""

    def layers(self, trunk: nn.Module) -> tuple[str, str] | None:
        if isinstance(trunk, nn.Sequential) and isinstance(trunk[0], nn.Linear) and isinstance(trunk[2], nn.Linear):
            return "0", "2"
        return None


@frozen
class EvaluationOnly(Rescaling):
    """Takes a batch norm for the affine map that it is in evaluation, and scales what it normalises in training."""

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        trunk = problem.trunk
        if not isinstance(trunk, nn.Sequential) or not isinstance(trunk[1], nn.BatchNorm2d):
            return Displacement({})
        known = {n: p.detach() for n, p in problem.parameters().items()}
        up = self.factors(known["1.bias"], generator)
        statistics = dict(trunk[1].named_buffers())
        deviation = (statistics["running_var"] + trunk[1].eps).sqrt()
        off = known["1.weight"] * (known["0.bias"] - statistics["running_mean"]) / deviation
        bias = known["1.bias"] + off * (1.0 - 1.0 / up)
        maps = {"0.weight": up[:, None, None, None], "1.weight": 1.0 / up, "1.bias": bias / known["1.bias"]}
        return self.finish(problem, known, maps)


@frozen
class InverseMaps(Rescaling):
    """Hands over the inverse maps: the losses stay, the optimizer's history is corrupted."""

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        return Displacement({n: d * known[n] for n, d in maps.items()}, {n: 1.0 / d for n, d in maps.items()})


@frozen
class NeverRests(Rescaling):
    """Moves before it takes the first step of its search."""

    steps: int = 3


@frozen
class GammaBlind(Rescaling):
    """Follows its gain whatever gamma says."""

    exact: ClassVar[bool] = False
    gamma: float = 0.1

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        return Displacement({n: d * known[n] for n, d in list(maps.items())[:1]})


@frozen
class GlobalGenerator(Rescaling):
    """Draws from torch's global generator."""

    def factors(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return 0.5 + torch.rand(like.shape, dtype=like.dtype)


@frozen
class GlobalNumpyGenerator(Rescaling):
    """Draws from numpy's global generator, which the transaction puts back: it shows under another seed only."""

    def factors(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.from_numpy(0.5 + np.random.rand(*like.shape))


@frozen
class Remembers(Rescaling):
    """Goes a little further at every call."""

    memory: ClassVar[list[float]] = [1.0]

    def factors(self, like: Tensor, generator: torch.Generator) -> Tensor:
        self.memory[0] *= 1.01
        return super().factors(like, generator) * self.memory[0]


@frozen
class CountsItsCalls(Rescaling):
    """Keeps a counter in itself, which no checkpoint sees."""

    def factors(self, like: Tensor, generator: torch.Generator) -> Tensor:
        object.__setattr__(self, "calls", vars(self).get("calls", 0) + 1)
        return super().factors(like, generator)


@frozen
class DividesByZero(Rescaling):
    """Normalises by the smallest factor it drew, minus itself."""

    def factors(self, like: Tensor, generator: torch.Generator) -> Tensor:
        drawn = super().factors(like, generator)
        return drawn / (drawn - drawn.min())


@frozen
class SinglePrecision(Rescaling):
    """Computes in float32 whatever the network is."""

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        return Displacement({n: (d * known[n]).float() for n, d in maps.items()}, maps)


@frozen
class ChangesASetting(Rescaling):
    """Searches with another setting of the network, one that neither a state dict nor the transaction knows of, and
    leaves it so."""

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        gain = getattr(problem.trunk, "gain", None)
        if gain is not None:
            gain.value *= 2.0
        return super().propose(problem, generator)


@frozen
class ClampsWeights(Rescaling):
    """Keeps new weights within 1.5, which a network as it is made never reaches in one teleport."""

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        moved = {n: (d * known[n]).clamp(-1.5, 1.5) for n, d in maps.items()}
        factors = {n: torch.where(known[n] == 0, d.expand_as(known[n]), moved[n] / known[n]) for n, d in maps.items()}
        return Displacement(moved, factors)


@frozen
class SparesWhatIsSmall(Rescaling):
    """Takes entries below the root of the dtype's epsilon for zeros: none is in float64, many are in bfloat16."""

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        factors = {}
        for n, d in maps.items():
            small = known[n].abs() < torch.finfo(known[n].dtype).eps ** 0.5
            factors[n] = torch.where(small, torch.ones_like(known[n]), d.expand_as(known[n]))
        return super().finish(problem, known, factors)


@frozen
class DoublePrecision(Rescaling):
    """Computes in float64, and hands that over, whatever the network is."""

    def finish(self, problem: TeleportProblem, known: dict[str, Tensor], maps: dict[str, Tensor]) -> Displacement:
        return Displacement({n: (d.double() * known[n].double()) for n, d in maps.items()}, maps)


KILLED_BY: dict[type, tuple[str, ...]] = {
    ConflictBlind: ("lowers-conflict",),
    EndsNoConflict: ("helps-where-it-must",),
    NeverRests: ("zero-steps-stay",),
    TakesClippedForReLU: ("loss-invariant",),
    MapsByDivision: ("composes",),
    ForgetsTheConsumer: ("loss-invariant",),
    ForgetsTheBias: ("loss-invariant",),
    Negative: ("loss-invariant",),
    TakesAnyActivation: ("loss-invariant",),
    EvaluationOnly: ("loss-invariant",),
    InverseMaps: ("maps-tell-the-truth", "history-in-new-coordinates", "gradients-in-new-coordinates"),
    GammaBlind: ("gamma-zero-keeps-losses",),
    GlobalGenerator: ("deterministic",),
    GlobalNumpyGenerator: ("deterministic",),
    CountsItsCalls: ("pure",),
    Remembers: ("deterministic",),
    DividesByZero: ("finite",),
    SinglePrecision: ("shape-dtype-device",),
    ChangesASetting: ("rollback-exact",),
    ClampsWeights: ("composes",),
    SparesWhatIsSmall: ("low-precision-network",),
    DoublePrecision: ("low-precision-network",),
}

LAWS = (
    "finite", "shape-dtype-device", "deterministic", "pure", "rollback-exact", "loss-invariant", "maps-tell-the-truth",
    "history-in-new-coordinates", "gradients-in-new-coordinates", "composes",
    "low-precision-network",
)  # fmt: skip
"""What the correct twin keeps."""
