"""The way of a stranger works from end to end, in less than fifteen minutes on two cores."""

from __future__ import annotations

import pytest

from support.strangers_path import Stranger


@pytest.mark.slow
def test_a_stranger_arrives(tmp_path):
    assert Stranger(tmp_path).walk() < 2 * 15 * 60
