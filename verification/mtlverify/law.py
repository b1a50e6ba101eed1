"""What a law is.

A law is a statement about every input of a method, with a check that measures by how much it holds. Write one as a
function; the decorator makes it a :class:`Law` under the one id that it is known by::

    from mtlverify.law import law

    @law(
        "non-conflicting",
        statement="No task gradient has a negative inner product with the direction.",
        source="Quinton & Rey 2024, definition 1",
        examples=jacobians,
        margin="smallest cosine <g_i, d> / (|g_i| |d|), plus the rounding noise floor",
    )
    def non_conflicting(plugin, example) -> float: ...

In this package that is all: laws are found where they are defined. A package of your own names the modules of its laws
in the hook ``mtlcore_register_laws``::

    @hookimpl
    def mtlcore_register_laws(register):
        for name, target in mtlverify.declared_laws("my_package.laws"):
            register(name, target)

The registered name of a law is its id; for a kind other than "aggregator" it is "kind.id".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Check = Callable[[Any, Any], float]

BASES = {
    "aggregator": "Aggregator",
    "detector": "ConflictDetector",
    "teleport": "TeleportStrategy",
    "explorer": "Explorer",
    "merger": "Merger",
}
"""Kinds of plugins that laws speak about, and the class in mtlcore that all plugins of the kind derive from. A further
kind is a line here and laws with ``kind=``."""

KINDS = tuple(BASES)

DEPTH = 100
"""Examples per law at default depth."""

PLAIN = -1.0
"""A margin that leaves no doubt: as far beyond the tolerance as the tolerance is wide, or a cosine of -1."""

WORST = 1e300
"""Margins are clamped to +-WORST, so that a NaN or an infinity in an answer is still a number in JSON."""


def anything(example: Any) -> bool:
    """The domain of a law about every Jacobian."""
    return True


class OutsideLaw(Exception):
    """An input that does not meet the law's preconditions: it shows nothing about the plugin, and does not count."""


def given(met: bool, precondition: str) -> None:
    """Ends a check unless ``met``. For what shows only in the check; all else belongs into the law's ``examples``.

    Unlike ``hypothesis.assume``, it also works outside of a search: in a replay, or on inputs given explicitly.

    Raises:
        OutsideLaw: not met. A search draws another input, a replay says "not-applicable".
    """
    if not met:
        raise OutsideLaw(f"a precondition of the law is not met: {precondition}")


def always(plugin: Any) -> str | None:
    """Applicability of a law that speaks about every plugin of its kind."""
    return None


class Margin(float):
    """A margin that says what exactly is wrong where the law is violated. A check may return a plain float, too."""

    reason: str

    def __new__(cls, value: float, reason: str = "") -> Margin:
        """The number, and the reason beside it."""
        made = super().__new__(cls, value)
        made.reason = reason
        return made


def worst(margins: Iterable[float], of: str = "") -> Margin:
    """The smallest of several margins, NaN before all: Python's ``min`` passes over a NaN that is not the first.

    With ``of``, what they are margins of ("step"), the reason says which one it is, if it is not the first.
    """
    number, margin = min(_until_plain(margins), key=lambda pair: -math.inf if math.isnan(pair[1]) else pair[1])
    reason = getattr(margin, "reason", "")
    return Margin(margin, f"{reason} ({of} {number})" if reason and of and number else reason)


def _until_plain(margins: Iterable[float]) -> Iterator[tuple[int, float]]:
    """Numbered, and none after one that leaves no doubt: a run that is wrong in its second step need not be made to the
    end."""
    for number, margin in enumerate(margins):
        yield number, margin
        if not margin > PLAIN:
            return


@dataclasses.dataclass(frozen=True)
class Law:
    """A checkable statement.

    Args:
        id: what a plugin writes into ``claims``.
        statement: the law in one sentence.
        source: the mathematics it comes from.
        kind: kind of plugin it speaks about.
        check: ``check(plugin, example) -> margin``; a scale-free number, >= 0 where the law holds. A :class:`Margin`
            says besides what is wrong.
        examples: makes the Hypothesis strategy of the inputs; called once per search.
        margin: what the number means.
        applies: returns None, or the reason why the law says nothing about this plugin.
        universal: every plugin of the kind must obey it, claimed or not.
        effort: share of ``max_examples`` that is tried; below 1 for a law whose check is expensive.
        within: which Jacobians the law speaks about, as a predicate: what ``examples`` makes true by construction. The
            minimiser and the hunt, which make inputs of their own, need it; None if nobody has written it down.
        decode: turns the JSON of a stored example back into an example.
    """

    id: str
    statement: str
    source: str
    kind: str
    check: Check
    examples: Callable[[], Any]
    margin: str = "share of the tolerance that is left"
    applies: Callable[[Any], str | None] = always
    universal: bool = False
    effort: float = 1.0
    within: Callable[[Any], bool] | None = None
    decode: Callable[[Any], Any] | None = None

    @property
    def name(self) -> str:
        """Name in the registry: laws of different kinds may share an id."""
        return self.id if self.kind == "aggregator" else f"{self.kind}.{self.id}"

    @property
    def domain(self) -> Callable[[Any], bool] | None:
        """``within``; everything, if the inputs are those of all families; None if it is not known."""
        if self.within is None and getattr(self.examples, "__name__", "") == "jacobians":
            return anything
        return self.within

    def measure(self, plugin: Any, example: Any) -> Margin:
        """The margin on one example, a finite number. NaN counts as the worst violation.

        Raises:
            OutsideLaw: the law says nothing about the example.
        """
        margin = self.check(plugin, example)
        reason = getattr(margin, "reason", "")
        return Margin(-WORST if math.isnan(margin) else max(-WORST, min(WORST, float(margin))), reason)


def law(id: str, *, statement: str, source: str, examples: Callable[[], Any], **others: Any) -> Callable[[Check], Law]:
    """Turn a check into a :class:`Law`; the keywords are its fields.

    ``id``, and ``kind`` if it is not "aggregator", are literals: :mod:`mtlverify.declared` reads them from the source.
    """

    def decorate(check: Check) -> Law:
        fields = {"kind": "aggregator", **others}
        return Law(id=id, statement=statement, source=source, examples=examples, check=check, **fields)

    return decorate
