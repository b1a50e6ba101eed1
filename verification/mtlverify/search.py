"""Looking for a counterexample with Hypothesis's own engine: generate, then shrink. Deterministic given the seed."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from mtlcore.errors import MissingExtraError
from mtlverify.law import Law

SHRINKS = 250
"""Evaluations spent on shrinking. A count, not a clock: the seed decides the result."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a search found.

    Args:
        examples: how many inputs were really measured before a violation, or in all.
        margin: the worst margin seen; on a violation, that of the shrunk counterexample. None if nothing was tried.
        counterexample: the shrunk input, or None.
        error: what the plugin raised on it, or None.
        worst: the input with the worst margin.
    """

    examples: int
    margin: float | None
    counterexample: Any = None
    error: Exception | None = None
    worst: Any = None


class _Violation(AssertionError):
    """Tells Hypothesis that this input is interesting."""


class _Enough(BaseException):
    """Ends shrinking. Not an Exception, so that Hypothesis does not take it for another bug."""


def require_hypothesis() -> None:
    """Raise the error with the pip line if hypothesis is not installed."""
    try:
        import hypothesis  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("hypothesis", "verify", "Searching for counterexamples") from error


def search(
    law: Law, plugin: Any, examples: Any, max_examples: int, seed: int, explicit: Any = (), shrink: bool = True
) -> Outcome:
    """Try ``law`` on ``explicit`` inputs, then on up to ``max_examples`` inputs drawn from ``examples``."""
    require_hypothesis()
    import hypothesis
    from hypothesis import HealthCheck, Phase, Verbosity

    tried = 0
    worst: tuple[float, Any] | None = None
    found: tuple[float, Any, Exception | None] | None = None
    shrinks = 0

    def attempt(example: Any) -> None:
        nonlocal tried, worst, found, shrinks
        if found is not None:
            shrinks += 1
            if shrinks > SHRINKS:
                raise _Enough
        error = None
        try:
            margin = law.measure(plugin, example)
        except Exception as raised:
            if isinstance(raised, hypothesis.errors.UnsatisfiedAssumption):
                raise
            margin, error = float("-inf"), raised
        if found is None:
            tried += 1
            if worst is None or margin < worst[0]:
                worst = (margin, example)
        # While shrinking, an exception and a violation are different findings: stay with the first kind.
        if margin < 0 and (found is None or (found[2] is None) == (error is None)):
            found = (margin, example, error)
            raise _Violation

    settings = hypothesis.settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        print_blob=False,
        derandomize=False,
    )
    try:
        for example in explicit:
            attempt(example)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a plugin's warnings on odd inputs are not findings
            hypothesis.seed(seed)(settings(hypothesis.given(examples)(attempt)))()
    except (_Violation, _Enough, hypothesis.errors.Flaky, hypothesis.errors.FlakyFailure):
        pass  # `found` is the smallest violation so far; a flaky one is a violation all the same
    except hypothesis.errors.Unsatisfiable:
        pass  # nothing was tried; the runner calls that vacuous
    if found is not None:
        margin, example, error = found
        return Outcome(tried, None if error is not None else margin, example, error, example)
    return Outcome(tried, None if worst is None else worst[0], worst=None if worst is None else worst[1])
