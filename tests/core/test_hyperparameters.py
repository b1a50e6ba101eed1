"""A hyper-parameter out of range is refused with its name, its value and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mtlcore import Aggregation, Aggregator, choice, flag, integer, number, vector
from mtlcore.errors import ConfigurationError
from mtlcore.hyperparameters import allowed


@dataclass(frozen=True)
class Method(Aggregator):
    c: float = number(0.5, low=0.0, high=2.0, open_high=True)
    n: int = integer(3, low=1)
    mode: str = choice("a", ["a", "b"])
    safe: bool = flag(True)
    weights: tuple[float, ...] | None = vector(None, low=0.0)

    def aggregate(self, view, state):
        return Aggregation(weights=view.losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": -1.0}, r"Method\(c=-1.0\): c must be a finite number in \[0, 2\)"),
        ({"c": 2.0}, r"in \[0, 2\)"),
        ({"c": float("nan")}, "c must be"),
        ({"c": "0.5"}, "c must be"),
        ({"c": True}, "c must be"),
        ({"n": 0}, r"n must be an integer in \[1, inf\)"),
        ({"n": 1.5}, "n must be an integer"),
        ({"mode": "c"}, "mode must be one of 'a', 'b'"),
        ({"safe": "False"}, "safe must be True or False"),
        ({"weights": (1.0, -1.0)}, r"each in \[0, inf\) or None"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Method(**options)


def test_accepted_and_readable_back():
    method = Method(c=0, n=5, mode="b", safe=False, weights=[1, 2.5])
    assert method.weights == (1, 2.5)
    assert allowed(Method)["c"].high == 2.0
    with pytest.raises(AttributeError):
        method.c = 1.0
