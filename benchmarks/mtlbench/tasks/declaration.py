"""What a task declares in plain values: how it is judged and trained. Needs no torch, so a report is quick."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtlcore.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number by which a task is judged.

    Args:
        task: the sub-task it belongs to.
        name: what it is, e.g. "accuracy".
        higher_is_better: its direction.
        unit: "%", "eV", ...; "" for a pure number.
        judged: whether delta-m counts it; one that does not is reported beside the others.
    """

    task: str
    name: str
    higher_is_better: bool
    unit: str = ""
    judged: bool = True

    @property
    def key(self) -> str:
        """How records call it: "task/name"."""
        return f"{self.task}/{self.name}"


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much training every method gets, the single-task baselines included, and by which rules.

    Args:
        steps: optimizer steps; ``epochs`` goes before it.
        batch_size: examples a step.
        learning_rate: of the trunk, and of the heads unless ``head_learning_rate`` says otherwise.
        evaluations: how many times validation is looked at (evenly spaced); the checkpoint is one of them.
        epochs: passes through the training part; None: ``steps`` says how long.
        optimizer: a class of ``torch.optim`` by name.
        optimizer_options: its options besides the learning rate.
        head_learning_rate: of the heads; tuning changes both rates by the same factor.
        weight_decay: as the optimizer understands it.
        schedule: "cosine" (half of one, to zero, a little every step), "constant", or a class of
            ``torch.optim.lr_scheduler`` by name, which moves after every epoch (``ReduceLROnPlateau``: after every look
            at validation).
        schedule_options: options of that class.
        selection: "best-validation" (the checkpoint with the best validation score), "last" (the end of training), or
            "mean-of-last-epochs" (no checkpoint: the test metrics at the ends of the last epochs are averaged).
        last_epochs: how many epochs that are.
        precision: "float32", or "bf16" or "fp16" by autocast (fp16 with a gradient scaler).
        augment: whether the task may augment training batches, if it does.
        train_on_validation: train on the validation part too, where a protocol knows no such part. Never in a trial of
            tuning, and only where the selection does not look at it.
    """

    steps: int
    batch_size: int
    learning_rate: float
    evaluations: int = 8
    epochs: float | None = None
    optimizer: str = "Adam"
    optimizer_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: str = "cosine"
    schedule_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    selection: str = "best-validation"
    last_epochs: int = 10
    precision: str = "float32"
    augment: bool = True
    train_on_validation: bool = False

    def __post_init__(self) -> None:
        if self.train_on_validation and self.selection == "best-validation":
            raise ConfigurationError(
                "train_on_validation = true leaves nothing to select by: give another selection, or leave it out."
            )

    def at_rate(self, rate: float) -> Budget:
        """With another learning rate, that of the heads in proportion."""
        heads = self.head_learning_rate
        scaled = None if heads is None else heads * rate / self.learning_rate
        return dataclasses.replace(self, learning_rate=rate, head_learning_rate=scaled)

    def differences(self) -> dict[str, Any]:
        """What a configuration is told by: how long and how fast, and all else that is not the default."""
        first = ("steps", "batch_size", "learning_rate", "evaluations")
        defaults = Budget(self.steps, self.batch_size, self.learning_rate)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found = {n: v for n, v in values.items() if n in first or v != getattr(defaults, n)}
        if self.epochs is not None:
            del found["steps"]
        return found

    def resolved(self, examples: int) -> Budget:
        """With the number of steps that ``epochs`` means for a training part of so many examples."""
        if self.epochs is None:
            return self
        return dataclasses.replace(self, steps=max(1, round(self.epochs * self.steps_per_epoch(examples))))

    def steps_per_epoch(self, examples: int) -> int:
        """The last incomplete batch of an epoch is dropped."""
        return max(1, examples // self.batch_size)
