"""Which gradient source serves a step, and why."""

from __future__ import annotations

from mtlcore.contracts import Needs
from mtlcore.errors import ConfigurationError
from mtlcore.gradients.batched import Batched
from mtlcore.gradients.features_only import FeaturesOnly
from mtlcore.gradients.losses_only import LossesOnly
from mtlcore.gradients.sequential import Sequential
from mtlcore.gradients.source import GradientProblem, GradientSource
from mtlcore.gradients.streaming import Streaming

SOURCES: dict[str, type[GradientSource]] = {
    s.name: s for s in (LossesOnly, Sequential, Batched, Streaming, FeaturesOnly)
}


class Planner:
    """Holds the sources of one training run (they keep buffers) and picks one per step.

    Args:
        wish: "auto", or the name of a source to force.
    """

    def __init__(self, wish: str = "auto") -> None:
        if wish != "auto" and wish not in SOURCES:
            raise ConfigurationError(f"gradients={wish!r}: choose one of auto, {', '.join(SOURCES)}.")
        self._wish = wish
        self._sources: dict[str, GradientSource] = {}

    def pick(self, needs: Needs, problem: GradientProblem) -> tuple[GradientSource, str]:
        """The source for what this step needs, and the reason in words.

        Raises:
            ConfigurationError: the forced source does not provide what the method needs.
        """
        if self._wish == "auto":
            if needs == Needs.LOSSES:
                return self._get("losses"), "losses: the method needs no task gradients, one backward pass"
            reason = "sequential: one vector-Jacobian product per task"
            if not problem.features:
                reason += "; no features were given, so the whole graph is searched for head parameters (slower)"
            return self._get("sequential"), reason
        source = self._get(self._wish)
        if source.provides < needs:
            raise ConfigurationError(
                f'gradients="{self._wish}" provides {source.provides.name}, but this method (or its detector) needs '
                f'{needs.name}. Use gradients="auto".'
            )
        return source, f"{self._wish}: forced"

    def _get(self, name: str) -> GradientSource:
        if name not in self._sources:
            self._sources[name] = SOURCES[name]()
        return self._sources[name]
