"""Looking for a counterexample: sample every family, then make what is found small. Deterministic given the seed.

Inputs made of :mod:`mtlverify.strategies.pick` are sampled here, thousands in a second. A third party's Hypothesis
strategies are left to Hypothesis, which draws and shrinks them. :mod:`mtlverify.hunt` is the second engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mtlcore.errors import FeaturesError, LossError, MissingExtraError
from mtlcore.hosting import TookTooLong, interrupted_by_user
from mtlverify.climb import climb
from mtlverify.law import Law, OutsideLaw
from mtlverify.strategies.pick import Rejected
from mtlverify.strategies.strata import NeedsHypothesis, Stratum

SHRINKS = 600
"""Evaluations spent on shrinking the counterexample to a promise. A count, not a clock: the seed decides the result."""

PATIENCE = 8
"""Draws per wanted input before a stratum is given up whose draws do not satisfy the preconditions ..."""
LEAST_DRAWS = 64
"""... and so many at least, of a law with an expensive check its share: with few wanted inputs, a run of unlucky draws
must not pass for a law without inputs. A stratum of inputs that are alike is given up after ``PATIENCE`` draws none of
which counts."""
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
        families: inputs measured, by family.
        hunted: inputs measured by the hunt, which are not among ``examples``.
        hunt_margin: the smallest margin among them; None if there are none.
    """

    examples: int
    margin: float | None
    counterexample: Any = None
    error: BaseException | None = None
    worst: Any = None
    outside: str = ""
    families: Mapping[str, int] = dataclasses.field(default_factory=dict)
    hunted: int = 0
    hunt_margin: float | None = None


class Violation(AssertionError):
    """Tells an engine that this input is a counterexample."""


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


def refused(example: Any, error: BaseException) -> bool:
    """Whether a method rightly refuses an input: nobody knows the logarithm of a negative loss."""
    losses = getattr(example, "losses", None)
    return isinstance(error, (LossError, FeaturesError)) and losses is not None and not bool((losses > 0).all())


@dataclasses.dataclass
class Search:
    """The state of one search: what was measured, and the smallest violation so far."""

    law: Law
    plugin: Any
    tried: int = 0
    shrinks: int = SHRINKS
    worst: tuple[float, Any] | None = None
    found: tuple[float, Any, BaseException | None] | None = None
    outside: str = ""
    families: Counter[str] = dataclasses.field(default_factory=Counter)

    def measure(self, example: Any) -> float:
        """The margin of one input.

        Raises:
            Violation: it violates the law, or the plugin raised.
            OutsideLaw: it shows nothing.
        """
        from hypothesis.errors import UnsatisfiedAssumption

        error: BaseException | None = None
        try:
            margin: float = self.law.measure(self.plugin, example)
        except (OutsideLaw, UnsatisfiedAssumption) as outside:
            # The second comes from ``hypothesis.assume``, which works in a search only.
            self.outside = str(outside)
            raise OutsideLaw(self.outside) from None
        except BaseException as raised:  # a plugin that ends the process has raised, too
            if isinstance(raised, TookTooLong) or interrupted_by_user(raised):
                raise
            if refused(example, raised):
                self.outside = str(raised)
                raise OutsideLaw(self.outside) from None
            margin, error = float("-inf"), raised
        if self.found is None:
            self.tried += 1
            self.families[str(getattr(example, "family", "")).partition(" (")[0]] += 1
            if self.worst is None or margin < self.worst[0]:
                self.worst = (margin, example)
        # While shrinking, an exception and a violation are different findings: stay with the first kind.
        if margin < 0 and (self.found is None or (self.found[2] is None) == (error is None)):
            self.found = (margin, example, error)
            raise Violation
        return margin

    def through(self, stratum: Any, count: int, seed: int, draws: int = LEAST_DRAWS) -> None:
        """``count`` inputs of one stratum. One that keeps refusing what it drew is given up."""
        if isinstance(stratum, Stratum):
            with contextlib.suppress(NeedsHypothesis):
                return self._sampled(stratum, count, seed, draws)
        strategy = stratum.hypothesis() if isinstance(stratum, Stratum) else stratum
        return self._drawn_by_hypothesis(strategy, count, seed)

    def _sampled(self, stratum: Stratum, count: int, seed: int, draws: int) -> None:
        rng, before = random.Random(seed), self.tried
        for number in range(max(PATIENCE * count, draws)):
            hopeless = stratum.alike and number >= PATIENCE and self.tried == before
            if self.tried >= before + count or hopeless:
                return
            with contextlib.suppress(Rejected, OutsideLaw):
                self.measure(stratum.sample(rng))

    def shrink(self) -> None:
        """Make the counterexample smaller, if it is one of ours and the law says what it speaks about."""
        from mtlverify.minimise import least

        assert self.found is not None
        _, example, _ = self.found
        domain = self.law.domain if hasattr(example, "jacobian") else (lambda rows: True)
        if self.shrinks <= 0 or domain is None:
            return

        def still(candidate: Any) -> bool:
            try:
                self.measure(candidate)
            except Violation:
                return True
            except OutsideLaw:
                return False
            return False

        least(still, example, domain, self.shrinks)

    def _drawn_by_hypothesis(self, strategy: Any, count: int, seed: int) -> None:
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
            return draw(strategy)

        def tell(example: Any) -> None:
            if count < FEW and not put_off:
                put_off.append(example)
                hypothesis.reject()
            if self.found is not None:
                self.shrinks -= 1
                if self.shrinks < 0:
                    raise _Enough
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
        with contextlib.suppress(Violation, _Enough, errors.Flaky, errors.Unsatisfiable):
            hypothesis.seed(seed)(run)()
        for example in put_off if self.tried < wanted and self.found is None else ():
            with contextlib.suppress(Violation, OutsideLaw):
                self.measure(example)

    def outcome(self, hunted: int = 0, hunt_margin: float | None = None) -> Outcome:
        """What there is to say."""
        counts = dict(sorted(self.families.items()))
        hunt: dict[str, Any] = {"hunted": hunted, "hunt_margin": hunt_margin}
        if self.found is not None:
            margin, example, error = self.found
            shown = None if error is not None else margin
            return Outcome(self.tried, shown, example, error, example, families=counts, **hunt)
        if self.worst is None:
            return Outcome(self.tried, None, outside=self.outside, **hunt)
        return Outcome(self.tried, self.worst[0], worst=self.worst[1], families=counts, **hunt)


