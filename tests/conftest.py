"""One setting for all tests: Hypothesis derandomized by default, deeper with MTLCORE_HYPOTHESIS_PROFILE=nightly."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=50, suppress_health_check=list(HealthCheck), database=None
)
settings.register_profile("nightly", parent=settings.get_profile("ci"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("MTLCORE_HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(1)

# A shell that starts the tests in the background hands down an ignored Ctrl-C, and tests about it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--device", default="cpu", help="where tests/devices puts its networks, e.g. cuda")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unwanted = set() if config.getoption("--slow") else {"slow"}
    if config.getoption("--device") == "cpu":
        unwanted.add("accelerator")
    left_out = [i for i in items if any(i.get_closest_marker(name) for name in unwanted)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [i for i in items if i not in left_out]
