from __future__ import annotations

import pytest

from mtlcore.registry import registry
from support import bench_tiny


@pytest.fixture
def tiny():
    """The tiny task and its methods, registered for one test."""
    plugin = bench_tiny.Plugin()
    registry().add(plugin, "tiny")
    yield bench_tiny
    registry().remove(plugin)
