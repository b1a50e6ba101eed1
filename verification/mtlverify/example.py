"""One input on which a law is tried, and its form in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Example:
    """Task gradients and losses of one step, and what a law drew besides.

    Args:
        jacobian: (K, P) task gradients, float64 or float32.
        losses: (K,) float64 task losses.
        seed: seed of the generator that the method receives; for a method without a state also the number of the step.
        family: which construction the Jacobian came from; its properties are proved in the strategy's docstring.
        extra: JSON-able values that the law drew for itself (a permutation, scale factors, ...).
    """

    jacobian: Tensor
    losses: Tensor
    seed: int = 0
    family: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def n_tasks(self) -> int:
        """K."""
        return int(self.jacobian.shape[0])

    def with_(self, **changes: Any) -> Example:
        """The same example with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats survive the round trip exactly."""
        return {
            "jacobian": self.jacobian.tolist(),
            "shape": list(self.jacobian.shape),
            "dtype": str(self.jacobian.dtype).removeprefix("torch."),
            "losses": self.losses.tolist(),
            "seed": self.seed,
            "family": self.family,
            "extra": dict(self.extra),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Example:
        """The inverse of :meth:`to_json`."""
        dtype = getattr(torch, data["dtype"])
        return Example(
            jacobian=torch.tensor(data["jacobian"], dtype=dtype).reshape(data["shape"]),
            losses=torch.tensor(data["losses"], dtype=torch.float64),
            seed=data["seed"],
            family=data["family"],
            extra=data["extra"],
        )
