"""Teleporting as a transaction: snapshot, propose, check, accept or roll back bit for bit.

A strategy (a plugin) only proposes a :class:`~mtlcore.contracts.Displacement`. Everything that makes it safe is here,
once, for every strategy: the search runs on a network whose dropout and batch statistics are frozen; whatever it did to
the network is undone; the proposal is tried on a probe batch and kept only if every task's loss stayed within
tolerance and the conflict became less. Otherwise, and on any exception or Ctrl-C, nothing has happened.

A task that the probe lacks is judged on the batch of the step. The loss of a task that is in neither cannot be checked:
then there is no teleport.

* :mod:`~mtlcore.teleporting.brakes`: when it may be tried.
* :mod:`~mtlcore.teleporting.teleporter`: one attempt.
* :mod:`~mtlcore.teleporting.problem`: one batch, as strategy and verdict see it.
* :mod:`~mtlcore.teleporting.proposal`: what a strategy returned, checked.
* :mod:`~mtlcore.teleporting.verdict`: whether it keeps what it must.
* :mod:`~mtlcore.teleporting.outlook`: what the next steps promise, from a place.
* :mod:`~mtlcore.teleporting.changes`: relative changes of losses.
* :mod:`~mtlcore.teleporting.memory`: the optimizer's history after it.
* :mod:`~mtlcore.teleporting.follow`: averaged copies of the network after it.
* :mod:`~mtlcore.teleporting.transaction`: what is saved, frozen and put back.
"""

from mtlcore.teleporting.brakes import Brakes as Brakes
from mtlcore.teleporting.changes import relative_changes as relative_changes
from mtlcore.teleporting.follow import Follower as Follower
from mtlcore.teleporting.teleporter import Teleporter as Teleporter
