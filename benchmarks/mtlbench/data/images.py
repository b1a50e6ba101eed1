"""Readers of the two image sources, as arrays of bytes."""

from __future__ import annotations

import functools
import gzip

import numpy as np
import pandas as pd

from mtlbench.data.sources import locate


@functools.lru_cache(maxsize=1)
def mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 28, 28) uint8 and digits (5000,) int64: 500 of each digit, from the MNIST training set."""
    (path,) = locate("mnist-5k").values()
    table = pd.read_csv(path, header=None, dtype=np.int64).to_numpy()
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1]


@functools.lru_cache(maxsize=2)
def fashion_mnist(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8 and classes (N,) int64 of ``part`` "train" (60,000) or "t10k" (10,000)."""
    files = locate("fashion-mnist")
    images = _idx(files[f"{part}-images-idx3-ubyte.gz"].read_bytes())
    return images, _idx(files[f"{part}-labels-idx1-ubyte.gz"].read_bytes()).astype(np.int64)


def _idx(packed: bytes) -> np.ndarray:
    """The IDX format: two zero bytes, type, number of dimensions, sizes as big-endian int32, data."""
    raw = gzip.decompress(packed)
    dimensions = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
