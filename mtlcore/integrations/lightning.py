"""Lightning: a ``LightningModule`` whose training steps are those of a ``MultiTask``.

Automatic optimisation::

    class Network(MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.trunk, self.heads = ...
            self.mt = mtlcore.MultiTask(self.trunk, "upgrad", tasks=["a", "b"], heads=self.heads)

        def training_step(self, batch, batch_idx):
            z = self.trunk(batch["x"])
            return self.joint({t: loss(head(z), batch[t]) for t, head in self.heads.items()}, features=z)

Accumulation, clipping, precision, ``ddp`` and checkpoints are Lightning's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mtlcore.errors import ConfigurationError, MissingExtraError
from mtlcore.inputs import Closure, Features, Losses
from mtlcore.integrations._joint import Step, Through, hand_over, joint
from mtlcore.multitask import MultiTask
from mtlcore.report import StepReport

try:
    from lightning.pytorch import LightningModule
except ImportError as error:
    raise MissingExtraError("lightning", "train", "mtlcore.integrations.lightning") from error

_INSTEAD = "set self.automatic_optimization = False, and call self.multitask_step(closure) in training_step"
_REFUSED = ("deepspeed", "fsdp", "xla")


class MultiTaskModule(LightningModule):  # type: ignore[misc]
    """Give it one :class:`~mtlcore.MultiTask` (or several) as an attribute. Its state is in every checkpoint, in
    ``state_dict()``, and comes back when training goes on.

    Attributes:
        report: of the last step; None before the first one. ``on_after_backward`` and later hooks see that of their own
            step.
    """

    report: StepReport | None = None
    _waiting: dict[str, Any] | None = None
    """States of MultiTasks that are not made yet (in ``configure_optimizers``, say)."""

    def joint(
        self,
        losses: Losses,
        features: Features = None,
        *,
        multitask: MultiTask | None = None,
        last: bool | None = None,
    ) -> Tensor:
        """What ``training_step`` returns (or ``manual_backward`` is given): a scalar whose backward pass is the
        MultiTask's.

        Args:
            losses, features: as :meth:`mtlcore.MultiTask.backward` takes them; the losses as they are, for Lightning
                divides by the number of micro-batches.
            multitask: which; default: the only one.
            last: whether this is the last micro-batch of its step. Default: as ``accumulate_grad_batches`` says.

        Raises:
            ConfigurationError: no MultiTask, or several; one that needs :meth:`multitask_step`; a strategy that is not
                served.
        """
        mt = self._multitask(multitask)
        trainer, scaler = self._attached(), None
        if trainer is not None:
            _check_strategy(trainer)
            scaler = getattr(trainer.precision_plugin, "scaler", None)
        step = Step(mt, losses, features, lambda: self._is_last() if last is None else last, scaler, self._hear)
        return joint(step, _INSTEAD)

    def multitask_step(self, closure: Closure | Sequence[Closure], *, multitask: MultiTask | None = None) -> StepReport:
        """One whole step in manual optimisation, :meth:`mtlcore.MultiTask.step`: for teleports, methods that look twice
        and those that need several batches. Lightning's optimizers make the move, so that it counts their steps.

        Args:
            closure: as :meth:`mtlcore.MultiTask.step` takes it.
            multitask: which; default: the only one.

        Raises:
            ConfigurationError: automatic optimisation; or as :meth:`joint`.
            MtlError: as :meth:`mtlcore.MultiTask.step`.
        """
        if self.automatic_optimization:
            raise ConfigurationError(
                "multitask_step moves the optimizers itself: set self.automatic_optimization = False in __init__."
            )
        mt = self._multitask(multitask)
        _check_strategy(self.trainer)
        found = self.optimizers()
        optimizers = list(found) if isinstance(found, (list, tuple)) else [found]
        hand_over(mt, optimizers)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        report = mt.step(closure, scaler=Through(optimizers, scaler))
        self._hear(report)
        return report

    # --- whose ------------------------------------------------------------------------------------------------

    def _multitasks(self) -> dict[str, MultiTask]:
        return {name: value for name, value in vars(self).items() if isinstance(value, MultiTask)}

    def _multitask(self, wanted: MultiTask | None) -> MultiTask:
        mine = self._multitasks()
        if self._waiting:
            raise ConfigurationError(
                f"the checkpoint has the state of MultiTask {' and '.join(self._waiting)}, which this module lacks: "
                f"make it in __init__ or configure_optimizers, under that name."
            )
        found = [m for m in mine.values() if wanted is None or m is wanted]
        if len(found) != 1:
            raise ConfigurationError(
                f"this module needs its MultiTask as an attribute (self.mt = MultiTask(self.trunk, ...)), so that its "
                f"state is in the checkpoint; with several, say which: multitask=... It has "
                f"{', '.join(mine) or 'none'}."
            )
        return found[0]

    def _attached(self) -> Any:
        """The trainer, or None: a module may be trained by a loop of one's own."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    def _is_last(self) -> bool:
        trainer = self._attached()
        if trainer is None or not self.automatic_optimization:
            return True
        done = trainer.fit_loop.batch_idx + 1
        ended = trainer.is_last_batch or done == trainer.num_training_batches
        return bool(ended or done % trainer.accumulate_grad_batches == 0)

    def _hear(self, report: StepReport) -> None:
        self.report = report

    # --- checkpoints -------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """The states of all MultiTasks, by attribute."""
        return {name: mt.state_dict() for name, mt in self._multitasks().items()} | (self._waiting or {})

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take them over; those of a MultiTask that is made later wait for it."""
        mine = self._multitasks()
        for name, mt in mine.items():
            if name in state:
                mt.load_state_dict(state[name])
        self._waiting = {name: entry for name, entry in state.items() if name not in mine}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, MultiTask) and self._waiting and name in self._waiting:
            value.load_state_dict(self._waiting.pop(name))


def _check_strategy(trainer: Any) -> None:
    name = type(trainer.strategy).__name__
    if any(word in name.lower() for word in _REFUSED):
        raise ConfigurationError(
            f"Lightning's {name} is not served: it keeps the gradients to itself. Use strategy='ddp' (or a single "
            f"device); for a trunk too large, a loop of your own with torch.distributed.fsdp.fully_shard (FSDP2)."
        )
