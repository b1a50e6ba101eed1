"""A ``MultiTask`` in a sharded checkpoint, ``torch.distributed.checkpoint`` (DCP).

DCP fills in what a state dict has already, entry by entry; that of a MultiTask before its first step has no state yet,
whose entries would be missed. So it travels as one entry, which is replaced as a whole.
"""

from __future__ import annotations

import io
from typing import Any

import torch

from mtlcore.errors import StateError
from mtlcore.multitask import MultiTask

_ENTRY = "multitask"


class Whole:
    """A :class:`~mtlcore.MultiTask` as DCP takes it, beside model and optimizer::

        dcp.save({"model": ..., "optimizer": ..., "multitask": Whole(mt)}, checkpoint_id=folder)
        dcp.load({"model": ..., "optimizer": ..., "multitask": Whole(mt)}, checkpoint_id=folder)

    The state is the same on all processes, and is saved once. It may be loaded by another number of them.

    Args:
        mt: whose state it is.
    """

    def __init__(self, mt: MultiTask) -> None:
        self._mt = mt

    def state_dict(self) -> dict[str, Any]:
        """One entry of bytes."""
        memory = io.BytesIO()
        torch.save(self._mt.state_dict(), memory)
        return {_ENTRY: memory.getvalue()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            StateError: as :meth:`mtlcore.MultiTask.load_state_dict`; or no such entry.
        """
        found = state.get(_ENTRY)
        if not isinstance(found, bytes):
            raise StateError(f"the checkpoint has no bytes under {_ENTRY!r}: it was not saved through Whole(mt).")
        self._mt.load_state_dict(torch.load(io.BytesIO(found), map_location="cpu", weights_only=True))
