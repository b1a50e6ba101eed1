"""Hugging Face ``Trainer``, whose steps are those of a ``MultiTask``.

The model's ``forward`` returns a dict (or ``ModelOutput``) with ``losses``, {task: scalar}, and if it can ``features``,
what the trunk gave to the heads::

    mt = mtlcore.MultiTask(model.trunk, "upgrad", tasks=["a", "b"])
    MultiTaskTrainer(model=model, args=args, train_dataset=data, multitask=mt).train()

Accumulation, clipping, precision, torchrun and ``resume_from_checkpoint`` are the Trainer's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore.errors import ConfigurationError, LossError, MissingExtraError, StateError
from mtlcore.integrations._joint import Step, check_served, joint
from mtlcore.multitask import MultiTask
from mtlcore.report import StepReport

try:
    from transformers import Trainer

    from mtlcore.integrations.accelerate import check_engine
except ImportError as error:
    raise MissingExtraError("transformers", "train", "mtlcore.integrations.transformers") from error

_FILE = "multitask.pt"
_INSTEAD = "train with accelerate (mtlcore.integrations.accelerate) or a loop of your own, and step(closure)"
_HOOKS = ("_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler")


class MultiTaskTrainer(Trainer):  # type: ignore[misc]
    """A ``Trainer`` for a model that returns losses by task. Its checkpoints hold the MultiTask's state
    (``multitask.pt``).

    Args:
        multitask: the :class:`~mtlcore.MultiTask`, made of the model's trunk.
        arguments, options: those of ``transformers.Trainer``.

    Attributes:
        report: of the last step; None before the first one.

    Raises:
        ConfigurationError: no MultiTask; one that needs the closure of a step (teleports, methods that look twice);
            ``compute_loss_func`` or label smoothing, which make one loss of all; several GPUs in one process
            (``DataParallel``); DeepSpeed or FSDP; or a Trainer of another version, that saves in another way.
    """

    def __init__(self, *arguments: Any, multitask: MultiTask, **options: Any) -> None:
        if not isinstance(multitask, MultiTask):
            raise ConfigurationError(f"multitask must be a MultiTask, found a {type(multitask).__name__}.")
        check_served(multitask, _INSTEAD)
        args = options.get("args", arguments[1] if len(arguments) > 1 else None)
        if args is not None and args.ddp_find_unused_parameters is None:
            # A search for unused parameters waits for a backward pass through DistributedDataParallel.
            args.ddp_find_unused_parameters = False
        super().__init__(*arguments, **options)
        self.multitask = multitask
        self.report: StepReport | None = None
        self._check()
        self.model_accepts_loss_kwargs = False  # losses are means, which the Trainer divides by the micro-batches

    def _check(self) -> None:
        lacking = [name for name in _HOOKS if not hasattr(Trainer, name)]
        if lacking:
            raise ConfigurationError(
                f"this version of transformers.Trainer has no {lacking[0]}, by which the MultiTask's state would get "
                f"into the checkpoints: take the version in constraints.txt."
            )
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ConfigurationError(
                "compute_loss_func and label_smoothing_factor make one loss: compute the task losses in the model's "
                "forward, and return {'losses': {task: loss}}."
            )
        if self.args.n_gpu > 1:
            raise ConfigurationError(
                f"the Trainer would split each batch over {self.args.n_gpu} GPUs of one process (DataParallel): start "
                f"one process per GPU with torchrun, or show the process a single one."
            )
        check_engine(self.accelerator)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The sum of the task losses, whose backward pass is the MultiTask's.

        Raises:
            LossError: the model returned no ``losses``.
        """
        outputs = model(**inputs)
        losses = outputs.get("losses") if isinstance(outputs, Mapping) else None
        if losses is None:
            kind = f"the keys {', '.join(outputs)}" if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
            raise LossError(f"the model's forward must return a dict with 'losses', {{task: scalar}}; it gave {kind}.")
        chief = self.accelerator
        step = Step(
            self.multitask,
            losses,
            outputs.get("features"),
            lambda: bool(chief.sync_gradients),
            chief.scaler,
            self._hear,
        )
        loss: Tensor = joint(step, _INSTEAD)
        return (loss, {"loss": loss.detach(), **_logits(outputs)}) if return_outputs else loss

    def _hear(self, report: StepReport) -> None:
        self.report = report

    # --- checkpoints: beside the optimizer's ---------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.multitask.state_dict(), os.path.join(output_dir, _FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, _FILE)
        if not os.path.isfile(path):
            raise StateError(
                f"{checkpoint} has no {_FILE}: it was not saved by a MultiTaskTrainer (or with save_only_model). Load "
                f"the model's weights, and train() without resume_from_checkpoint."
            )
        self.multitask.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def _logits(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluation collects: everything but losses and features."""
    return {name: value for name, value in outputs.items() if name not in ("losses", "features", "loss")}
