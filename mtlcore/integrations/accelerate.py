"""Hugging Face accelerate: the loop of one's own that accelerate asks for, with a ``MultiTask`` in it.

::

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    mt = mtlcore.MultiTask(accelerator.unwrap_model(model).trunk, "upgrad", tasks=["a", "b"])
    multitask = Accelerated(accelerator, mt, optimizer)
    for x, y in loader:
        with accelerator.accumulate(model):
            losses, z = model(x, y)
            report = multitask.backward(losses, features=z)
            optimizer.step()
            optimizer.zero_grad()

``accelerator.save_state`` and ``load_state`` hold the MultiTask's state too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtlcore.errors import ConfigurationError, MissingExtraError
from mtlcore.inputs import Closure, Features, Losses
from mtlcore.integrations._joint import Step, Through, hand_over, joint
from mtlcore.multitask import MultiTask
from mtlcore.report import StepReport

try:
    import accelerate
except ImportError as error:
    raise MissingExtraError("accelerate", "train", "mtlcore.integrations.accelerate") from error

_INSTEAD = "use step(closure), which evaluates the batch as often as it needs to"
_REFUSED = ("DEEPSPEED", "MEGATRON_LM", "FSDP", "XLA", "TP")


class Accelerated:
    """A :class:`~mtlcore.MultiTask` under an ``Accelerator``.

    Args:
        accelerator: the ``accelerate.Accelerator``. It saves and loads the MultiTask's state from now on.
        mt: made of the network's own parameters (``accelerator.unwrap_model(model).trunk``).
        optimizer: what ``accelerator.prepare`` returned, one or several; needed by :meth:`step` only.

    Attributes:
        report: of the last finished step; None before the first one.

    Raises:
        ConfigurationError: DeepSpeed, Megatron, FSDP or another engine that keeps the gradients to itself; or no
            MultiTask.
    """

    def __init__(self, accelerator: accelerate.Accelerator, mt: MultiTask, optimizer: Any = None) -> None:
        if not isinstance(mt, MultiTask):
            raise ConfigurationError(f"Accelerated needs a MultiTask, found a {type(mt).__name__}.")
        check_engine(accelerator)
        self.accelerator = accelerator
        self.mt = mt
        self.report: StepReport | None = None
        given = optimizer if isinstance(optimizer, Sequence) else [] if optimizer is None else [optimizer]
        self._optimizers = list(given)
        wrong = [o for o in self._optimizers if not hasattr(o, "optimizer")]
        if wrong:
            raise ConfigurationError(
                f"{type(wrong[0]).__name__} is not what accelerator.prepare(...) returned: prepare the optimizer first."
            )
        accelerator.register_for_checkpointing(mt)

    def backward(self, losses: Losses, features: Features = None) -> StepReport | None:
        """In place of ``accelerator.backward(loss)``. Micro-batches are counted by ``accelerator.accumulate``, and the
        losses handed over as they are: accelerate divides by their number.

        Args:
            losses, features: as :meth:`mtlcore.MultiTask.backward` takes them.

        Returns:
            The report; None for a micro-batch that is not the last of its step.

        Raises:
            ConfigurationError: a teleport, or a method that looks twice or at several batches: use :meth:`step`.
            MtlError: as :meth:`mtlcore.MultiTask.backward`.
        """
        chief = self.accelerator
        before, self.report = self.report, None
        step = Step(self.mt, losses, features, lambda: bool(chief.sync_gradients), chief.scaler, self._hear)
        try:
            chief.backward(joint(step, _INSTEAD))
        finally:
            report, self.report = self.report, self.report or before
        return report

    def step(self, closure: Closure | Sequence[Closure]) -> StepReport:
        """One whole step, :meth:`mtlcore.MultiTask.step`, in which accelerate's optimizers make the move; for teleports
        and methods that look twice too. Micro-batches are a list of closures here.

        Args:
            closure: as :meth:`mtlcore.MultiTask.step` takes it.

        Raises:
            ConfigurationError: no optimizer, or inside of ``accelerator.accumulate`` before the last micro-batch.
            MtlError: as :meth:`mtlcore.MultiTask.step`.
        """
        if not self._optimizers:
            raise ConfigurationError("step(closure) moves the optimizer: Accelerated(accelerator, mt, optimizer).")
        if not self.accelerator.sync_gradients:
            raise ConfigurationError(
                "step(closure) takes a whole batch, and accelerator.accumulate counts this one as a micro-batch: leave "
                "accumulate out, and pass a list of closures, one per micro-batch."
            )
        hand_over(self.mt, self._optimizers)
        self.report = self.mt.step(closure, scaler=Through(self._optimizers, self.accelerator.scaler))
        return self.report

    def _hear(self, report: StepReport) -> None:
        self.report = report


def check_engine(accelerator: Any) -> None:
    """
    Raises:
        ConfigurationError: it trains by an engine whose gradients a multi-task step cannot see.
    """
    name = str(getattr(accelerator.distributed_type, "name", accelerator.distributed_type))
    if any(word in name for word in _REFUSED):
        raise ConfigurationError(
            f"accelerate's engine {name} is not served: it keeps the gradients to itself. Use plain DDP (MULTI_GPU or "
            f"MULTI_CPU); for a trunk too large, a loop of your own with torch.distributed.fsdp.fully_shard (FSDP2)."
        )
