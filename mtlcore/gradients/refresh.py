"""Keeping the weights of a method for some steps: most steps then cost one pass through the trunk.

Off by default, because it changes the method: between two refreshes the direction is J_t^T w with the weights of an
earlier step, and none of the method's laws is promised for it. What it costs in exactness is measured at every
refresh and reported: |J^T (w_old - w_new)| / |J^T w_new|, from the Gramian just computed. The method's state does
not change in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError
from mtlcore.gradients import features_only
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.task_gradients import TaskGradients
from mtlcore.presence import Presence

_WISH = ("refresh", "leave refresh out")


@dataclasses.dataclass(frozen=True)
class Refresh:
    """When a method is asked for new weights.

    Args:
        every: at the latest after so many steps; 1 means always.
        drift: earlier if the Gramian of the gradients at the features (cheap: it takes no pass through the trunk) has
            moved by more than this since the weights were made: max_ij |Z_ij - Z'_ij| / sqrt(max(Z_ii, Z'_ii)
            max(Z_jj, Z'_jj)), between 0 and 2. None: not watched.

    Raises:
        ConfigurationError: values outside of these ranges.
    """

    every: int = 1
    drift: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise ConfigurationError(
                f"refresh: every must be a whole number of steps, at least 1; found {self.every!r}."
            )
        number = isinstance(self.drift, (int, float)) and not isinstance(self.drift, bool)
        if self.drift is not None and not (number and 0.0 <= self.drift <= 2.0):
            raise ConfigurationError(f"refresh: drift must lie between 0 and 2; found {self.drift!r}.")


class Keeper:
    """The weights that are kept, and for how long."""

    def __init__(self, policy: Refresh) -> None:
        self.policy = policy
        self._weights: Tensor | None = None
        self._heads: Tensor | None = None
        self._present: Tensor | None = None
        self._reference: Tensor | None = None
        self._now: Tensor | None = None
        self._age = 0
        self._next: dict[str, Any] = {}

    def due(self, batch: Batch, whole: Callable[[Presence], Presence] | None = None) -> bool:
        """Whether new weights are, the drift aside.

        Args:
            batch: of this process.
            whole: gives the tasks that are present on any of several processes; None where there is one.

        Raises:
            ConfigurationError: no features; or a drift is to be watched on several processes.
        """
        if whole is not None and self.policy.drift is not None:
            raise ConfigurationError(
                "refresh with a drift looks at the gradients of one process: with several, give a number of steps only."
            )
        present = (batch.presence if whole is None else whole(batch.presence)).mask()
        if not batch.features:
            raise ConfigurationError("refresh needs the features: backward(losses, features=z).")
        same = self._present is not None and torch.equal(self._present, present)
        return self._weights is None or not same or self._age >= self.policy.every

    def reuse(self, batch: Batch, whole: Callable[[Presence], Presence] | None = None) -> TaskGradients | None:
        """What is needed to apply the kept weights, or None when new ones are due.

        Args, Raises:
            As :meth:`due`.
        """
        due = self.due(batch, whole)
        if due and self.policy.drift is None:
            return None
        # A drift may ask for the task gradients after all.
        found = features_only.collect(batch, keep_graph=self.policy.drift is not None, wish=_WISH)
        if self.policy.drift is not None:
            self._now = found.gramian().cpu()
            if due or self.drift() > self.policy.drift:
                return None
        return found

    def kept(self) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Weights (K,), head weights, and what to report; one step older once :meth:`commit` is called."""
        assert self._weights is not None
        notes: dict[str, Any] = {"refresh_age": self._age}
        if self._now is not None:
            notes["refresh_drift"] = self.drift()
        self._next = {"_age": self._age + 1}
        return self._weights.clone(), self._heads, notes

    def renew(self, weights: Tensor | None, heads: Tensor | None, present: Tensor, gramian: Tensor) -> dict[str, Any]:
        """Keep new weights, once :meth:`commit` is called.

        Returns:
            ``refresh_error``: how far the direction of the old weights would have been off, relative.

        Raises:
            ConfigurationError: the method returned a direction.
        """
        if weights is None:
            raise ConfigurationError(
                "refresh keeps task weights, but this method returns a direction: leave refresh out."
            )
        notes: dict[str, Any] = {}
        if self._weights is not None and self._present is not None and torch.equal(self._present, present):
            part = gramian[present][:, present]
            new, old = weights[present].to(part), self._weights[present].to(part)
            length = float(new @ part @ new)
            notes["refresh_error"] = (
                (max(float((new - old) @ part @ (new - old)), 0.0) / length) ** 0.5 if length else 0.0
            )
        self._next = {
            "_weights": weights.clone(),
            "_heads": None if heads is None else heads.clone(),
            "_present": present.clone(),
            "_reference": self._now,
            "_age": 1,
        }
        return notes

    def commit(self) -> None:
        """The step has succeeded."""
        vars(self).update(self._next)
        self._next = {}

    def drift(self) -> float:
        """See :class:`Refresh`."""
        if self._reference is None or self._now is None or self._reference.shape != self._now.shape:
            return float("inf")
        norms = torch.maximum(self._reference.diagonal(), self._now.diagonal()).sqrt()
        moved = (self._now - self._reference).abs()
        return float(torch.where(moved == 0, 0.0, moved / (norms[:, None] * norms[None, :])).max())

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        if self._weights is None or self._present is None:
            return {}
        out = {
            "weights": self._weights.clone(),
            "present": self._present.clone(),
            "age": torch.tensor(self._age, device="cpu"),
        }
        if self._heads is not None:
            out["heads"] = self._heads.clone()
        if self._reference is not None:
            out["reference"] = self._reference.clone()
        return out

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self._weights, self._present = state.get("weights"), state.get("present")
        self._heads, self._reference = state.get("heads"), state.get("reference")
        self._age = int(state["age"]) if "age" in state else 0
