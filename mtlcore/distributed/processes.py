"""What a ``MultiTask`` asks of the other processes.

Whatever may fail on one process alone is done first, and then told: every exchange begins with the number of processes
that failed, so that nobody waits for one that has given up. All exchanges of a step have one size. A process that fails
anywhere between two of them takes part in the next one with its error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from mtlcore import inputs
from mtlcore.contracts import Needs
from mtlcore.distributed import agreement, answers, group, refusals
from mtlcore.distributed.hook import CommunicationHook
from mtlcore.distributed.local import Local
from mtlcore.distributed.roster import Roster
from mtlcore.distributed.sharded import Sharded
from mtlcore.distributed.shared import Shared
from mtlcore.distributed.verdict import Failure, combined
from mtlcore.distributed.wire import Wire
from mtlcore.errors import ConfigurationError, ProcessError
from mtlcore.presence import Presence

P = ParamSpec("P")
T = TypeVar("T")

_BITS = 0xFFFF
"""Of a hash h. Sums of h and of h^2 over a thousand processes are exact in float64; all h are equal if and only if
R sum h^2 = (sum h)^2."""


@dataclasses.dataclass(frozen=True)
class Members:
    """What takes part in a run.

    Args:
        modules: trunk and heads, as far as they are modules.
        parameters: the trunk's.
        told: others that the user named, in heads and optimizers.
        about: what must be the same everywhere, in plain values.
        teleport: whether one is asked for.
        losses: of this step, as far as they are tensors.
    """

    modules: Sequence[nn.Module]
    parameters: Sequence[Tensor]
    told: Sequence[Tensor]
    about: Mapping[str, Any]
    teleport: bool
    losses: Sequence[Tensor]


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over the processes.

    Args:
        new: parameters that some process has not met before.
        losses, counts: (K,) of the losses, and of the processes that have the task.
        trunk, heads: how many processes reach each parameter.
    """

    new: float
    losses: Tensor
    counts: Tensor
    trunk: Tensor
    heads: Tensor


