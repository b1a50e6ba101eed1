"""What a run has learnt so far, as a value: a step that fails leaves the old one in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mtlcore.contracts import Conflict, State


class Progress(NamedTuple):
    """Everything that one step hands to the next.

    Args:
        tasks: the names of the run; None before the first batch.
        seed: of every random choice.
        step: how many steps were finished.
        state: the method's; None before the first step.
        teleport_steps: when teleports were attempted.
        looks: how often the detector was asked.
        fired: how often it found a conflict.
        awaiting: whether the last step still waits for its second look.
        awaited: the tasks whose losses that look needs, those of the step; () if it is not known.
    """

    tasks: tuple[str, ...] | None = None
    seed: int = 0
    step: int = 0
    state: State | None = None
    teleport_steps: tuple[int, ...] = ()
    looks: int = 0
    fired: int = 0
    awaiting: bool = False
    awaited: tuple[str, ...] = ()

    def counts(self, conflict: Conflict | None) -> tuple[int, int]:
        """How often the detector has looked and fired, this step's verdict included."""
        if conflict is None:
            return self.looks, self.fired
        return self.looks + 1, self.fired + bool(conflict.conflicting)

    def after(
        self,
        names: Sequence[str] | None,
        state: State,
        conflict: Conflict | None,
        awaited: Sequence[str] | None,
    ) -> Progress:
        """One step further.

        Args:
            names: of the run's tasks; None for a batch of anonymous ones.
            state: the method's, after the step.
            conflict: the detector's verdict.
            awaited: the tasks present, for a method that looks at their losses again; None for others.
        """
        looks, fired = self.counts(conflict)
        return self._replace(
            tasks=self.tasks if self.tasks is not None or names is None else tuple(names),
            step=self.step + 1,
            state=state,
            looks=looks,
            fired=fired,
            awaiting=awaited is not None,
            awaited=tuple(awaited or ()),
        )
