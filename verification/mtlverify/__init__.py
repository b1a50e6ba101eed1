"""Verification: laws, exact references, strategies, synthetic problems, mutants and the ledger.

Names are imported on first use, so that registering laws costs nothing until somebody checks one::

    import mtlverify
    for result in mtlverify.check("gradops"):
        print(result.law, result.status, result.worst_margin)

To write a law of your own, see :mod:`mtlverify.law`; for inputs, :mod:`mtlverify.strategies`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlverify.answer import Answer as Answer
    from mtlverify.answer import ask as ask
    from mtlverify.example import Example as Example
    from mtlverify.law import Law as Law
    from mtlverify.runner import Result as Result
    from mtlverify.runner import check as check
    from mtlverify.runner import replay as replay

_HOME = {
    "Answer": "answer",
    "ask": "answer",
    "Example": "example",
    "Law": "law",
    "Result": "runner",
    "check": "runner",
    "replay": "runner",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"mtlverify.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mtlverify' has no attribute {name!r}")
