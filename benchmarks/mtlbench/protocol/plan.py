"""What is equal for all methods along a run: optimizer, schedule, data order, and when what is looked at."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mtlbench.devices import Device
from mtlbench.protocol.optimizer import Schedule, optimizer_of
from mtlbench.protocol.precision import autocast
from mtlbench.protocol.randomness import batches, seed_for
from mtlbench.protocol.selection import Best, Evaluate, Last, LastEpochs, Metrics, Selection
from mtlbench.tasks.base import Batch, BenchmarkTask, Budget, Network, Splits, evaluate, joined, moved

PROBES = 8
"""Checkpoints at which conflict is measured."""
TIMED_PAIRS = 24
"""Steps that are compared with a plain summed-loss step."""


class Plan:
    """Of one network. Nothing here knows the method."""

    def __init__(
        self,
        task_name: str,
        task: BenchmarkTask,
        network: Network,
        splits: Splits,
        seed: int,
        budget: Budget,
        device: Device,
        trial: bool,
    ) -> None:
        self.task, self.budget, self._device, self._trial = task, budget, device, trial
        # Where a protocol knows no validation part its examples are trained on, except while tuning looks at them.
        self._folded = budget.train_on_validation and not trial
        self._splits = splits
        self._train = joined(splits.train, splits.validation) if self._folded else splits.train
        self.per_epoch = budget.steps_per_epoch(len(self._train))
        self.context = autocast(budget, device)
        self.optimizer = optimizer_of(network, budget)
        self.schedule = Schedule(self.optimizer, budget, self.per_epoch)
        self._orders = {
            # A method that draws further batches must not shift the order that all the others see.
            axis: batches(len(self._train), budget.batch_size, seed_for(axis, task_name, seed))
            for axis in ("order", "further order", "held out")
        }
        self._augmenting = torch.Generator().manual_seed(seed_for("augmentation", task_name, seed))
        looks = {round((i + 1) * budget.steps / budget.evaluations) - 1 for i in range(budget.evaluations)}
        self.looks = set() if self._folded else looks
        self.ends = {budget.steps - 1 - i * self.per_epoch for i in range(budget.last_epochs)}
        self.probes = {round(i * budget.steps / PROBES) for i in range(PROBES)}
        first = min(3, budget.steps - 1)  # the first steps pay for warming up
        count = max(1, min(TIMED_PAIRS, (budget.steps - first) // 2))
        self.timed = {first + round(i * (budget.steps - first) / count) for i in range(count)}

    def selection(self, score: Callable[[Metrics], float | None], test: Evaluate) -> Selection:
        """The rule of the budget."""
        if self.budget.selection == "mean-of-last-epochs":
            return LastEpochs(score, None if self._trial else test)
        return Last(score) if self.budget.selection == "last" else Best(score)

    def next_batches(self, n: int) -> list[Batch]:
        """The step's own batch, and ``n`` - 1 further ones."""
        further = [self._drawn("further order") for _ in range(n - 1)]
        return [self._drawn("order"), *further]

    def renew_held_out(self) -> None:
        """Another training batch than the step's own: the probe on which a teleport must keep its promise."""
        self.held_out = self._drawn("held out", augment=False)

    def _drawn(self, axis: str, augment: bool = True) -> Batch:
        batch = self._train.batch(next(self._orders[axis]))
        if augment and self.budget.augment:
            batch = self.task.augment(batch, self._augmenting)
        return moved(batch, self._device.name)

    def after_step(self, step: int, selection: Selection, network: Network) -> None:
        """The schedule, and the looks that are due."""
        self.schedule.after_step(step)
        if step in self.looks:
            found = evaluate(self.task, network, self._splits.validation)
            self.schedule.after_look(selection.look(step, found, network))
        if isinstance(selection, LastEpochs) and step in self.ends:
            selection.step = step + 1
            found = {} if self._folded else evaluate(self.task, network, self._splits.validation)
            selection.end_of_epoch(found, network)
