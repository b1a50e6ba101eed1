"""mtlcore: multi-task-learning optimisation in which every method is a plugin and every claim is checked.

Names are imported on first use (PEP 562), so that ``from mtlcore import hookimpl`` in a plugin's registration
module and the command line do not pay for importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlcore.aggregation import aggregate as aggregate
    from mtlcore.contracts import Aggregation as Aggregation
    from mtlcore.contracts import Aggregator as Aggregator
    from mtlcore.contracts import Conflict as Conflict
    from mtlcore.contracts import ConflictDetector as ConflictDetector
    from mtlcore.contracts import Displacement as Displacement
    from mtlcore.contracts import Explorer as Explorer
    from mtlcore.contracts import MatrixMap as MatrixMap
    from mtlcore.contracts import Merger as Merger
    from mtlcore.contracts import Needs as Needs
    from mtlcore.contracts import StepView as StepView
    from mtlcore.contracts import TeleportProblem as TeleportProblem
    from mtlcore.contracts import TeleportStrategy as TeleportStrategy
    from mtlcore.exploring import Front as Front
    from mtlcore.exploring import explore as explore
    from mtlcore.gradients.refresh import Refresh as Refresh
    from mtlcore.hookspecs import hookimpl as hookimpl
    from mtlcore.hyperparameters import choice as choice
    from mtlcore.hyperparameters import flag as flag
    from mtlcore.hyperparameters import integer as integer
    from mtlcore.hyperparameters import number as number
    from mtlcore.hyperparameters import text as text
    from mtlcore.hyperparameters import texts as texts
    from mtlcore.hyperparameters import vector as vector
    from mtlcore.merging import merge as merge
    from mtlcore.multitask import MultiTask as MultiTask
    from mtlcore.presets import cost as cost
    from mtlcore.registry import add_plugin as add_plugin
    from mtlcore.registry import available as available
    from mtlcore.registry import create as create
    from mtlcore.registry import remove_plugin as remove_plugin
    from mtlcore.report import StepReport as StepReport
    from mtlcore.report import TeleportResult as TeleportResult
    from mtlcore.teleporting import Brakes as Brakes

__version__ = "0.1.0"

_HOME = {
    "aggregate": "aggregation",
    "Aggregation": "contracts",
    "Aggregator": "contracts",
    "Conflict": "contracts",
    "ConflictDetector": "contracts",
    "Displacement": "contracts",
    "Explorer": "contracts",
    "MatrixMap": "contracts",
    "Merger": "contracts",
    "Needs": "contracts",
    "StepView": "contracts",
    "TeleportProblem": "contracts",
    "TeleportStrategy": "contracts",
    "Front": "exploring",
    "explore": "exploring",
    "Refresh": "gradients.refresh",
    "hookimpl": "hookspecs",
    "choice": "hyperparameters",
    "flag": "hyperparameters",
    "integer": "hyperparameters",
    "number": "hyperparameters",
    "text": "hyperparameters",
    "texts": "hyperparameters",
    "vector": "hyperparameters",
    "merge": "merging",
    "MultiTask": "multitask",
    "cost": "presets",
    "add_plugin": "registry",
    "available": "registry",
    "create": "registry",
    "remove_plugin": "registry",
    "StepReport": "report",
    "TeleportResult": "report",
    "Brakes": "teleporting",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"mtlcore.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mtlcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
