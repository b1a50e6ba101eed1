"""The contracts of the kinds of plugin, and the values that pass between them and a step.

Classes here are either abstract (:class:`Aggregator`, :class:`ConflictDetector`, :class:`TeleportStrategy`,
:class:`Explorer`, :class:`Merger`) or final. A plugin subclasses an abstract one; nobody subclasses a plugin: wrap it
instead, so that a call site has exactly one target.

Notation used everywhere: K tasks, P shared parameters, losses L_i, gradients g_i of L_i with respect to the
shared parameters, Jacobian J (K, P) with rows g_i, Gramian G = J J^T (K, K), direction d (P,). Parameters
move along **minus** d: d is what the optimizer receives as "the gradient".
"""

from mtlcore.contracts.aggregator import Aggregation as Aggregation
from mtlcore.contracts.aggregator import Aggregator as Aggregator
from mtlcore.contracts.aggregator import State as State
from mtlcore.contracts.detector import Conflict as Conflict
from mtlcore.contracts.detector import ConflictDetector as ConflictDetector
from mtlcore.contracts.explorer import Explorer as Explorer
from mtlcore.contracts.explorer import Learnt as Learnt
from mtlcore.contracts.merger import Entries as Entries
from mtlcore.contracts.merger import Merger as Merger
from mtlcore.contracts.merger import Objective as Objective
from mtlcore.contracts.teleport import Displacement as Displacement
from mtlcore.contracts.teleport import Map as Map
from mtlcore.contracts.teleport import MatrixMap as MatrixMap
from mtlcore.contracts.teleport import TeleportProblem as TeleportProblem
from mtlcore.contracts.teleport import TeleportStrategy as TeleportStrategy
from mtlcore.contracts.teleport import task_rows as task_rows
from mtlcore.contracts.view import Needs as Needs
from mtlcore.contracts.view import StepView as StepView
