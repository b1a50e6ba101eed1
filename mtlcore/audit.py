"""Do the losses reach the trunk? A network that is silently not trained as asked is the worst error.

Three findings. A trunk that no loss reaches is another network than the one that is trained: an error in any step. A
parameter of the trunk that no task reaches is never trained; one that a single task reaches is that task's own, and
the method treats it as shared: each named once, when every task has been seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from mtlcore.errors import ConfigurationError, TrainingWarning, listed
from mtlcore.gradients import graph, torch_internals
from mtlcore.gradients.batch import Batch

_STEPS = 3
"""First steps that are looked at before parameters are named."""
_PATIENCE = 50
"""Steps after which a task that never came is not waited for any longer."""


def check_reached(batch: Batch) -> None:
    """Raises LossError if no loss reaches any of the trunk's parameters."""
    leaves = batch.leaves
    if batch.shared and not any(id(p) in leaves for p in batch.shared) and not graph.opaque(batch.losses):
        raise batch.unreached()


def check_unchanged(trunk: nn.Module, known: Sequence[Tensor]) -> None:
    """What replaces or joins a parameter later would be taken for a part of the heads.

    Raises:
        ConfigurationError: the trunk has other parameters than when MultiTask took them; names them.
    """
    ids = set(map(id, known))
    if set(map(id, torch_internals.parameters(trunk))) == ids:
        return
    new = [name for name, p in trunk.named_parameters() if id(p) not in ids]
    gone = len(ids) - sum(id(p) in ids for p in trunk.parameters())
    joined = f"parameter {new[0]} was" if len(new) == 1 else f"parameters {listed(new)} were"
    what = [f"{joined} not there when MultiTask took them"] if new else []
    what += [f"{gone} of its parameters {'is' if gone == 1 else 'are'} gone"] if gone else []
    raise ConfigurationError(
        f"the trunk has changed: {' and '.join(what)} (a new layer, an adapter, weight_norm?). Call "
        f"refresh_parameters() after the change: the method's state is kept. An optimizer has to be told by "
        f"add_param_group."
    )


def check_optimizer(optimizers: Sequence[object], shared: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raises ConfigurationError if no trainable parameter of the trunk is in any optimizer; a TrainingWarning names
    those that are missing where only some are."""
    held = {id(p) for o in optimizers for g in getattr(o, "param_groups", ()) for p in g["params"]}
    lacking = [n for n, p in zip(names, shared) if id(p) not in held]
    if shared and len(lacking) == len(shared):
        raise ConfigurationError(
            "the optimizer has none of the trunk's parameters, so a step would train the heads only: make it of "
            "[*trunk.parameters(), *heads.parameters()], or freeze the trunk with requires_grad_(False) if that is "
            "intended."
        )
    if lacking:
        _warn(
            f"the optimizer lacks {len(lacking)} of the trunk's {len(shared)} trainable parameters "
            f"({listed(lacking)}): they get a gradient and never move. Add them by add_param_group, or freeze them."
        )


class Reach:
    """Which tasks have reached which parameter of the trunk, in the first steps.

    Args:
        done: whether enough has been seen.
    """

    def __init__(self, done: bool = False) -> None:
        self._by: dict[int, set[str]] = {}
        self._seen: set[str] = set()
        self._steps = 0
        self.done = done

    def __reduce__(self) -> tuple[type[Reach], tuple[bool]]:
        return Reach, (self.done,)  # what was seen is known by identity, and a copy has other parameters

    def look(self, batch: Batch, names: Callable[[], Mapping[int, str]]) -> None:
        """One more step; when enough has been seen, what is odd is named in a TrainingWarning.

        Args:
            batch: of the step.
            names: gives those of the trunk's parameters, by identity.
        """
        self._steps += 1
        if graph.opaque(batch.losses):  # what such a function depends on cannot be seen
            self.done = True
            return
        if self._seen.issuperset(batch.names) and self._steps > _STEPS:
            self.done = self._steps > _PATIENCE
        else:
            self._note(batch)
        if self._steps >= _STEPS and self._seen.issuperset(batch.presence.names):
            self.done = True
            self._tell(batch, names())

    def _note(self, batch: Batch) -> None:
        for name, loss in zip(batch.names, batch.losses):
            self._seen.add(name)
            for i in graph.leaves([loss])[0]:
                self._by.setdefault(i, set()).add(name)

    def _tell(self, batch: Batch, names: Mapping[int, str]) -> None:
        shared = [id(p) for p in batch.shared]
        never = [names.get(i, "?") for i in shared if i not in self._by]
        if never:
            _warn(
                f"no task has reached {len(never)} of the trunk's trainable parameters ({listed(never)}): they are not "
                f"trained. Freeze them if that is intended."
            )
        if len(batch.presence.names) < 2:
            return
        private: dict[str, list[str]] = {}
        for i in shared:
            tasks = self._by.get(i, set())
            if len(tasks) == 1:
                private.setdefault(next(iter(tasks)), []).append(names.get(i, "?"))
        for task, mine in private.items():
            _warn(
                f"only task {task!r} reaches {len(mine)} of the trunk's parameters ({listed(mine)}): they are part of "
                f"its head. The method counts them as shared, so that their gradient is scaled by the task's weight "
                f"and takes part in its decision. Pass only what the tasks share as trunk."
            )


def _warn(text: str) -> None:
    warnings.warn(text, TrainingWarning, stacklevel=6)
