"""Low-rank displacements: Delta = (alpha / r) B A for every weight, in layers of every kind.

A weight with two or more dimensions is treated as a matrix (first dimension times all others). Its rows are outputs in
Linear, Conv1d/2d/3d, the packed projections of nn.MultiheadAttention, GRU and LSTM; in an Embedding they are the
entries; a plain parameter is treated in the same way. Biases and scales of norms do not change.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mtlcore.errors import ConfigurationError, MissingExtraError


class Adapter(Protocol):
    """Factors, and the displacements that they define."""

    factors: list[nn.Parameter]

    def deltas(self) -> dict[str, Tensor]:
        """Parameter name -> displacement of its shape, differentiable in the factors; zero at first."""


def adapted(weights: dict[str, nn.Parameter], targets: Sequence[str]) -> dict[str, nn.Parameter]:
    """The weights that get an adapter: two or more dimensions, and a name that matches one of ``targets``.

    Raises:
        ConfigurationError: a pattern matches nothing.
    """
    chosen = {n: p for n, p in weights.items() if p.dim() >= 2 and p.numel() > 0}
    if not targets:
        return chosen
    for pattern in targets:
        if not any(fnmatch.fnmatchcase(n, pattern) for n in chosen):
            raise ConfigurationError(
                f"targets={tuple(targets)!r}: {pattern!r} matches no weight of the trunk; it has {', '.join(chosen)}."
            )
    return {n: p for n, p in chosen.items() if any(fnmatch.fnmatchcase(n, t) for t in targets)}


def make(kind: str, weights: dict[str, nn.Parameter], rank: int, alpha: int, generator: torch.Generator) -> Adapter:
    """An adapter of a kind: "low-rank" (own), or one of PEFT's ("peft-lora", "peft-loha", "peft-lokr")."""
    if kind == "low-rank":
        return LowRank(weights, rank, alpha, generator)
    return PeftAdapter(kind.removeprefix("peft-"), weights, rank, alpha, generator)


class LowRank:
    """LoRA [Hu et al. 2022]: A is Kaiming-uniform, B is zero, so the search starts exactly at the network. [code]"""

    def __init__(self, weights: dict[str, nn.Parameter], rank: int, alpha: int, generator: torch.Generator) -> None:
        self._shapes = {n: p.shape for n, p in weights.items()}
        self._scale = alpha / rank
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, p in weights.items():
            rows, columns = p.shape[0], p.numel() // p.shape[0]
            bound = columns**-0.5  # kaiming_uniform_(a=sqrt(5)), PEFT's choice for A
            a = (2.0 * torch.rand(rank, columns, generator=generator, device="cpu") - 1.0) * bound
            self._pairs[name] = (nn.Parameter(a.to(p)), nn.Parameter(p.new_zeros(rows, rank)))
        self.factors = [f for pair in self._pairs.values() for f in pair]

    def deltas(self) -> dict[str, Tensor]:
        """See :class:`Adapter`."""
        return {n: (self._scale * (b @ a)).view(self._shapes[n]) for n, (a, b) in self._pairs.items()}


class PeftAdapter:
    """Factors made and composed by PEFT.

    PEFT gets a substitute network with one Linear layer per adapted weight, not the user's network. So its adapters for
    Linear can be used for every kind of layer, and nothing is injected into the trunk.

    Raises:
        MissingExtraError: PEFT is not installed.
    """

    def __init__(
        self, kind: str, weights: dict[str, nn.Parameter], rank: int, alpha: int, generator: torch.Generator
    ) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's own dependencies deprecate one another at import
                import peft
        except ImportError as error:
            raise MissingExtraError("peft", "teleport", f"an adapter of kind 'peft-{kind}'") from error
        configs = {
            "lora": lambda: peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=r"w\d+"),
            "loha": lambda: peft.LoHaConfig(r=rank, alpha=alpha, target_modules=r"w\d+"),
            "lokr": lambda: peft.LoKrConfig(r=rank, alpha=alpha, target_modules=r"w\d+"),
        }
        stand_in = nn.Module()
        for i, p in enumerate(weights.values()):
            linear: nn.Module = nn.utils.skip_init(
                nn.Linear, p.numel() // p.shape[0], p.shape[0], bias=False, device=p.device, dtype=p.dtype
            )
            stand_in.add_module(f"w{i}", linear)
        # PEFT draws the factors from the global generator: for that time it is seeded from ours.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device="cpu")))
            adapted = peft.inject_adapter_in_model(configs[kind](), stand_in)  # type: ignore[no-untyped-call]
        self._shapes = {n: p.shape for n, p in weights.items()}
        self._layers = [getattr(adapted, f"w{i}") for i in range(len(weights))]
        self.factors = [p for p in adapted.parameters() if p.requires_grad]

    def deltas(self) -> dict[str, Tensor]:
        """See :class:`Adapter`."""
        return {
            n: layer.get_delta_weight("default").view(shape)
            for (n, shape), layer in zip(self._shapes.items(), self._layers)
        }
