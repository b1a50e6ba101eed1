"""mtlcore: multi-task-learning optimisation in which every method is a plugin and every claim is checked.

Names are imported on first use (PEP 562), so that ``from mtlcore import hookimpl`` in a plugin's registration
module and the command line do not pay for importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtlcore.lazily import imported

if TYPE_CHECKING:
    from mtlcore.aggregation import aggregate as aggregate
    from mtlcore.contracts import Aggregation as Aggregation
    from mtlcore.contracts import Aggregator as Aggregator
    from mtlcore.contracts import Conflict as Conflict
    from mtlcore.contracts import ConflictDetector as ConflictDetector
    from mtlcore.contracts import Displacement as Displacement
    from mtlcore.contracts import Entries as Entries
    from mtlcore.contracts import Explorer as Explorer
    from mtlcore.contracts import Learnt as Learnt
    from mtlcore.contracts import Map as Map
    from mtlcore.contracts import MatrixMap as MatrixMap
    from mtlcore.contracts import Merger as Merger
    from mtlcore.contracts import Needs as Needs
    from mtlcore.contracts import Objective as Objective
    from mtlcore.contracts import State as State
    from mtlcore.contracts import StepView as StepView
    from mtlcore.contracts import TeleportProblem as TeleportProblem
    from mtlcore.contracts import TeleportStrategy as TeleportStrategy
    from mtlcore.exploring import Exploration as Exploration
    from mtlcore.exploring import Front as Front
    from mtlcore.exploring import explore as explore
    from mtlcore.gradients.refresh import Refresh as Refresh
    from mtlcore.hookspecs import Register as Register
    from mtlcore.hookspecs import hookimpl as hookimpl
    from mtlcore.hyperparameters import Validated as Validated
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
    from mtlcore.teleporting import Teleporter as Teleporter
    from mtlcore.trajectory import apply_along as apply_along

__version__ = "0.1.0"

_HOME = {
    "aggregate": "mtlcore.aggregation",
    "Aggregation": "mtlcore.contracts",
    "Aggregator": "mtlcore.contracts",
    "Conflict": "mtlcore.contracts",
    "ConflictDetector": "mtlcore.contracts",
    "Displacement": "mtlcore.contracts",
    "Entries": "mtlcore.contracts",
    "Explorer": "mtlcore.contracts",
    "Learnt": "mtlcore.contracts",
    "Map": "mtlcore.contracts",
    "MatrixMap": "mtlcore.contracts",
    "Merger": "mtlcore.contracts",
    "Needs": "mtlcore.contracts",
    "Objective": "mtlcore.contracts",
    "State": "mtlcore.contracts",
    "StepView": "mtlcore.contracts",
    "TeleportProblem": "mtlcore.contracts",
    "TeleportStrategy": "mtlcore.contracts",
    "Exploration": "mtlcore.exploring",
    "explore": "mtlcore.exploring",
    "Front": "mtlcore.exploring",
    "Refresh": "mtlcore.gradients.refresh",
    "hookimpl": "mtlcore.hookspecs",
    "Register": "mtlcore.hookspecs",
    "choice": "mtlcore.hyperparameters",
    "flag": "mtlcore.hyperparameters",
    "integer": "mtlcore.hyperparameters",
    "number": "mtlcore.hyperparameters",
    "text": "mtlcore.hyperparameters",
    "texts": "mtlcore.hyperparameters",
    "Validated": "mtlcore.hyperparameters",
    "vector": "mtlcore.hyperparameters",
    "merge": "mtlcore.merging",
    "MultiTask": "mtlcore.multitask",
    "cost": "mtlcore.presets",
    "add_plugin": "mtlcore.registry",
    "available": "mtlcore.registry",
    "create": "mtlcore.registry",
    "remove_plugin": "mtlcore.registry",
    "StepReport": "mtlcore.report",
    "TeleportResult": "mtlcore.report",
    "Brakes": "mtlcore.teleporting",
    "Teleporter": "mtlcore.teleporting",
    "apply_along": "mtlcore.trajectory",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    return imported(__name__, _HOME)(name)


def __dir__() -> list[str]:
    return sorted(__all__)
