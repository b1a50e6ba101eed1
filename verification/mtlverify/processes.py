"""Worker processes of the harness's commands."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading


def workers(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    """``jobs`` processes of one thread each, started afresh: a fork would inherit the locks of torch's and rich's
    threads."""
    spawn = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(jobs, spawn, initializer=_prepare)


def _prepare() -> None:
    """K x K problems gain nothing from more threads, and a killed command must not leave its workers searching."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
