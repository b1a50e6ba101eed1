"""Which plugins a run uses, with which hyper-parameters: as plain values for a checkpoint, and compared with another.

Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtlcore.hyperparameters import Validated
from mtlcore.registry import registry

_OTHER = object()
"""Stands for a value that has no plain form."""


def describe(plugin: Validated | None) -> dict[str, Any] | None:
    """Name, distribution with version, and hyper-parameters, of plugins inside it too.

    Numbers, strings, truth values, None, sequences of these and plugins are described. A hyper-parameter of any other
    type (a function, a tensor) is left out: two of them cannot be compared in another process.
    """
    if plugin is None:
        return None
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(plugin) if dataclasses.is_dataclass(plugin) else ()
    entry = registry().entry_of(plugin)
    return {
        "name": registry().name_of(plugin),
        "distribution": "" if entry is None else entry.provenance,
        "options": plain({f.name: getattr(plugin, f.name) for f in fields if f.compare}),
    }


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have a plain form, in it."""
    found = {name: _plain(value) for name, value in options.items()}
    return {name: value for name, value in found.items() if value is not _OTHER}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two {role: description}, one phrase each: "aggregator.c was 0.1, is 0.9"."""
    old, new = _flat(then), _flat(now)
    out: list[str] = []
    others: tuple[str, ...] = ()
    for key in dict.fromkeys([*new, *old]):
        # Another plugin has other hyper-parameters: that needs no saying.
        if key.startswith(others) or (key in old and key in new and old[key] == new[key]):
            continue
        out.append(f"{key} was {_shown(old, key)}, is {_shown(new, key)}")
        others += (f"{key}.", f"{key} ")
    return out


def _plain(value: Any) -> Any:
    """As types of Python's own, which every checkpoint can hold; numpy's numbers among them."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (list, tuple)):
        values = [_plain(v) for v in value]
        return _OTHER if any(v is _OTHER for v in values) else values
    return describe(value) if isinstance(value, Validated) else _OTHER


def _flat(described: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in described.items():
        if isinstance(value, Mapping):
            out[key] = value["name"]
            out[f"{key} (distribution)"] = value["distribution"]
            out |= _flat({f"{key}.{name}": option for name, option in value["options"].items()})
        else:
            out[key] = value
    return out


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "not there"
