"""Checking a plugin against the laws: one result per law, with the number of inputs really tried."""

from __future__ import annotations

import dataclasses
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mtlcore.errors import ConfigurationError, PluginError, PluginWarning, UnknownPluginError, did_you_mean, like_plugin
from mtlcore.hosting import TookTooLong, blame, declared_fault, described, registry
from mtlverify.example import Example
from mtlverify.law import BASES, DEPTH, KINDS, Law, OutsideLaw
from mtlverify.search import SHRINKS, Outcome, refused, require_hypothesis, search
from mtlverify.strategies.profile import profile


@dataclasses.dataclass(frozen=True)
class Result:
    """The verdict on one plugin and one law.

    Args:
        kind: "aggregator", "detector" or "teleport".
        name: registered name of the plugin, or its class name.
        distribution: name of the distribution it comes from.
        law: id of the law.
        claimed: the plugin promises it, or the law is universal.
        status: "verified", "refuted", "not-applicable" or "error".
        examples: inputs really measured.
        worst_margin: the smallest margin seen (negative: violated); None if nothing was measured.
        counterexample: the shrunk input as JSON, with what is needed to replay it; None unless refuted or in error.
        detail: why it does not apply, what was raised, or whether the mathematics or the numerics is at fault.
        reason: what exactly is wrong on the counterexample, where the law says it.
        families: inputs measured, by family: what the verdict rests on.
        hunted: inputs measured by the adversarial search besides; 0 if nobody hunted.
        hunt_margin: the smallest margin among these.
    """

    kind: str
    name: str
    distribution: str
    law: str
    claimed: bool
    status: str
    examples: int = 0
    worst_margin: float | None = None
    counterexample: dict[str, Any] | None = None
    detail: str = ""
    reason: str = ""
    families: dict[str, int] = dataclasses.field(default_factory=dict)
    hunted: int = 0
    hunt_margin: float | None = None

    @property
    def failed(self) -> bool:
        """Whether this result must fail a build: a broken promise, or a check that could not be made."""
        return self.status == "error" or (self.claimed and self.status == "refuted")

    def to_json(self) -> dict[str, Any]:
        """The row of ``mtl verify --json``."""
        return dataclasses.asdict(self)


def laws(kind: str) -> list[Law]:
    """All registered laws about a kind of plugin, universal ones first, then by id. One that cannot be imported is left
    out with a warning: whoever claims it has an error row."""
    found = []
    for entry in registry().entries("law"):
        if entry.status == "ok":
            try:
                found.append(registry().load("law", entry.name))
            except PluginError as error:
                warnings.warn(str(error), PluginWarning, stacklevel=2)
    return sorted((law for law in found if law.kind == kind), key=lambda law: (not law.universal, law.id))


def check(
    plugin: Any,
    laws: Iterable[str] | None = None,
    max_examples: int = DEPTH,
    seed: int = 0,
    *,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    claimed: bool = False,
    hunt: float = 0.0,
) -> Iterator[Result]:
    """Check a plugin (an instance, or a registered name with ``options``) against laws, one after the other.

    A law is tried whether the plugin claims it or not; ``Result.failed`` says whether a violation breaks a promise.

    Args:
        laws: ids of the laws to check; None means all of the plugin's kind.
        max_examples: inputs per law (a law with an expensive check may take a fixed share of them).
        seed: seed of the search; the same seed finds the same counterexample.
        kind: "aggregator", "detector" or "teleport"; needed only for a name that two kinds share.
        claimed: only laws that the plugin promises or must obey.
        hunt: seconds of adversarial search (:mod:`mtlverify.hunt`) per promised law, after the inputs are tried.

    Raises:
        UnknownPluginError: no plugin, or no law, of that name.
        PluginError: the plugin cannot be imported or created.
        ConfigurationError: its ``needs`` or ``claims`` are of a wrong type.
        MissingExtraError: hypothesis is not installed.
    """
    require_hypothesis()
    if max_examples < 1:
        raise ConfigurationError(f"max_examples={max_examples}: at least one example must be tried.")
    if isinstance(plugin, str):
        kind = kind_of_name(plugin) if kind is None else kind
        plugin = registry().create(kind, plugin, **(options or {}))
    kind = kind_of(plugin)
    fault = declared_fault(plugin)
    if fault is not None:  # the registry has looked at registered ones
        raise ConfigurationError(f"{fault}.")
    wanted = chosen(kind, laws)
    yield from claims_of_nothing(plugin, kind, laws)
    for law in promised(plugin, wanted) if claimed else wanted:
        yield examine(plugin, law, max_examples, seed, hunt=hunt)


