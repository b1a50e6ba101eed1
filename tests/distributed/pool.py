"""Real processes with a gloo group, kept for a module's tests.

They fork from a server that has imported torch once, meet in a file (no ports), and take one function after another.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import tempfile
import traceback
from datetime import timedelta

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "sympy",
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
        "mtlcore.multitask",
        "mtlplugins",
    ]
)


def _serve(rank: int, size: int, path: str, seconds: float, pipe) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=size, timeout=timedelta(seconds=seconds)
    )
    while True:
        order = pipe.recv()
        if order is None:
            return
        function, args = order
        try:
            answer = (True, function(rank, *args))
        except BaseException as error:
            answer = (False, (type(error).__name__, str(error), traceback.format_exc()))
        pipe.send_bytes(pickle.dumps(answer))


class Pool:
    """``size`` processes.

    Args:
        size: how many.
        seconds: the group's timeout.
    """

    def __init__(self, size: int, seconds: float = 60.0) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        path = os.path.join(self._folder.name, "meeting")
        self._pipes, self._processes = [], []
        for rank in range(size):
            mine, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(rank, size, path, seconds, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def outcomes(self, function, *args, patience: float = 120.0):
        """(True, value) or (False, (class, text, traceback)) of ``function(rank, *args)``; None of one that died."""
        for pipe in self._pipes:
            pipe.send((function, args))
        out = []
        for pipe in self._pipes:
            try:
                out.append(pickle.loads(pipe.recv_bytes()) if pipe.poll(patience) else (False, ("Late", "", "")))
            except EOFError:
                out.append(None)
        return out

    def run(self, function, *args, patience: float = 120.0):
        """The values, of all processes."""
        found = self.outcomes(function, *args, patience=patience)
        for rank, outcome in enumerate(found):
            assert outcome is not None, f"process {rank} died"
            assert outcome[0], f"process {rank}: {outcome[1][2]}"
        return [value for _, value in found]

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes):
            with contextlib.suppress(OSError):
                pipe.send(None)
            process.join(5.0)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()
