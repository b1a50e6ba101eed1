"""Where a method's randomness comes from."""

from __future__ import annotations

import hashlib


def step_seed(seed: int, step: int) -> int:
    """Seed of the generator of one step: a hash, so that neighbouring runs and steps share no stream."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest(), "little") >> 1
