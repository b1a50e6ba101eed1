"""Bytes that really left a process, what a message costs here, and what that means for many processes.

The model of one step's communication is a * messages + b * bytes, both of one process: a message costs the latency a,
however short, and b for each byte. Counts are those of the algorithms in use: a ring for sums, R - 1 pieces for an
exchange or a gathering.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

_SENT = 200
"""Offset of tcpi_bytes_sent in Linux's struct tcp_info (4.19 and later)."""
_BUCKET = 4 * 2**20
"""Bytes of rows per exchange in mtlcore.distributed.shards; a row's where that is more."""
_DDP_BUCKET = 25 * 2**20


def sent() -> int | None:
    """Bytes that this process has sent over its open TCP connections; None where the system does not tell."""
    total = 0
    try:
        open_files = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return None
    for number in open_files:
        with contextlib.suppress(OSError):  # closed meanwhile, or no TCP
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as connection:
                if connection.type != socket.SOCK_STREAM or connection.family == socket.AF_UNIX:
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                if len(info) < _SENT + 8:
                    return None
                total += struct.unpack_from("<Q", info, _SENT)[0]
    return total


class Constants(NamedTuple):
    """Seconds per message, and per byte."""

    latency: float
    per_byte: float


def measured(rank: int, repeats: int = 30) -> Constants | None:
    """Of the connection between processes 0 and 1, from messages back and forth; on process 0, None elsewhere."""
    short, long = (_half_a_round(rank, size, repeats) for size in (64, 4 * 2**20))
    if rank:
        return None
    return Constants(short, max(long - short, 0.0) / (4 * 2**20))


def _half_a_round(rank: int, size: int, repeats: int) -> float:
    data = torch.zeros(size // 4)
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        if rank == 0:
            dist.send(data, 1)
            dist.recv(data, 1)
        elif rank == 1:
            dist.recv(data, 0)
            dist.send(data, 0)
        times.append((time.perf_counter() - start) / 2)
    return min(times[3:])  # neighbours' load only ever adds


class Traffic(NamedTuple):
    """Of one process in one step."""

    messages: float
    bytes: float

    def seconds(self, constants: Constants) -> float:
        """How long it takes, if nothing overlaps."""
        return constants.latency * self.messages + constants.per_byte * self.bytes


def _sum(r: int, size: float) -> Traffic:
    """A ring: every process sends 2 (R - 1) pieces of size / R."""
    return Traffic(2 * (r - 1), 2 * (r - 1) / r * size)


def _small(r: int, k: int) -> Traffic:
    """Verdict, losses, Gramian, answer: three sums of a few numbers."""
    return Traffic(3 * 2 * (r - 1), 2 * (r - 1) / r * 8 * (k * k + 6 * k))


def ddp(r: int, k: int, p: int) -> Traffic:
    """DistributedDataParallel's plain step: one gradient, in buckets."""
    buckets = math.ceil(4 * p / _DDP_BUCKET)
    return Traffic(buckets * 2 * (r - 1), 2 * (r - 1) / r * 4 * p)


def naive(r: int, k: int, p: int) -> Traffic:
    """Every row summed everywhere."""
    one = _sum(r, 4 * p)
    return Traffic(k * one.messages, k * one.bytes)


def shares(r: int, k: int, p: int) -> Traffic:
    """Rows scattered in buckets, the direction gathered."""
    width = max(1, max(_BUCKET, 4 * p) // (4 * k * r))
    exchanges = math.ceil(math.ceil(p / r) / width)
    few = _small(r, k)
    return Traffic((exchanges + 1) * (r - 1) + few.messages, (k + 1) * (r - 1) / r * 4 * p + few.bytes)


def features(r: int, k: int, p: int) -> Traffic:
    """K x K sums, and one gradient."""
    few, one = _small(r, k), ddp(r, k, p)
    return Traffic(few.messages + one.messages, few.bytes + one.bytes)


WAYS: dict[str, Callable[[int, int, int], Traffic]] = {
    "DDP, plain sum": ddp,
    "all rows summed": naive,
    "shares of columns": shares,
    "at the features": features,
}


def stops_paying(k: int, p: int, constants: Constants) -> int | None:
    """The smallest R of 2, 4, ..., 65536 at which summing all rows everywhere is no slower than shares of columns."""
    for i in range(1, 17):
        r: int = 2**i
        if naive(r, k, p).seconds(constants) <= shares(r, k, p).seconds(constants):
            return r
    return None


def table(k: int, p: int, constants: Constants) -> str:
    """Milliseconds of communication per step, by way and R."""
    sizes = [2**i for i in range(1, 11)]
    lines = [f"{f'K={k}, P={p:,}':22}" + "".join(f"{f'R={r}':>10}" for r in sizes)]
    for name, way in WAYS.items():
        lines.append(f"{name:22}" + "".join(f"{1e3 * way(r, k, p).seconds(constants):10.4g}" for r in sizes))
    end = stops_paying(k, p, constants)
    lines.append(
        f"all rows summed is no slower from R = {end}" if end else "shares of columns stay ahead up to R = 65536"
    )
    return "\n".join(lines)
