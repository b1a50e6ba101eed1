"""Real processes for trainers, as torchrun would start them: one parent imports what is heavy, and forks the ranks.

A case is ``(name, size, module, function, args)``; with size 1 there is no process group. Every rank's answer goes
through a file.
"""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

TESTS = Path(__file__).parents[1]
HEAVY = ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.onnx", "mtlplugins.registration")
"""What the ranks would import one by one."""


def launched(cases, patience: float = 240.0):
    """{name: [answer of each rank]}; an error of a rank is raised here, with its traceback."""
    with tempfile.TemporaryDirectory() as folder:
        order = Path(folder) / "order"
        order.write_bytes(pickle.dumps(cases))
        paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        program = "from support.launcher import serve; import sys; serve(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, folder],
            env=env, cwd=folder, capture_output=True, text=True, timeout=patience, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return {name: [_answer(folder, name, rank, done) for rank in range(size)] for name, size, *_ in cases}


def _answer(folder, name, rank, done):
    path = Path(folder) / f"{name}.{rank}"
    assert path.exists(), f"{name}: process {rank} died\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    ok, value = pickle.loads(path.read_bytes())
    assert ok, f"{name}, process {rank}: {value}"
    return value


def serve(folder: str) -> None:
    """The parent: imports, then forks the ranks of one case after another."""
    import torch

    torch.set_num_threads(1)
    cases = pickle.loads((Path(folder) / "order").read_bytes())
    for module in (*HEAVY, *(case[2] for case in cases)):
        importlib.import_module(module)
    for case in cases:
        port = _free_port()
        children = []
        for rank in range(case[1]):
            child = os.fork()
            if not child:
                _rank(folder, rank, port, *case)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


def _rank(folder, rank, port, name, size, module, function, args):
    work = Path(folder) / f"work.{name}"
    work.mkdir(exist_ok=True)
    os.chdir(work)
    try:
        if size > 1:
            _join(folder, name, rank, size, port)
        answer = (True, getattr(importlib.import_module(module), function)(rank, *args))
    except BaseException:
        answer = (False, traceback.format_exc())
    part = Path(folder) / f"{name}.{rank}.part"
    part.write_bytes(pickle.dumps(answer))
    part.rename(Path(folder) / f"{name}.{rank}")
    sys.stdout.flush()
    os._exit(0)


def _join(folder, name, rank, size, port):
    import torch

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID=name,
    )  # fmt: skip
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting.{name}", rank=rank, world_size=size
    )


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
