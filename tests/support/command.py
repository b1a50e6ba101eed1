"""Programs in processes of their own, without the seconds in which each of them imports torch.

A server imports other people's libraries once and forks for every program. The child gets arguments, environment,
folder and standard streams of its own, and imports mtlcore and every plugin itself. A test about the start of a process
(what is imported, how long that takes) needs a fresh interpreter instead.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = (
    "torch", "torch._dynamo", "torch.func", "numpy", "scipy.linalg", "scipy.optimize", "scipy.stats", "scipy.special",
    "hypothesis", "hypothesis.extra.numpy", "cvxpy", "clarabel", "mpmath", "pandas", "pydantic", "joblib",
    "typer.rich_utils", "rich.console", "rich.table", "rich.progress", "pluggy", "threadpoolctl", "pytest",
)  # fmt: skip
"""What programs of this project import. None of them may start a thread or read the environment of one program."""


def mtl(
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    interpreter: str | Path = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """``mtl ARGUMENTS``; ``env`` is the whole environment, by default that of the tests."""
    return python("-m", "mtlcore", *arguments, cwd=cwd, env=env, interpreter=interpreter)


def python(
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    interpreter: str | Path = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS``: first ``-m MODULE``, ``-c PROGRAM`` or a path, then the arguments of that program."""
    key = (os.getpid(), str(interpreter))
    if key not in _SERVERS:
        _SERVERS[key] = _Server(str(interpreter))
    return _SERVERS[key].run(
        [str(a) for a in arguments], str(cwd or Path.cwd()), dict(os.environ if env is None else env)
    )


class _Server:
    """One process that forks, for one process of the tests."""

    def __init__(self, interpreter: str) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MTLCORE_", "PYTHONPATH", "COLUMNS"))}
        self._process = subprocess.Popen(
            [interpreter, __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**clean, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        atexit.register(self.close)

    def run(self, arguments: list[str], cwd: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            wanted = {"arguments": arguments, "cwd": cwd, "env": env, "out": str(out), "err": str(err)}
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            if not answer:
                raise RuntimeError("the server of tests/support/command.py has ended")
            return subprocess.CompletedProcess(arguments, int(answer), out.read_text(), err.read_text())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate()


_SERVERS: dict[tuple[int, str], _Server] = {}
"""By process, so that a child of a test process starts its own, and by interpreter."""


def _serve() -> list[str]:
    """Fork for every line of standard input. Returns in a child, with the arguments of its program."""
    import gc
    import importlib

    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # the pages stay shared
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(wanted)
            return wanted["arguments"]
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    sys.exit(0)


def _become(wanted: dict) -> None:
    """Streams, folder, environment and path of the new program."""
    import importlib

    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, wanted["out"], None), (2, wanted["err"], None)):
        opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if flags is None else flags)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    first = "" if wanted["arguments"][0] in ("-m", "-c") else str(Path(wanted["arguments"][0]).parent)
    own = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [first or os.getcwd(), *own, *sys.path[1:]]
    importlib.invalidate_caches()


def _run(arguments: list[str]) -> None:
    import runpy

    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def _end(code: object) -> None:
    """As an interpreter ends, but for one thing: the objects of the libraries are not taken apart. That would copy
    every page that is shared with the server, and take longer than most programs."""
    import threading

    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)


def _main() -> None:
    arguments = _serve()
    try:
        _run(arguments)
    except SystemExit as error:
        _end(error.code)
    except BaseException:
        traceback.print_exc()
        _end(1)
    _end(0)


if __name__ == "__main__":
    _main()
