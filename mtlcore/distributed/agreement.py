"""The first step: is it the same run on every process?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.distributed.dtensors import is_sharded
from mtlcore.errors import ConfigurationError

_SHOWN = 120


def fingerprint(tensors: Sequence[Tensor]) -> list[str]:
    """Of each tensor's dtype, shape and bits."""
    out = []
    for t in tensors:
        if is_sharded([t]):  # the bits here are nobody else's
            out.append(f"shard of {t.dtype}{tuple(t.shape)}")
            continue
        values = t.detach().clone().cpu().contiguous()  # a copy, because a tensor that numpy has seen cannot be resized
        bits = values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
        out.append(hashlib.blake2b(f"{t.dtype}{tuple(t.shape)}".encode() + bits, digest_size=8).hexdigest())
    return out


def check(described: Sequence[Mapping[str, Any]]) -> None:
    """Compare what every process says of its run, entry by entry, with process 0.

    Raises:
        ConfigurationError: names entry, process, and both values.
    """
    first = described[0]
    wrong = []
    for rank, other in enumerate(described):
        for key, value in other.items():
            if value != first[key]:
                mine, theirs = _apart(first[key], value)
                wrong.append(f"{key}: process 0 has {mine}, process {rank} has {theirs}")
                break
    if wrong:
        raise ConfigurationError(
            f"the processes do not run the same thing; {'; '.join(wrong)}. Make the network, the MultiTask and the "
            f"optimizer in the same way on every process, from one seed or one checkpoint."
        )


def _apart(one: Any, other: Any) -> tuple[str, str]:
    """What differs, as far as there is room to say it."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [k for k in dict.fromkeys([*one, *other]) if one.get(k, _GONE) != other.get(k, _GONE)]
        shown = keys[:3]
        return (
            ", ".join(f"{k} {_short(one.get(k, _GONE))}" for k in shown),
            ", ".join(f"{k} {_short(other.get(k, _GONE))}" for k in shown),
        )
    return _short(one), _short(other)


class _Gone:
    def __repr__(self) -> str:
        return "(none)"


_GONE = _Gone()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
