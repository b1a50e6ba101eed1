"""Several kinds of state at once, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from mtlcore import trajectory
from mtlcore.snapshot.history import History
from mtlcore.snapshot.interrupts import interrupts_held
from mtlcore.snapshot.modules import Buffers
from mtlcore.snapshot.streams import Noise, Switches
from mtlcore.snapshot.tensors import Gradients, Parameters, do_all


class Snapshot:
    """Several kinds of state at once.

    Args:
        modules: networks whose buffers and plain attributes are saved.
        parameters: tensors whose bits are saved: one copy of each.
        gradients: tensors whose ``.grad`` is held, without a copy: what writes into one must take it off first, with
            :meth:`take_gradients`.
        optimizer: whose history is saved: one copy of it. One optimizer, several, or None.
        noise: whether the random streams are saved.
    """

    def __init__(
        self,
        *,
        modules: Iterable[nn.Module] = (),
        parameters: Iterable[Tensor] = (),
        gradients: Iterable[Tensor] = (),
        optimizer: trajectory.Optimizers = None,
        noise: bool = True,
    ) -> None:
        self.parameters = Parameters(parameters)
        self._gradients = Gradients(gradients, copies=False)
        self._parts: list[Any] = [Buffers(modules), self.parameters, History(optimizer), self._gradients, Switches()]
        if noise:
            self._parts.append(Noise())

    def take_gradients(self) -> None:
        """Set the ``.grad`` of the tensors to None, so that nobody writes into what :meth:`restore` puts on again."""
        self._gradients.take()

    def restore(self) -> None:
        """Everything as at construction, whatever goes wrong with one part; a Ctrl-C waits until it is done.

        Raises:
            Exception: the first error, after every part had its turn.
        """
        with interrupts_held():
            do_all([part.restore for part in self._parts])

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """If an error or a Ctrl-C passes through, everything is as at construction; else all stays as it became."""
        return undo_on_error(self.restore)

    def restored(self) -> AbstractContextManager[None]:
        """While open, anything may happen; afterwards everything is as at construction."""
        return _Undo(self.restore, always=True)


def undo_on_error(undo: Callable[[], None]) -> AbstractContextManager[None]:
    """If an error or a Ctrl-C passes through, call ``undo``, in which a Ctrl-C waits; it may be called twice."""
    return _Undo(undo, always=False)


class _Undo(AbstractContextManager[None]):
    """No generator: one that is stopped between its ``yield`` and the block would undo when it is collected."""

    def __init__(self, undo: Callable[[], None], *, always: bool) -> None:
        self._undo = undo
        self._always = always

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and not self._always:
            return
        try:
            self._safely()
        except BaseException:
            self._safely()  # a Ctrl-C may have come just before the first held it back
            raise

    def _safely(self) -> None:
        with interrupts_held():
            self._undo()