def spare(examples: Any, total: int) -> int:
    """Inputs that are kept for climbing: a quarter, if every stratum has two or more all the same."""
    return max(0, min(total // 4, total - 2 * len(getattr(examples, "strata", ()))))


def _top_up(state: Search, examples: Any, wanted: int, seed: int) -> None:
    """Where some strata have no input that counts, the others have more. Where few strata were asked and none has any,
    all are: a search of three inputs must not say that there are none."""
    for number, stratum in enumerate(getattr(examples, "strata", ())):
        if state.tried or state.found is not None:
            break
        state.through(stratum, 1, seed + 500 + number, draws=PATIENCE)
    for number, stratum in enumerate(getattr(examples, "strata", ())):
        missing = wanted - sum(state.families.values())
        if missing <= 0 or state.found is not None:
            return
        if isinstance(stratum, Stratum) and state.families[stratum.name]:
            state.through(stratum, min(missing, 1 + wanted // len(examples.strata)), seed + 1000 + number)


def search(
    law: Law,
    plugin: Any,
    examples: Any,
    max_examples: int,
    seed: int,
    explicit: Any = (),
    shrinks: int = SHRINKS,
    hunt: float = 0.0,
) -> Outcome:
    """Try ``law`` on ``explicit`` inputs, then on up to ``max_examples`` inputs drawn from ``examples``, then hunt for
    ``hunt`` seconds. Without inputs (``max_examples`` = 0) it only hunts.

    ``examples`` is a strategy, or :class:`mtlverify.strategies.Strata`: then every stratum gets its share of the
    inputs, because Hypothesis left alone may pass over a family altogether. The first violation ends the search.
    """
    require_hypothesis()
    state, hunted, lowest = Search(law, plugin, shrinks=shrinks), 0, None
    with warnings.catch_warnings(), contextlib.suppress(Violation):
        warnings.simplefilter("ignore")  # a plugin's warnings on odd inputs are not findings
        for example in explicit:
            with contextlib.suppress(OutsideLaw):
                state.measure(example)
        extra = spare(examples, max_examples)
        for number, (stratum, count) in enumerate(shares(examples, max_examples - extra, seed)):
            if state.found is None:
                # One seed for all would draw the same K for all.
                state.through(stratum, count, seed + number, draws=round(LEAST_DRAWS * min(1.0, law.effort)))
        if state.found is None and extra:
            climb(state, extra, seed)
        if max_examples:
            _top_up(state, examples, max_examples, seed)
    if state.found is None and hunt > 0:
        from mtlverify.hunt import hunted_for

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = hunted_for(state, examples, hunt, seed)
        hunted, lowest = done.evaluations, done.margin
    if state.found is not None:
        state.shrink()
    return state.outcome(hunted, lowest)