class Processes:
    """The processes of a run; with one, or none, it does nothing.

    Args:
        wish: as ``MultiTask`` takes ``process_group``.

    Raises:
        ConfigurationError: no process group.
    """

    def __init__(self, wish: Any) -> None:
        self._wish = group.checked(wish)
        self._hook: CommunicationHook | None = None
        self._checked = False
        self.wire: Wire | None = None
        self._roster: Roster | None = None
        self.names: tuple[str, ...] = ()
        """All tasks; empty before the first step."""
        self._trunk: tuple[Tensor, ...] = ()
        self._told: BaseException | None = None
        """The last error that all processes know of."""

    def __reduce__(self) -> tuple[type[Processes], tuple[Any], dict[str, Any]]:
        wish = self._wish if isinstance(self._wish, str) else None
        return Processes, (wish,), {"_hook": self._hook}  # a copy starts again

    def several(self, modules: Sequence[nn.Module] = (), parameters: Sequence[Tensor] = ()) -> bool:
        """Whether there are others. Asked in every step, because a process group may be made late.

        Raises:
            ConfigurationError: ``process_group=None``, but something in ``modules`` or around ``parameters`` averages.
        """
        if self.wire is None:
            if self._wish is None:
                if parameters and not self._checked:
                    refusals.check_alone(modules, parameters)
                    self._checked = True
                return False
            found = group.resolved(self._wish)
            if found is None:
                return False
            self.wire = Wire(found, self._hook)
        return True

    def forget(self) -> None:
        """The trunk has other parameters now: agree once more."""
        self._roster = None

    def register(self, hook: CommunicationHook) -> None:
        """What codes gradients on their way from now on.

        Raises:
            ConfigurationError: it does not encode and decode.
        """
        if not isinstance(hook, CommunicationHook):
            raise ConfigurationError(
                f"a communication hook has encode(tensor, kind) and decode(tensor, kind, dtype) "
                f"(mtlcore.distributed.hook); found {hook!r}."
            )
        self._hook = hook
        if self.wire is not None:
            self.wire.hook = hook
        self.forget()

    # --- a step -------------------------------------------------------------------------------------------------

    def tell(self, error: Exception) -> None:
        """Let the others know, in their next exchange, of an error that they do not know of. (A Ctrl-C is not told:
        they may have got it too, and come to no exchange any more.)"""
        if self.wire is None or error is self._told or getattr(error, "lost", False):
            return
        with contextlib.suppress(Exception):
            if self._roster is None:
                self.gathered(lambda: self._raise(error))
            else:
                self.exchange(error, "")

    @staticmethod
    def _raise(error: Exception) -> None:
        raise error

    def merged(self, work: Callable[[], Local], members: Callable[[], Members], tag: str, needs: Needs) -> Local:
        """The step of all processes: their tasks, mean losses and mean task gradients.

        Args:
            work: of this process.
            members: what takes part; asked in the first step.
            tag: what must be the same in this step.
            needs: what the step reads.

        Raises:
            MtlError: one process failed, or the processes do not run the same thing; on all of them.
        """
        local, totals, unknown = self._met(work, members, tag)
        if isinstance(local.found, Sharded):
            return self._begun(local, totals, needs)
        assert self.wire is not None
        assert self._roster is not None
        roster, wire = self._roster, self.wire
        heads = totals.heads
        if totals.new:
            roster.learn(wire, self.names, unknown)
            heads = wire.sum(_flags(roster.known, local.reached()))
        whole, values = self.means_of(totals)
        by_id = dict(zip(map(id, self._trunk), totals.trunk.tolist()))
        found = Shared(
            local.found,
            local=local.presence,
            whole=whole,
            counts=[c for c in totals.counts.tolist() if c],
            shared=local.batch.shared,
            used=([by_id[id(p)] > 0 for p in local.batch.shared], [f > 0 for f in heads.tolist()]),
            wire=wire,
            roster=roster,
            settle=self.settled,
            by_row=needs == Needs.JACOBIAN,
        )
        how = f"{local.reason}; {local.described(needs)} over {wire.size} processes"
        return dataclasses.replace(local, presence=whole, values=values, found=found, reason=how)

    def _met(
        self, work: Callable[[], Local], members: Callable[[], Members], tag: str
    ) -> tuple[Local, Totals, dict[str, list[Tensor]]]:
        """What this process has, the sums of all, and by task its parameters that the roster lacks."""
        local, error = self.attempt(lambda: work().checked())
        if self._roster is None:
            self._agree(members, local, error)
        assert self._roster is not None
        unknown: dict[str, list[Tensor]] = {}
        if local is not None and not isinstance(local.found, Sharded):
            unknown = local.unknown(self._roster)
        if local is not None:
            mask = "".join("01"[p.requires_grad] for p in self._trunk)
            tag = f"{tag}; trained parameters {mask}; source {local.kind}"
        totals = self.exchange(error, tag, local, new=sum(map(len, unknown.values())))
        assert local is not None
        return local, totals, unknown

    # --- a trunk in shards ----------------------------------------------------------------------------------------

    def added(self, work: Callable[[], Local], members: Callable[[], Members], tag: str, start: bool) -> Local:
        """A micro-batch that is not the last, of a trunk in shards: its passes are those of all processes. One whose
        graph waits for the weights (not ``start``) makes none; that all are well is told, because the next forward
        pass is one of all processes, too.

        Raises:
            As :meth:`merged`.
        """
        local, totals, _ = self._met(work, members, tag)
        if start:
            self._start(local, totals)
        return local

    def _start(self, local: Local, totals: Totals) -> str:
        assert self.wire is not None
        assert isinstance(local.found, Sharded)
        assert local.values is not None
        mine = dict(zip(local.presence.present, local.values))
        return local.found.start(self.wire, self._counts(totals), mine, self.settled)

    def _counts(self, totals: Totals) -> dict[str, float]:
        """By task that some process has, how many have it."""
        return {n: c for n, c in zip(self.names, totals.counts.tolist()) if c}

    def _begun(self, local: Local, totals: Totals, needs: Needs) -> Local:
        assert self.wire is not None
        assert isinstance(local.found, Sharded)
        how, sums = self._start(local, totals), local.found.sums
        if sums.count > 1:
            presence = Presence.of(self.names, sums.losses)
            values = [sums.losses[n] for n in presence.present]
            totals = self.exchange(None, "micro-batches", presence=presence, values=values)
            how += f"; the rows of {sums.count} micro-batches, added up"
        local.found.close(self._counts(totals))
        whole, values = self.means_of(totals)
        reason = f"{local.reason}; {local.described(needs)} over {self.wire.size} processes{how}"
        return dataclasses.replace(local, presence=whole, values=values, reason=reason)

    def means_of(self, totals: Totals) -> tuple[Presence, list[float]]:
        """The tasks that some process has, and their mean losses."""
        there = totals.counts > 0
        whole = Presence.of(self.names, [n for n, t in zip(self.names, there.tolist()) if t])
        return whole, (totals.losses[there] / totals.counts[there]).tolist()

    def presence(self, local: Presence) -> Presence:
        """The tasks that some process has. Before the first step that is unknown; it asks the method again."""
        if self._roster is None:
            return local
        counts = self.exchange(None, "presence", presence=local).counts
        return Presence.of(self.names, [n for n, c in zip(self.names, counts.tolist()) if c])

    def looked(self, work: Callable[[], tuple[Presence, list[float]]]) -> tuple[Presence, list[float]]:
        """Tasks and losses of a second look: the means over the processes."""
        found, error = self.attempt(work)
        presence, values = (None, None) if found is None else found
        return self.means_of(self.exchange(error, "second look", presence=presence, values=values))

    def means(self, names: Sequence[str], values: Sequence[float]) -> list[float]:
        """Of these tasks' losses, which every process has."""
        whole, found = self.looked(lambda: (Presence.of(self.names, names), list(values)))
        by_name = dict(zip(whole.present, found))
        return [by_name[n] for n in names]

    def counted(self, work: Callable[[], Mapping[str, float]]) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Of the losses that each process finds: the mean of each task, and how many processes have it."""
        found, error = self.attempt(work)
        presence = None if found is None else Presence.of(self.names, found)
        values = None if found is None or presence is None else [found[n] for n in presence.present]
        totals = self.exchange(error, "curvature", presence=presence, values=values)
        whole, means = self.means_of(totals)
        return dict(zip(whole.present, means)), dict(zip(self.names, totals.counts.tolist()))

    def summed(self, work: Callable[[], Tensor]) -> Tensor:
        """The sum of what each process finds. Raises on all of them if it does on one."""
        assert self.wire is not None
        total = self.settled(work)
        self.wire.add([total], "curvature")
        return total

    def averaged(self, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """The means of gradients; None where no process has one."""
        assert self.wire is not None
        self.exchange(None, "averaged")  # one that has failed since then says so here
        used = self.wire.sum([float(g is not None) for g in gradients]).tolist()
        sums = [torch.zeros_like(p) if g is None else g.clone() for p, g, u in zip(leaves, gradients, used) if u]
        self.wire.add(sums, "inner steps")
        it = iter(s.div_(self.wire.size) for s in sums)
        return tuple(next(it) if u else None for u in used)

    def settled(self, work: Callable[[], T]) -> T:
        """Something of this process's own. Raises on all processes if it does on one."""
        found, error = self.attempt(work)
        self.exchange(error, "")
        return found  # type: ignore[return-value]

    def gathered(self, work: Callable[[], T]) -> list[T]:
        """What ``work`` gives on every process. Raises on all of them if it does on one."""
        assert self.wire is not None
        found, error = self.attempt(work)
        said = self.wire.objects((Failure.of(error) if error else None, None if error else found))
        failures = [f for f, _ in said]
        if any(failures):
            self.refuse(combined(failures, self.wire.rank, error))
        return [value for _, value in said]

    # --- what all of it, here and in other files, stands on -------------------------------------------------------

    def attempt(self, work: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """What ``work`` gives, or its error, which is to be told in the next exchange."""
        try:
            return work(), None
        except Exception as error:
            if error is self._told or getattr(error, "lost", False):
                raise  # known to all, or nobody can be told
            return None, error

    def _agree(self, members: Callable[[], Members], local: Local | None, error: Exception | None) -> None:
        """Compare runs, and begin the roster."""
        assert self.wire is not None

        def describe() -> Mapping[str, Any]:
            found = members()
            refusals.check_trunk(found.modules, found.parameters)
            refusals.check_graph(found.losses)
            refusals.check_step(found.teleport, found.parameters)
            if error is not None:
                raise error
            assert local is not None
            names = inputs.parameter_names(next(iter(found.modules), None), found.parameters)
            prints = agreement.fingerprint([*found.parameters, *found.told])
            labels = [names.get(id(p), f"trunk parameter {i}") for i, p in enumerate(found.parameters)]
            labels += [f"parameter {i} of heads and optimizer" for i in range(len(found.told))]
            return {
                **found.about,
                "communication hook": repr(self._hook),
                "tasks": local.presence.names,
                "number of parameters": sum(p.numel() for p in found.parameters),
                "values of the parameters": dict(zip(labels, prints)),
            }

        said = self.gathered(describe)
        try:
            agreement.check(said)
        except Exception as wrong:
            self._told = wrong
            raise
        assert local is not None
        found = members()
        self.names, self._trunk = local.presence.names, tuple(found.parameters)
        self._roster = Roster(found.parameters, found.told)

    def refuse(self, error: BaseException) -> NoReturn:
        """Raise what all processes know of, and raise too."""
        self._told = error
        raise error

    def exchange(
        self,
        error: BaseException | None,
        tag: str,
        local: Local | None = None,
        *,
        presence: Presence | None = None,
        values: Sequence[float] | None = None,
        new: int = 0,
    ) -> Totals:
        """Sums over all processes; raises on all if one has an error, or another tag."""
        assert self.wire is not None
        assert self._roster is not None
        k, trunk, known = len(self.names), self._trunk, self._roster.known
        if local is not None:
            presence, values = local.presence, local.values
        here = presence is not None and error is None
        losses, present = [0.0] * k, [0.0] * k
        for i, name in enumerate(presence.present if presence is not None and here else ()):
            at = self.names.index(name)
            losses[at], present[at] = 0.0 if values is None else values[i], 1.0
        reached = local.reached() if local is not None and here else frozenset()
        h = int.from_bytes(hashlib.blake2b(tag.encode(), digest_size=2).digest(), "little") & _BITS
        head = [float(error is not None), float(new), float(h), float(h * h)]
        sums = self.wire.sum([*head, *losses, *present, *_flags(trunk, reached), *_flags(known, reached)])
        if sums[0]:
            self.gathered(lambda: None if error is None else self._raise(error))  # type: ignore[arg-type]
        if self.wire.size * sums[3] != sums[2] ** 2:
            self._differ(tag)
        parts = sums[4:].split([k, k, len(trunk), len(known)])
        return Totals(float(sums[1]), *parts)

    def _differ(self, tag: str) -> None:
        assert self.wire is not None
        said = self.wire.objects(tag)
        if all(s.startswith(answers.PREFIX) for s in said):
            raise answers.DifferError
        parts = [s.split("; ") for s in said]
        rank = next(r for r, s in enumerate(said) if s != said[0])
        apart = [(a, b) for a, b in zip(parts[0], parts[rank]) if a != b] or [(said[0], said[rank])]
        one, other = apart[0]
        self.refuse(
            ProcessError(
                f"the processes are not in the same step: process 0 has {one or 'nothing'}, process {rank} "
                f"{other or 'nothing'}. Do the same on every process: the same number of steps, the same checkpoint, "
                f"the same parameters frozen."
            )
        )


def told(method: Callable[P, T]) -> Callable[P, T]:
    """A method of ``MultiTask``, whose errors the other processes hear of."""

    @functools.wraps(method)
    def telling(*args: P.args, **options: P.kwargs) -> T:
        try:
            return method(*args, **options)
        except Exception as error:
            args[0]._run.processes.tell(error)  # type: ignore[attr-defined]
            raise

    return telling


def _flags(leaves: Sequence[Tensor], reached: frozenset[int]) -> list[float]:
    return [float(id(t) in reached) for t in leaves]
