"""Timing and memory of contenders, so that neighbours' load and the allocator do not decide the result."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.autograd.profiler import profile

CPU = torch.device("cpu")

_TRIM, _TOP_PAD, _MMAP = -1, -2, -3
"""Numbers of mallopt's parameters; 32 MB is the most that the last one takes."""

TURN = 3
"""Steps that a contender makes in a row."""


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    seconds: float,
    least: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each step, measured in rounds: every contender's turn once per round, so that all see the same load.

    A turn is :data:`TURN` steps in a row, as in training, of which the first is not measured: it finds the caches full
    of another contender's code and data, which no training loop ever does.

    Args:
        steps: name -> one step.
        seconds: time to spend in all.
        least: rounds even if the time is over.
        clock: ``time.process_time`` counts this process's own time only: on a busy machine with one thread it is the
            better measure, with several threads it also counts their waiting for each other.
    """
    out: dict[str, list[float]] = {name: [] for name in steps}
    names, end = list(steps), time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        # The order rotates: whoever runs after a memory-hungry neighbour pays for its page faults.
        shift = rounds % len(names)
        for name in names[shift:] + names[:shift]:
            steps[name]()
            start = clock()
            for _ in range(TURN - 1):
                steps[name]()
            out[name].append((clock() - start) / (TURN - 1))
        rounds += 1
    return out


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """Median over the rounds of time(name) / time(to): load that both share cancels."""
    return statistics.median(a / b for a, b in zip(times[name], times[to]))


def geometric_mean(values: Sequence[float]) -> float:
    """exp(mean(log))."""
    return statistics.geometric_mean(values)


def wall_clock(device: torch.device = CPU) -> Callable[[], float]:
    """Seconds; on an accelerator when its queue is empty."""
    if device.type == "cpu":
        return time.perf_counter

    def clock() -> float:
        torch.get_device_module(device).synchronize()
        return time.perf_counter()

    return clock


def waits(function: Callable[[], object], device: torch.device) -> int | None:
    """How often the processor waits for the accelerator in ``function``; None where torch does not tell."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing CUDA operation" in str(w.message) for w in caught)


def peak_bytes(function: Callable[[], object], device: torch.device = CPU) -> int:
    """Most bytes that torch's allocator held at once during ``function``, above what it held before.

    Every allocation and release of tensor memory is in the profiler's trace; their running sum is exact and knows
    nothing of caches, page sizes or other processes, unlike the resident set size. It sees this thread:
    each further thread of a threaded source holds the intermediates of one more task. On an accelerator the allocator
    itself keeps count.
    """
    gc.collect()
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats()
        before = module.memory_allocated()
        kept = function()
        del kept
        return int(module.max_memory_allocated() - before)
    with profile(profile_memory=True, use_kineto=True) as trace:
        kept = function()
    del kept
    assert trace.kineto_results is not None
    events = [
        e for e in trace.kineto_results.events() if e.name() == "[memory]" and str(e.device_type()).endswith("CPU")
    ]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def keep_memory() -> None:
    """From now on the C library keeps freed memory instead of giving it back to the system (glibc on Linux).

    Otherwise the layout of the heap, which is luck, decides who faults in new pages for the gradients at every step: up
    to a tenth of a step of 3 ms, for one contender and not for the next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((_TRIM, 2**31 - 1), (_TOP_PAD, 1 << 26), (_MMAP, 1 << 25)):
            mallopt(parameter, value)


def name_of(device: torch.device) -> str:
    """For records: the accelerator's model, or "cpu"."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def threads() -> int:
    """How many threads torch uses; part of every record, for ratios depend on it."""
    return torch.get_num_threads()
