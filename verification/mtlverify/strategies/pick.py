"""Draws in a form that two engines understand: the search's own sampler, which is fast, and Hypothesis.

A family is a function of ``draw``; what it draws are the objects made here. ``draw(integers(0, 9))`` costs a
microsecond in the search and shrinks like any Hypothesis strategy under ``@given``. A family may also draw Hypothesis
strategies: then the search leaves that family to Hypothesis.

The sampler likes what breaks methods: end points, zero, one, repeated values.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

ODD = 0.1
"""Share of draws that are an end point, 0, 1 or -1 (of a number), or repeat themselves (of a list)."""
FEW = 8
"""A range of so few numbers has no odd ones: all are drawn alike."""


class Rejected(Exception):
    """The draw does not satisfy a condition of its family; another one is made."""


def assume(condition: bool) -> None:
    """Ends a draw that does not satisfy ``condition``, in both engines.

    Raises:
        Rejected: it does not.
    """
    if not condition:
        raise Rejected


class Pick:
    """One thing to draw."""

    def sample(self, rng: random.Random) -> Any:
        """A value, by the search's own sampler."""
        raise NotImplementedError

    def hypothesis(self) -> Any:
        """The same as a Hypothesis strategy."""
        raise NotImplementedError


def _below(rng: random.Random, n: int) -> int:
    """What ``rng.randrange(n)`` gives, without its checks: a search draws millions of entries."""
    bits = n.bit_length()
    found = rng.getrandbits(bits)
    while found >= n:
        found = rng.getrandbits(bits)
    return found


@dataclasses.dataclass(frozen=True)
class _Integers(Pick):
    low: int
    high: int

    def sample(self, rng: random.Random) -> int:
        if self.high - self.low > FEW and rng.random() < ODD:
            return rng.choice([v for v in (self.low, self.high, 0, 1, -1) if self.low <= v <= self.high])
        return self.low + _below(rng, self.high - self.low + 1)

    def hypothesis(self) -> Any:
        from hypothesis import strategies

        return strategies.integers(self.low, self.high)


@dataclasses.dataclass(frozen=True)
class _OneOf(Pick):
    values: tuple[Any, ...]

    def sample(self, rng: random.Random) -> Any:
        return self.values[_below(rng, len(self.values))]

    def hypothesis(self) -> Any:
        from hypothesis import strategies

        return strategies.sampled_from(self.values)


@dataclasses.dataclass(frozen=True)
class _List(Pick):
    element: Pick
    least: int
    most: int

    def sample(self, rng: random.Random) -> list[Any]:
        size = rng.randint(self.least, self.most)
        if size > 1 and rng.random() < ODD:
            palette = [self.element.sample(rng) for _ in range(rng.randint(1, 2))]
            return [rng.choice(palette) for _ in range(size)]
        return [self.element.sample(rng) for _ in range(size)]

    def hypothesis(self) -> Any:
        from hypothesis import strategies

        return strategies.lists(self.element.hypothesis(), min_size=self.least, max_size=self.most)


@dataclasses.dataclass(frozen=True)
class _Permutation(Pick):
    values: tuple[Any, ...]

    def sample(self, rng: random.Random) -> list[Any]:
        return rng.sample(self.values, len(self.values))

    def hypothesis(self) -> Any:
        from hypothesis import strategies

        return strategies.permutations(self.values)


@dataclasses.dataclass(frozen=True)
class _Tuple(Pick):
    parts: tuple[Pick, ...]

    def sample(self, rng: random.Random) -> tuple[Any, ...]:
        return tuple(part.sample(rng) for part in self.parts)

    def hypothesis(self) -> Any:
        from hypothesis import strategies

        return strategies.tuples(*(part.hypothesis() for part in self.parts))


def integers(low: int, high: int) -> Pick:
    """A whole number from ``low`` to ``high``."""
    return _Integers(low, high)


def sampled_from(values: Sequence[Any]) -> Pick:
    """One of ``values``."""
    return _OneOf(tuple(values))


def booleans() -> Pick:
    """False or True."""
    return _OneOf((False, True))


def lists(element: Pick, *, min_size: int, max_size: int) -> Pick:
    """A list of ``min_size`` to ``max_size`` draws of ``element``."""
    return _List(element, min_size, max_size)


def permutations(values: Sequence[Any]) -> Pick:
    """``values`` in any order."""
    return _Permutation(tuple(values))


def tuples(*parts: Pick) -> Pick:
    """One draw of each part."""
    return _Tuple(parts)
