"""Every error a user can see. Each message says what is wrong, who is the culprit, and what to do next.

Nothing here imports torch, so that the command line can report a broken plugin quickly.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_FEW = 12
"""Names that a message may list."""


class MtlError(Exception):
    """Base of all errors raised on purpose by mtlcore and its wings."""


class ConfigurationError(MtlError, ValueError):
    """A hyper-parameter or an argument is outside what is allowed."""


class UnknownPluginError(MtlError, LookupError):
    """No plugin of that kind has that name; the message lists the nearest names."""


class PluginError(MtlError, RuntimeError):
    """A plugin broke its contract or raised; the message names plugin and distribution."""


class LossError(MtlError, ValueError):
    """The losses handed to a step cannot be used; the message names the task."""


class FeaturesError(MtlError, ValueError):
    """The features handed to a step are not what the losses were computed from."""


class NonFiniteError(MtlError, ArithmeticError):
    """NaN or infinity in a loss or a task gradient; the message names the task."""


class StateError(MtlError, ValueError):
    """A state dict does not fit the object it is loaded into."""


class TeleportError(MtlError, RuntimeError):
    """A teleport cannot be attempted at all (a refused one is a result, not an error)."""


class ProcessError(MtlError, RuntimeError):
    """Another process of a distributed run failed, left, or came with something else; the message names it."""

    lost = False
    """Whether the process group is broken, so that nobody can be told anything any more."""


class MissingExtraError(MtlError, ImportError):
    """An optional dependency is not installed; the message gives the exact pip line."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(
            f"{why} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'mtlcore[{extra}]'"
        )
        self._made_of = package, extra, why

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        """Worker processes hand it over: without this, unpickling it breaks their pool."""
        return type(self), self._made_of


class PluginWarning(UserWarning):
    """A plugin was set aside (training goes on without it, `mtl list` shows why), or is not set as in a checkpoint."""


class TrainingWarning(UserWarning):
    """The training goes on, but part of the network is not trained as its owner may think; names the parameters."""


def nearest(word: object, known: Iterable[str], n: int = 1) -> list[str]:
    """At most n known words, the nearest first; none if all are far from it.

    Papers write PCGrad and Nash-MTL, and Python writes nash_mtl: case and underscores do not count.
    """
    plain = {name.lower().replace("_", "-"): name for name in known}
    near = difflib.get_close_matches(str(word).lower().replace("_", "-"), plain, n=n, cutoff=0.5)
    return [plain[name] for name in near]


def did_you_mean(word: object, known: Iterable[str], otherwise: str = "Available", n: int = 3) -> str:
    """The end of a message about an unknown word: the nearest known ones, or all of them after ``otherwise``."""
    names = list(known)
    near = nearest(word, names, n)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"{otherwise}: {', '.join(names) or 'none'}."


def like_plugin(word: object, known: Iterable[str]) -> str:
    """The same about an unknown plugin. Dozens of names would bury the message: then it says where they are listed."""
    names = list(known)
    if len(names) > _FEW and not nearest(word, names):
        return "`mtl list` shows them."
    return f"{did_you_mean(word, names)} `mtl list` shows all."


def listed(names: Sequence[object], shown: int = 6, joint: str = ", ") -> str:
    """Names in a message: the first few, and how many more there are; a vector of losses has hundreds."""
    more = len(names) - shown
    return joint.join(map(str, names[:shown])) + (f" and {more} more" if more > 0 else "")
