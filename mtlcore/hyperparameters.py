"""Hyper-parameters that declare their own range.

A method is a frozen dataclass; each field says what it allows, once::

    @dataclass(frozen=True)
    class CAGrad(Aggregator):
        c: float = number(0.5, low=0.0)

The range is checked at construction and can be read back (by the docs, by a tuner) from the field's metadata.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, overload

from mtlcore.errors import ConfigurationError
from mtlcore.safety import shown

_KEY = "mtlcore"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What a hyper-parameter may be: a described set with a membership test."""

    kind: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    options: tuple[Any, ...] = ()
    optional: bool = False
    log: bool = False

    def __str__(self) -> str:
        if self.kind == "choice":
            text = "one of " + ", ".join(repr(o) for o in self.options)
        elif self.kind == "flag":
            text = "True or False"
        elif self.kind == "text":
            text = "a string"
        elif self.kind == "texts":
            text = "a sequence of strings"
        else:
            low = "-inf" if self.low is None else f"{self.low:g}"
            high = "inf" if self.high is None else f"{self.high:g}"
            left = "(" if self.open_low or self.low is None else "["
            right = ")" if self.open_high or self.high is None else "]"
            text = f"{'an integer' if self.kind == 'integer' else 'a finite number'} in {left}{low}, {high}{right}"
            if self.kind == "vector":
                text = f"a sequence of numbers, each in {left}{low}, {high}{right}"
        return text + (" or None" if self.optional else "")

    def contains(self, value: Any) -> bool:
        """Whether ``value`` is allowed."""
        if value is None:
            return self.optional or None in self.options
        if self.kind == "choice":
            return any(_alike(value, o) and value == o for o in self.options)
        if self.kind == "text":
            return isinstance(value, str)
        if self.kind == "texts":
            return isinstance(value, tuple) and all(isinstance(v, str) for v in value)
        if self.kind == "flag":
            return isinstance(value, bool)
        if self.kind == "vector":
            return isinstance(value, tuple) and all(self._in_range(v) for v in value)
        if self.kind == "integer" and not (isinstance(value, int) and not isinstance(value, bool)):
            return False
        return self._in_range(value)

    def _in_range(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return False
        return not (self.high is not None and (value > self.high or (self.open_high and value == self.high)))


def _alike(value: Any, option: Any) -> bool:
    """Whether the two can be the same. True is equal to 1, and an array is compared number by number."""
    if isinstance(value, bool) or isinstance(option, bool):
        return type(value) is type(option)
    numbers = isinstance(value, (int, float)) and isinstance(option, (int, float))
    return numbers or isinstance(value, type(option))


def _field(default: Any, allowed: Allowed) -> Any:
    return dataclasses.field(default=default, metadata={_KEY: allowed})


# What these return is a dataclass field. They are typed by the value that an instance will have, so that a type checker
# sees ``c: str = number(0.5)`` for the mistake that it is.


@overload
def number(
    default: float,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    log: bool = False,
) -> float: ...
@overload
def number(
    default: None,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    log: bool = False,
) -> float | None: ...
def number(
    default: float | None,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    log: bool = False,
) -> Any:
    """A finite float; ``open_low`` / ``open_high`` exclude the end point, ``log`` says its natural scale."""
    return _field(default, Allowed("number", low, high, open_low, open_high, optional=default is None, log=log))


@overload
def integer(default: int, *, low: int | None = None, high: int | None = None) -> int: ...
@overload
def integer(default: None, *, low: int | None = None, high: int | None = None) -> int | None: ...
def integer(default: int | None, *, low: int | None = None, high: int | None = None) -> Any:
    """An integer in ``[low, high]``."""
    return _field(default, Allowed("integer", low, high, optional=default is None))


def choice(default: T, options: Sequence[T]) -> T:
    """One of ``options``."""
    made: T = _field(default, Allowed("choice", options=tuple(options)))
    return made


def flag(default: bool) -> bool:
    """A plain bool. Strings are refused, so that ``"False"`` never means True."""
    made: bool = _field(default, Allowed("flag"))
    return made


def text(default: str) -> str:
    """A string."""
    made: str = _field(default, Allowed("text"))
    return made


def texts(default: Sequence[str] = ()) -> tuple[str, ...]:
    """A tuple of strings (a list is turned into one, a single string into a tuple of it)."""
    made: tuple[str, ...] = _field(tuple(default), Allowed("texts"))
    return made


@overload
def vector(
    default: Sequence[float], *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> tuple[float, ...]: ...
@overload
def vector(
    default: None = None, *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> tuple[float, ...] | None: ...
def vector(
    default: Sequence[float] | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
) -> Any:
    """A tuple of floats, one per task (lists are turned into tuples); None where the default is None. ``open_low``
    excludes the lower end."""
    default = None if default is None else tuple(default)
    return _field(default, Allowed("vector", low, high, open_low, optional=default is None))


def allowed(cls: type) -> dict[str, Allowed]:
    """The declared ranges of a plugin class, by field name."""
    if not dataclasses.is_dataclass(cls):
        return {}
    return {f.name: f.metadata[_KEY] for f in dataclasses.fields(cls) if _KEY in f.metadata}


def check(owner: str, permitted: Mapping[str, Allowed], given: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for a value that is not permitted; names the option and its owner."""
    for name, allowed_here in permitted.items():
        if not allowed_here.contains(given[name]):
            raise ConfigurationError(f"{owner}({name}={shown(given[name])}): {name} must be {allowed_here}.")


class Validated:
    """Base of every plugin class: checks the declared ranges at construction."""

    packages: ClassVar[Mapping[str, str]] = {}
    """Packages that only some options need: name to import -> these options, in words. `mtl list` and `mtl show` say
    whether they are installed."""

    def __post_init__(self) -> None:
        declared = allowed(type(self))
        for name, permitted in declared.items():
            value = getattr(self, name)
            if permitted.kind in ("vector", "texts") and isinstance(value, list):
                value = tuple(value)
            if permitted.kind == "texts" and isinstance(value, str):
                value = (value,)
            object.__setattr__(self, name, value)
        check(type(self).__name__, declared, {name: getattr(self, name) for name in declared})
