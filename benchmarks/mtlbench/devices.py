"""The device of a run: named as torch names it, with a clock that waits for it, and its peak memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from mtlcore.errors import ConfigurationError


def check(name: str) -> None:
    """Raises ConfigurationError if there is no such device here."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"device {name!r} cannot be used here: {first.rstrip('.')}. Give --device cpu, or one that torch can see."
        ) from error


class Device:
    """One device, as a run needs it. A run on the processor is timed by processor time, which waiting for a busy
    machine does not change; an accelerator by the wall clock, after its queue has been waited for."""

    def __init__(self, name: str = "cpu") -> None:
        self.name, self._torch = name, torch.device(name)
        self.is_cpu = self._torch.type == "cpu"

    @property
    def kind(self) -> str:
        """ "cpu", "cuda", ..."""
        return self._torch.type

    def wait(self) -> None:
        """Until all that was asked of the device is done."""
        if not self.is_cpu:
            torch.accelerator.synchronize(self._torch)

    def wall(self) -> float:
        """Seconds of the wall clock, when the device has nothing left to do."""
        self.wait()
        return time.perf_counter()

    def busy(self) -> float:
        """Seconds that ratios are made of."""
        return time.process_time() if self.is_cpu else self.wall()

    def reset_peak_memory(self) -> None:
        """Start a new measurement."""
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats(self._torch)

    def peak_memory_mb(self) -> float | None:
        """Peak of what torch allocated on the device; None on the processor."""
        return torch.cuda.max_memory_allocated(self._torch) / 1024.0**2 if self.kind == "cuda" else None

    def label(self) -> str:
        """What it is, for the record."""
        if self.kind == "cuda":
            return f"{self.name}: {torch.cuda.get_device_name(self._torch)}"
        return self.name

    def random_devices(self) -> list[torch.device]:
        """The devices beside the processor whose random streams a run must own."""
        return [] if self.is_cpu else [self._torch]


@contextlib.contextmanager
def repeatable(device: Device) -> Iterator[None]:
    """Inside, an accelerator computes the same again where torch can; where it cannot, it warns and goes on."""
    if device.is_cpu:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