def examine(
    plugin: Any,
    law: Law,
    max_examples: int,
    seed: int,
    *,
    explicit: Iterable[Any] = (),
    shrink: bool = True,
    hunt: float = 0.0,
) -> Result:
    """The verdict of one law. ``explicit`` inputs are tried first; without ``shrink`` the first violation is kept.
    What is promised is hunted for ``hunt`` seconds where the inputs showed nothing; with no inputs, it only is.

    What nobody promised is shrunk less: it is a remark, and most of the time of a run would go into it.
    """
    result = _blank(plugin, law)
    try:
        reason = law.applies(plugin)
    except BaseException as error:  # it may have asked the method a question
        return dataclasses.replace(result, detail=f"raised {_of_the_plugin(error)}")
    if reason is not None:
        return dataclasses.replace(result, status="not-applicable", detail=reason)
    with profile(max_examples, law.domain):
        examples = law.examples()
        restrict = getattr(type(plugin), "verification_examples", None)
        if restrict is not None:
            # A sub-problem of the tasks present need not be one that the method takes.
            examples = restrict(examples.map(everybody_there) if hasattr(examples, "map") else examples)
        depth = max(1, round(max_examples * law.effort)) if max_examples else 0
        shrinks = (SHRINKS if result.claimed else min(SHRINKS // 12, max_examples)) if shrink else 0
        outcome = search(
            law, plugin, examples, depth, _seed(seed, result.name, getattr(examples, "pool", "") or law.name), explicit,
            shrinks, hunt if result.claimed else 0.0,
        )  # fmt: skip
    return _judged(plugin, law, outcome, result)


def everybody_there(example: Any) -> Any:
    """The same input without absences."""
    extra = getattr(example, "extra", None)
    if not extra or not (extra.get("away") or extra.get("gone")):
        return example
    return example.with_(extra={**extra, **{name: [] for name in ("away", "gone") if name in extra}})


def replay(plugin: Any, counterexample: Mapping[str, Any]) -> Result:
    """Measure one stored counterexample again: "refuted" if it still is one, "verified" if it no longer is,
    "not-applicable" if the law says nothing about this plugin on it (a reference without a unique answer, say).

    Raises:
        ConfigurationError: it is something else.
        UnknownPluginError: its law is not registered.
    """
    missing = [key for key in ("law", "example") if key not in counterexample]
    if missing:
        raise ConfigurationError(
            f"not a counterexample as `check` returns it (Result.counterexample): it has no {' and no '.join(missing)}."
        )
    require_hypothesis()
    law: Law = registry().load("law", counterexample["law"])
    example = (law.decode or Example.from_json)(counterexample["example"])
    result = _blank(plugin, law)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in a search
            margin = law.measure(plugin, example)
    except OutsideLaw as outside:
        return dataclasses.replace(result, status="not-applicable", detail=str(outside))
    except BaseException as error:
        _of_the_plugin(error)
        if refused(example, error):
            return dataclasses.replace(result, status="not-applicable", detail=str(error))
        return _judged(plugin, law, Outcome(1, None, example, error, example), result)
    outcome = Outcome(1, margin, example if margin < 0 else None, None, example)
    return _judged(plugin, law, outcome, result)


def _of_the_plugin(error: BaseException) -> str:
    """What a plugin raised, of whatever class, in words; the user's Ctrl-C and the end of its time are raised again."""
    if isinstance(error, TookTooLong):
        raise error
    return blame(error)


def kind_of(plugin: Any) -> str:
    """One of ``KINDS``."""
    import mtlcore

    for kind, base in BASES.items():
        if isinstance(plugin, getattr(mtlcore, base)):
            return kind
    names = list(BASES.values())
    raise ConfigurationError(f"{plugin!r} is not an instance of {', '.join(names[:-1])} or {names[-1]}.")


_INSTEAD = {"problem": ": add --kind problem", "law": ": `mtl verify --law {name}` checks every method against it"}
"""What to do with the name of something else."""


def kind_of_name(name: str) -> str:
    """The kind in which a name is registered; the registry's own error if there is none."""
    everywhere = registry().kinds_of(name)
    kinds = [k for k in KINDS if k in everywhere]
    if len(kinds) > 1:
        raise ConfigurationError(
            f"{name!r} names plugins of several kinds ({', '.join(kinds)}): say which, with kind= or --kind."
        )
    if kinds:
        return kinds[0]
    for other in everywhere:
        way_out = _INSTEAD.get(other, "").format(name=name)
        raise UnknownPluginError(f"{name!r} is the name of a {other}, not of a method{way_out}.")
    known = sorted({e.name for k in KINDS for e in registry().entries(k) if e.status == "ok"})
    kinds_there = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
    raise UnknownPluginError(f"there is no {kinds_there} called {name!r}. {like_plugin(name, known)}")


# --- pieces -------------------------------------------------------------------------------------------------------


def _blank(plugin: Any, law: Law) -> Result:
    owner = registry().entry_of(plugin)
    return Result(
        kind=law.kind,
        name=registry().name_of(plugin),
        distribution="(unregistered)" if owner is None else owner.distribution,
        law=law.id,
        claimed=law.universal or law.id in plugin.claims,
        status="error",
    )


def _judged(plugin: Any, law: Law, outcome: Outcome, result: Result) -> Result:
    if outcome.error is not None:
        # A promise can be broken by raising, too; a method that refuses an input says so in verification_examples.
        changes: dict[str, Any] = {
            "status": "error",
            "detail": f"raised {described(outcome.error)}",
        }
    elif outcome.examples == 0 and outcome.hunted == 0 and outcome.counterexample is None:
        why = f" ({outcome.outside})" if outcome.outside else ""
        changes = {"status": "error", "detail": f"vacuous: not one input satisfied the preconditions{why}"}
    elif outcome.counterexample is not None:
        reason = getattr(outcome.margin, "reason", "")
        changes = {"status": "refuted", "detail": _blame(plugin, law, outcome.counterexample), "reason": reason}
    else:
        changes = {"status": "verified"}
    stored = None
    margin = None if outcome.margin is None else float(outcome.margin)
    if outcome.counterexample is not None:
        stored = {"law": law.name, "margin": margin, "example": outcome.counterexample.to_json()}
    return dataclasses.replace(
        result,
        examples=outcome.examples,
        worst_margin=margin,
        counterexample=stored,
        families=dict(outcome.families),
        hunted=outcome.hunted,
        hunt_margin=None if outcome.hunt_margin is None else float(outcome.hunt_margin),
        **changes,
    )


def _blame(plugin: Any, law: Law, example: Any) -> str:
    """Whether the exact reference of the same method breaks the law on the same input, too."""
    from mtlverify import references

    exact = references.exact_twin(plugin) if law.kind == "aggregator" and law.id != "matches-reference" else None
    if exact is None or law.applies(exact) is not None:
        return ""
    try:
        margin = law.measure(exact, example.with_(jacobian=example.jacobian.double()))
    except ArithmeticError as error:
        return f"undecided: the exact reference has no answer here ({error})"
    except Exception:
        return ""  # the law looks at something that a reference does not have, such as weights
    if margin < 0:
        return f"the mathematics: the exact reference breaks the law here, too (margin {margin:.3g})"
    return f"the numerics: the exact reference obeys the law here (margin {margin:.3g})"


def chosen(kind: str, wanted: Iterable[str] | None = None) -> list[Law]:
    """The laws of these ids about a kind of plugin, or all of them; an unknown id is an error."""
    known = laws(kind)
    if wanted is None:
        return known
    by_id = {law.id: law for law in known}
    found = []
    for id in wanted:
        if id not in by_id:
            hint = did_you_mean(id, by_id, "Laws")
            raise UnknownPluginError(f"there is no law called {id!r} about {kind}s. {hint}")
        found.append(by_id[id])
    return found


def promised(plugin: Any, wanted: Iterable[Law]) -> list[Law]:
    """Those of the laws that the plugin claims or must obey."""
    return [law for law in wanted if law.universal or law.id in plugin.claims]


def claims_of_nothing(plugin: Any, kind: str, wanted: Iterable[str] | None) -> Iterator[Result]:
    """A claim that no law answers to is an error, not a silently kept promise."""
    known = {law.id for law in laws(kind)}
    for id in sorted(plugin.claims - known) if wanted is None else ():
        owner = registry().entry_of(plugin)
        yield Result(
            kind, registry().name_of(plugin), "(unregistered)" if owner is None else owner.distribution,
            id, True, "error", detail=f"claims {id!r}, but no law of that id is registered about {kind}s",
        )  # fmt: skip


def _seed(seed: int, name: str, law: str) -> int:
    """Each pair of plugin and law (or pool of inputs that laws share) searches on its own seed, so that the order of
    checks changes nothing."""
    return zlib.crc32(f"{seed}/{name}/{law}".encode())
