"""What a step costs: times, and ratios to a plain summed-loss step at the same moment."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mtlbench.devices import Device
from mtlbench.protocol.optimizer import optimizer_of
from mtlbench.protocol.precision import autocast
from mtlbench.tasks.base import Batch, BenchmarkTask, Budget, Inputs, Network, closure
from mtlcore.report import StepReport


class PlainTwin:
    """The yardstick of cost: a copy of the network that takes plain summed-loss steps on the same batches."""

    def __init__(self, network: Network, task: BenchmarkTask, budget: Budget, device: Device | None = None) -> None:
        self._task = task
        self._device = device or Device()
        self._context = autocast(budget, self._device)
        self._network = copy.deepcopy(network)
        self._optimizer = optimizer_of(self._network, budget)

    def step(self, inputs: Inputs, targets: Mapping[str, Tensor]) -> float:
        """Seconds of one step. The run's random stream is not touched."""
        others = self._device.random_devices()
        with torch.random.fork_rng(devices=others, device_type=self._device.kind if others else "cuda"):
            start = self._device.busy()
            self._optimizer.zero_grad()
            losses, _ = closure(self._task, self._network, inputs, targets, self._context)()
            total = sum(losses.values())
            assert isinstance(total, Tensor)
            total.backward()
            self._optimizer.step()
            return self._device.busy() - start


class Clock:
    """Times every step, and some of them against a plain summed-loss step right before or after."""

    def __init__(self, plain: PlainTwin, paired: set[int], device: Device | None = None) -> None:
        self._plain, self._paired, self._device = plain, paired, device or Device()
        self.calm: list[float] = []  # wall seconds of the steps without a teleport
        self.calm_cpu: list[float] = []
        self.pairs: list[tuple[float, float]] = []  # processor seconds: this method, plain
        self.teleport_wall = 0.0
        self.teleport_cpu: list[float] = []  # whole steps in which a teleport was tried

    def time(self, step: int, batch: Batch, do: Callable[[], StepReport]) -> StepReport:
        """Do a step. The plain step goes first every other time, so that a warm cache favours neither."""
        paired = step in self._paired
        plain_first = paired and len(self.pairs) % 2 == 0
        plain = self._plain.step(*batch) if plain_first else 0.0
        start, start_busy = self._device.wall(), self._device.busy()
        report = do()
        wall, cpu = self._device.wall() - start, self._device.busy() - start_busy
        if paired and not plain_first:
            plain = self._plain.step(*batch)
        if report.teleport is not None:
            self.teleport_wall += report.teleport.seconds
            self.teleport_cpu.append(cpu)
        elif step > 0:  # the first step pays for warming up
            self.calm.append(wall)
            self.calm_cpu.append(cpu)
            if paired:
                self.pairs.append((cpu, plain))
        return report

    def cost(self, steps: int) -> tuple[float | None, float | None]:
        """Wall seconds per step, and the ratio of processor time to a plain summed-loss step; None where no ordinary
        step after the first one was timed.

        Medians, because other work on the machine only ever adds time. What teleports took beyond an ordinary step
        is spread over all steps.
        """
        if not self.calm:
            return None, None
        per_step = statistics.median(self.calm) + self.teleport_wall / steps
        if not self.pairs:
            return per_step, None
        beyond = sum(self.teleport_cpu) - len(self.teleport_cpu) * statistics.median(self.calm_cpu)
        plain = statistics.median(p for _, p in self.pairs)
        return per_step, statistics.median(m / p for m, p in self.pairs) + beyond / steps / plain
