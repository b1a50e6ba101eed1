"""Worker processes of the harness's commands."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import forkserver
from typing import Any

from mtlcore.hosting import PATIENCE, described


def workers(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    """``jobs`` processes of one thread each; see :func:`_context`."""
    return concurrent.futures.ProcessPoolExecutor(jobs, _context(), initializer=_prepare, initargs=(dict(os.environ),))


def warm_up() -> None:
    """Begin with the imports of the processes that will be asked for. It returns at once: meanwhile this process can
    do its own."""
    context = _context()
    if context.get_start_method() == "forkserver":
        forkserver.ensure_running()


def _context() -> Any:
    """Processes that begin with what all of them import, which takes longer than most laws: on Linux they are forks of
    a server that has imported it once. They are no forks of this process, whose threads (torch's, rich's) may hold
    locks. Elsewhere libraries of the system do not survive a fork, and each process imports for itself."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtlverify.preload"])
    return context


def _prepare(environment: Mapping[str, str]) -> None:
    """The environment of the parent as it is now: the server may be older. K x K problems gain nothing from more
    threads, and a killed command must not leave its workers searching."""
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- work that may hang or die ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Lost:
    """Stands for the result of a task that has none: it took too long, or its process died."""

    why: str


@dataclasses.dataclass(frozen=True)
class Task:
    """One call of the function in some process.

    Args:
        argument: what it is called with; it must be possible to pickle it, and the result.
        label: how messages call it.
        group: a process stays with the tasks of one group while it can, because it may remember what they share. Where
            one task takes too long, the tasks of its group that have not begun are given up with it.
    """

    argument: Any
    label: str
    group: Hashable


def side_by_side(
    function: Callable[[Any], Any],
    tasks: Sequence[Task],
    jobs: int,
    timeout: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[int, Any]]:
    """(position of the task, its result or :class:`Lost`), in the order in which they finish.

    A process whose task takes longer than ``timeout`` seconds is killed and replaced; a pool of the standard library
    would wait for it for ever. ``say`` hears once of every task that takes longer than five seconds.

    Raises:
        Exception: what ``function`` raised; it is expected to turn what a plugin raises into a result.
    """
    waiting = collections.deque(range(len(tasks)))
    busy: list[_Worker] = []
    idle: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                worker = idle.pop() if idle else _Worker(function)
                position = _next(waiting, tasks, worker.group, {w.group for w in busy})
                waiting.remove(position)
                worker.begin(position, tasks[position])
                busy.append(worker)
            multiprocessing.connection.wait([w.pipe for w in busy], timeout=0.2)
            for worker in list(busy):
                answer = worker.answer(timeout, say)
                if answer is None:
                    continue
                busy.remove(worker)
                if worker.alive:
                    idle.append(worker)
                yield worker.position, answer[0]
                if worker.late:
                    group = worker.task.group
                    given_up = [i for i in waiting if tasks[i].group == group]
                    waiting = collections.deque(i for i in waiting if tasks[i].group != group)
                    for i in given_up:
                        yield i, Lost(f"not checked, because {worker.task.label} took longer than {timeout:g} s")
    finally:
        for worker in [*busy, *idle]:
            worker.kill()


def _next(waiting: Iterable[int], tasks: Sequence[Task], own: Hashable, others: Container[Hashable]) -> int:
    """The task for a process that is free: one of the group it knows, else of a group nobody is at, else the first."""
    for wanted in (lambda group: group == own, lambda group: group not in others):
        for position in waiting:
            if wanted(tasks[position].group):
                return position
    return next(iter(waiting))


class _Worker:
    """A process that does one task after the other."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = _context()
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, other, dict(os.environ)), daemon=True)
        self._process.start()
        other.close()
        self.alive, self.late = True, False
        self.group: Hashable = None

    def begin(self, position: int, task: Task) -> None:
        self.position, self.task, self.group = position, task, task.group
        self._began: float | None = None
        self._told = False
        with contextlib.suppress(OSError):  # a process that died is noticed by its answer
            self.pipe.send(task.argument)

    def answer(self, timeout: float | None, say: Callable[[str], None]) -> tuple[Any] | None:
        """The result, once there is one."""
        try:
            while self.pipe.poll():
                what, value = self.pipe.recv()
                if what == "began":  # the time before belongs to Python and torch
                    self._began = time.monotonic()
                elif what == "raised":
                    raise value
                else:
                    return (value,)
        except (EOFError, OSError):
            self._process.join()
            self.alive = False
            return (Lost(f"its process died (exit code {self._process.exitcode}): a crash, or out of memory"),)
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        if timeout is not None and seconds > timeout:
            self.kill()
            self.late = True
            return (Lost(f"it took longer than {timeout:g} s and was stopped"),)
        if seconds > PATIENCE and not self._told:
            self._told = True
            say(f"waiting for {self.task.label} ({seconds:.0f} s so far)")
        return None

    def kill(self) -> None:
        self.alive = False
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(function: Callable[[Any], Any], pipe: Any, environment: Mapping[str, str]) -> None:
    _prepare(environment)
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):  # Ctrl-C is the parent's business
        while True:
            argument = pipe.recv()
            pipe.send(("began", None))
            try:
                answer = ("result", function(argument))
            except Exception as error:
                answer = ("raised", error)
            try:
                pipe.send(answer)
            except (TypeError, AttributeError, ValueError) as error:  # it cannot be pickled
                pipe.send(("result", Lost(f"what it gave cannot be handed over: {described(error)}")))
