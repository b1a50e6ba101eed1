"""Where the graph looks up rows of a table (an embedding, or bags of them), and what each of these rows gets back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from mtlcore.gradients.torch_internals import saved

_BAGS = "EmbeddingBagBackward0"
_MEAN, _MAX = 1, 2  # of torch.nn.EmbeddingBag, as the function keeps them


def is_known(node: Any) -> bool:
    """Whether :class:`Lookup` has the gradient of this look-up."""
    biggest = type(node).__name__ == _BAGS and saved(node, "mode") == _MAX
    return not biggest and not saved(node, "scale_grad_by_freq")


@dataclasses.dataclass(frozen=True)
class Lookup:
    """The rows that one function reads, without those of the padding.

    Args:
        rows: (n,), in the order in which they are read.
        outputs: (n,) for each the row of the function's result that it is a part of; None where they are one to one.
        factors: (n,) what it is multiplied with there; None for ones.
    """

    rows: Tensor
    outputs: Tensor | None
    factors: Tensor | None

    @classmethod
    def of(cls, node: Any) -> Lookup:
        """What the function in the graph has saved."""
        rows = saved(node, "indices").reshape(-1).long()
        padding = saved(node, "padding_idx")
        read = None
        if 0 <= padding <= torch.iinfo(torch.long).max:  # "none" arrives as -1, or as the largest unsigned number
            read = (rows != padding).nonzero().flatten()
        outputs, factors = (read, None) if type(node).__name__ != _BAGS else _bags(node, len(rows), read)
        return cls(rows if read is None else rows[read], outputs, factors)

    def spread(self, cotangent: Tensor) -> Tensor:
        """(c, n, columns) of the rows, from the (c, ..., columns) of the function's result."""
        read = math.prod(cotangent.shape[1:-1])  # a single row may be looked up without a dimension
        found = cotangent.reshape(len(cotangent), read, cotangent.shape[-1])
        if self.outputs is not None:
            found = found.index_select(1, self.outputs)
        return found if self.factors is None else found * self.factors[None, :, None].to(found)


def _bags(node: Any, n: int, read: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Of the ``read`` ones of n rows (None: all of them), the bag and the factor there."""
    starts = saved(node, "offsets").long()
    read = torch.arange(n, device=starts.device) if read is None else read
    bags = torch.bucketize(read, starts, right=True) - 1
    if saved(node, "mode") == _MEAN:
        return bags, torch.bincount(bags).double().reciprocal()[bags]
    weights = saved(node, "per_sample_weights")
    return bags, None if weights is None else weights.detach()[read]
