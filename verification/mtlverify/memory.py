"""The last answers of plugins that take long: laws that ask the same question share one.

Only a law that looks at nothing but the answer may ask here. What asking does (to the inputs, to the plugin, to the
next answer) is seen by the laws that really ask.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

_KNOWN: collections.OrderedDict[tuple[type, str, Hashable], Any] = collections.OrderedDict()


def remembered(plugin: Any, question: Hashable, ask: Callable[[], Any], most: int) -> Any:
    """What ``ask()`` gives, from memory if this question to a plugin of this type and these hyper-parameters is among
    the last ``most``. Every caller gets a copy of his own."""
    key = (type(plugin), repr(plugin), question)
    if key not in _KNOWN:
        _KNOWN[key] = ask()
    _KNOWN.move_to_end(key)
    while len(_KNOWN) > most:
        _KNOWN.popitem(last=False)
    return _copied(_KNOWN[key])


def _copied(found: Any) -> Any:
    """A dict of tensors with tensors of its own (``deepcopy`` would refuse one that has a graph behind it)."""
    if not isinstance(found, dict):
        return found
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in found.items()}
