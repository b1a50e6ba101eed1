"""The layers of a trunk, and the number of entries that each has in a row of the Jacobian."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def layers_of(trunk: nn.Module) -> dict[str, int]:
    """Layer -> number of its scalar parameters that need gradients, in the order of the Jacobian's columns.

    A layer is a module with parameters of its own; weight and bias are in one layer, as in Recon. A parameter that
    several modules share belongs to the first of them, as in a row of the Jacobian.
    """
    sizes: dict[str, int] = {}
    for name, parameter in trunk.named_parameters():
        if parameter.requires_grad:
            layer = name.rpartition(".")[0] or name
            sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    return sizes


def sizes_of(trunk: nn.Module) -> tuple[float, ...]:
    """The same numbers in the form of the option ``sizes`` of ``layerwise`` and ``layer-conflict``.

    Raises:
        ValueError: the parameters of one layer are not consecutive, so sizes in order cannot describe the layers.
    """
    if not _contiguous(name.rpartition(".")[0] for name, p in trunk.named_parameters() if p.requires_grad):
        raise ValueError("the parameters of one layer are not together in the trunk's order: give the sizes by hand.")
    return tuple(float(size) for size in layers_of(trunk).values())


def _contiguous(names: Iterable[str]) -> bool:
    met: list[str] = []
    for name in names:
        if name and name in met and met[-1] != name:
            return False
        met.append(name)
    return True
