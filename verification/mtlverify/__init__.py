"""Verification: laws, exact references, strategies, synthetic problems, mutants and the ledger.

Names are imported on first use, so that registering laws costs nothing until somebody checks one::

    import mtlverify
    for result in mtlverify.check("gradops"):
        print(result.law, result.status, result.worst_margin)

What is named in ``__all__`` is public ground, modules included. To write a law of your own, see :mod:`mtlverify.law`
(``from mtlverify.law import law``); for inputs, :mod:`mtlverify.strategies`; for exact references,
:mod:`mtlverify.references`; for problems, :mod:`mtlverify.problems`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlverify import law as law
    from mtlverify import problems as problems
    from mtlverify import references as references
    from mtlverify import strategies as strategies
    from mtlverify.answer import Answer as Answer
    from mtlverify.answer import ask as ask
    from mtlverify.declared import declared_laws as declared_laws
    from mtlverify.example import Example as Example
    from mtlverify.law import Law as Law
    from mtlverify.law import Margin as Margin
    from mtlverify.law import given as given
    from mtlverify.problems import Problem as Problem
    from mtlverify.problems import check_declarations as check_declarations
    from mtlverify.runner import Result as Result
    from mtlverify.runner import check as check
    from mtlverify.runner import replay as replay

_HOME = {
    "Answer": "answer",
    "Example": "example",
    "Law": "law",
    "Margin": "law",
    "Problem": "problems",
    "Result": "runner",
    "ask": "answer",
    "check": "runner",
    "check_declarations": "problems",
    "declared_laws": "declared",
    "given": "law",
    "replay": "runner",
}
_MODULES = ("law", "problems", "references", "strategies")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mtlverify.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"mtlverify.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mtlverify' has no attribute {name!r}")
