"""One recipe of inputs per family. A search gives each its share: "100 inputs" means "some of every family"."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from mtlverify.strategies.pick import Pick, Rejected

Draw = Callable[[Any], Any]
Recipe = Callable[[Draw], Any]


class NeedsHypothesis(Exception):
    """The recipe draws Hypothesis strategies, which only Hypothesis can draw."""


@dataclasses.dataclass(frozen=True)
class Stratum:
    """A recipe, and the two ways of following it.

    Args:
        recipe: what draws an input.
        name: of the family.
        alike: whether a law's preconditions mostly hold for all inputs of the family or for none, as a teleport moves
            in all networks of an architecture or in none. It is then given up sooner.
    """

    recipe: Recipe
    name: str = ""
    alike: bool = False

    def sample(self, rng: random.Random) -> Any:
        """One input, by the search's own sampler.

        Raises:
            Rejected: this draw came to nothing.
            NeedsHypothesis: the recipe is not made of :mod:`mtlverify.strategies.pick`.
        """

        def draw(what: Any) -> Any:
            if not isinstance(what, (Pick, Stratum)):
                raise NeedsHypothesis
            return what.sample(rng)

        return self.recipe(draw)

    def hypothesis(self) -> Any:
        """One strategy, for ``@given``."""
        import hypothesis
        from hypothesis import strategies

        @strategies.composite
        def examples(draw: Draw) -> Any:
            try:
                return self.recipe(lambda what: draw(_as_strategy(what)))
            except Rejected:
                hypothesis.reject()

        return examples()

    def filter(self, condition: Callable[[Any], bool]) -> Stratum:
        """Only inputs that satisfy ``condition``."""

        def recipe(draw: Draw) -> Any:
            found = self.recipe(draw)
            if not condition(found):
                raise Rejected
            return found

        return dataclasses.replace(self, recipe=recipe)

    def map(self, change: Callable[[Any], Any]) -> Stratum:
        """Every input changed."""
        return dataclasses.replace(self, recipe=lambda draw: change(self.recipe(draw)))


def _as_strategy(what: Any) -> Any:
    return what.hypothesis() if isinstance(what, (Pick, Stratum)) else what


@dataclasses.dataclass(frozen=True)
class Strata:
    """Several recipes: a :class:`Stratum` or a Hypothesis strategy each.

    Args:
        strata: the recipes.
        pool: a name, where an answer to one input takes long. All laws about a plugin that draw from one pool then draw
            the same inputs, so that they can share answers (:mod:`mtlverify.memory`). "": each law draws its own.
    """

    strata: tuple[Any, ...]
    pool: str = ""

    def filter(self, condition: Callable[[Any], bool]) -> Strata:
        """Only inputs that satisfy ``condition``."""
        return dataclasses.replace(self, strata=tuple(s.filter(condition) for s in self.strata))

    def map(self, change: Callable[[Any], Any]) -> Strata:
        """Every input changed in some way."""
        return dataclasses.replace(self, strata=tuple(s.map(change) for s in self.strata))

    def merged(self) -> Any:
        """One ordinary Hypothesis strategy, for ``@given``."""
        from hypothesis import strategies

        return strategies.one_of(*map(_as_strategy, self.strata))
