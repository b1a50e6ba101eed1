"""Looking for a counterexample with Hypothesis's own engine: generate, then shrink. Deterministic given the seed."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import warnings
from typing import Any

from mtlcore.errors import MissingExtraError
from mtlverify.law import Law, OutsideLaw

SHRINKS = 600
"""Evaluations spent on shrinking the counterexample to a promise. A count, not a clock: the seed decides the result."""


PATIENCE = 8
"""Draws per wanted input before a stratum is given up whose draws do not satisfy the preconditions ..."""
LEAST_DRAWS = 64
"""... and so many at least: with few wanted inputs, a run of unlucky draws must not pass for a law without inputs."""
FEW = 4
"""Hypothesis starts every stratum with its simplest input. A stratum with fewer inputs than this would see little else:
there the first comes last, and only if nothing else is left."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a search found.

    Args:
        examples: how many inputs were really measured before a violation, or in all.
        margin: the worst margin seen; on a violation, that of the shrunk counterexample. None if nothing was tried.
        counterexample: the shrunk input, or None.
        error: what the plugin raised on it, or None.
        worst: the input with the worst margin.
        outside: why the last input that did not count did not, if the check said so.
    """

    examples: int
    margin: float | None
    counterexample: Any = None
    error: BaseException | None = None
    worst: Any = None
    outside: str = ""


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


def shares(examples: Any, total: int, seed: int) -> list[tuple[Any, int]]:
    """The strata, each with its number of inputs: these differ by at most one and sum to ``total``. Where there are not
    enough to go round, the seed decides which strata have one.

    Merging them into one strategy would not do: Hypothesis varies what it has drawn before, and of 50 inputs from 19
    families a dozen families had none.
    """
    strata = tuple(getattr(examples, "strata", (examples,)))
    each, rest = divmod(total, len(strata))
    more = set(random.Random(seed).sample(range(len(strata)), rest))
    return [(s, each + (i in more)) for i, s in enumerate(strata) if each + (i in more) > 0]


@dataclasses.dataclass
class _Hunt:
    """The state of one search: what was measured, and the smallest violation so far."""

    law: Law
    plugin: Any
    tried: int = 0
    shrinks: int = SHRINKS
    worst: tuple[float, Any] | None = None
    found: tuple[float, Any, BaseException | None] | None = None
    outside: str = ""

    def measure(self, example: Any) -> None:
        """Measure one input; raise :class:`_Violation` if it violates the law, OutsideLaw if it shows nothing."""
        from hypothesis.errors import UnsatisfiedAssumption

        if self.found is not None:
            self.shrinks -= 1
            if self.shrinks < 0:
                raise _Enough
        error: BaseException | None = None
        try:
            margin: float = self.law.measure(self.plugin, example)
        except (OutsideLaw, UnsatisfiedAssumption) as outside:
            # The second comes from ``hypothesis.assume``, which works in a search only.
            self.outside = str(outside)
            raise
        except (Exception, SystemExit) as raised:  # a plugin that ends the process has raised, too
            margin, error = float("-inf"), raised
        if self.found is None:
            self.tried += 1
            if self.worst is None or margin < self.worst[0]:
                self.worst = (margin, example)
        # While shrinking, an exception and a violation are different findings: stay with the first kind.
        if margin < 0 and (self.found is None or (self.found[2] is None) == (error is None)):
            self.found = (margin, example, error)
            raise _Violation

    def through(self, stratum: Any, count: int, seed: int) -> None:
        """Let Hypothesis draw ``count`` inputs. A stratum that keeps refusing what it drew is given up."""
        import hypothesis
        from hypothesis import HealthCheck, Phase, Verbosity
        from hypothesis import strategies as st

        draws, wanted = 0, self.tried + count
        put_off: list[Any] = []

        @st.composite
        def limited(draw: Any) -> Any:
            nonlocal draws
            draws += 1
            if self.found is None and draws > max(PATIENCE * count, LEAST_DRAWS):
                raise _Enough
            return draw(stratum)

        def tell(example: Any) -> None:
            if count < FEW and not put_off:
                put_off.append(example)
                hypothesis.reject()
            try:
                self.measure(example)
            except OutsideLaw:
                hypothesis.reject()

        run = hypothesis.settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink) if self.shrinks else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
            report_multiple_bugs=False,
            print_blob=False,
            derandomize=False,
        )(hypothesis.given(limited())(tell))
        # A flaky violation is a violation all the same; nothing drawn at all is seen from ``tried``.
        errors = hypothesis.errors
        with contextlib.suppress(_Violation, _Enough, errors.Flaky, errors.FlakyFailure, errors.Unsatisfiable):
            hypothesis.seed(seed)(run)()
        for example in put_off if self.tried < wanted and self.found is None else ():
            with contextlib.suppress(_Violation, OutsideLaw):
                self.measure(example)


def search(
    law: Law, plugin: Any, examples: Any, max_examples: int, seed: int, explicit: Any = (), shrinks: int = SHRINKS
) -> Outcome:
    """Try ``law`` on ``explicit`` inputs, then on up to ``max_examples`` inputs drawn from ``examples``.

    ``examples`` is a strategy, or :class:`mtlverify.strategies.Strata`: then every stratum gets its share of the
    inputs, because Hypothesis left alone may pass over a family altogether. The first violation ends the search.
    """
    require_hypothesis()
    hunt = _Hunt(law, plugin, shrinks=shrinks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a plugin's warnings on odd inputs are not findings
        with contextlib.suppress(_Violation):
            for example in explicit:
                with contextlib.suppress(OutsideLaw):
                    hunt.measure(example)
        for number, (stratum, count) in enumerate(shares(examples, max_examples, seed)):
            if hunt.found is None:
                hunt.through(stratum, count, seed + number)  # one seed for all would draw the same K for all
    if hunt.found is not None:
        margin, example, error = hunt.found
        return Outcome(hunt.tried, None if error is not None else margin, example, error, example)
    if hunt.worst is None:
        return Outcome(hunt.tried, None, outside=hunt.outside)
    return Outcome(hunt.tried, hunt.worst[0], worst=hunt.worst[1])
