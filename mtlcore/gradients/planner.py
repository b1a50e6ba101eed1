"""Which plan serves a step, and why. The choice is a rule's; nothing here looks at a clock."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import torch

from mtlcore import linalg
from mtlcore.contracts import Needs
from mtlcore.errors import ConfigurationError, FeaturesError, LossError
from mtlcore.gradients import check, features_only, jacobian, rule, samples
from mtlcore.gradients.batch import Batch, Outline
from mtlcore.gradients.losses_only import Weighted
from mtlcore.gradients.plan import PLANS, Plan
from mtlcore.gradients.storage import Storage
from mtlcore.gradients.task_gradients import TaskGradients

_FAILURES = (ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a plan may raise on a network that it cannot serve."""
_REMEMBERED = 512
"""Shapes of step whose choice is kept: batches of varying length would otherwise add up for ever."""


class Planner:
    """Picks a plan for each step of one training run, and owns the memory that plans share.

    Args:
        wish: "auto", or the name of a plan to force.
        memory: bytes that task gradients may take, or None. "auto" leaves out the plans that would need more.
        check: whether the first step with a new graph compares the plan with plain autograd.
        across: whether the task gradients meet other vectors after the step (:meth:`TaskGradients.across`), so that a
            Gramian which forgets them will not do: streaming keeps all its factors then, at most K x P numbers.

    Raises:
        ConfigurationError: an unknown plan, or a budget that is not a positive number of bytes.
    """

    def __init__(self, wish: str = "auto", memory: int | None = None, check: bool = True, across: bool = False) -> None:
        if not isinstance(wish, str) or (wish != "auto" and wish not in PLANS):
            raise ConfigurationError(f"gradients={wish!r}: choose one of auto, {', '.join(PLANS)}.")
        if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory <= 0):
            raise ConfigurationError(f"gradient_memory={memory!r}: give a positive whole number of bytes, or None.")
        self._wish = wish
        self._memory = memory
        self._check = check
        self._across = across
        self.storage = Storage()
        self.pins: dict[str, str] = {}
        """By what is asked ("GRAMIAN", "JACOBIAN"), the name of the plan that ``MultiTask.tune`` found fastest."""
        self._choices: dict[object, _Choice] = {}

    def collect(self, needs: Needs, batch: Batch, *, rows: bool = False) -> tuple[TaskGradients, str]:
        """Task gradients as far as this step needs them, and which plan made them and why.

        Args:
            needs: what is read.
            batch: the forward pass.
            rows: whether whole rows are wanted where the Gramian is read, as for the sum over several processes
                (factors of one say nothing of inner products with another's) or in a metric of coordinates.

        Raises:
            ConfigurationError: the forced plan does not provide what the method needs, or cannot serve this network.
        """
        # With a budget, factors that are all kept may be too many: then rows are counted.
        rows = rows or (self._across and self._memory is not None)
        if rows and needs == Needs.GRAMIAN and self._wish != "features":
            needs = Needs.JACOBIAN
            if self._wish.startswith("streaming"):
                plan = PLANS["batched" if PLANS[self._wish].together else "sequential"]
                return self.run(plan, batch), f"{plan.name}: {self._wish} keeps no rows, which this step needs whole"
        if self._wish != "auto":
            self.check_forced(needs)
            plan = PLANS[self._wish]
            return self.run(plan, batch), f"{plan.name}: forced"
        if needs == Needs.LOSSES:
            return Weighted(batch), "losses: the method needs no task gradients, one backward pass"
        alone = samples.collect(batch) if needs == Needs.GRAMIAN and not self._across else None
        if alone is not None:
            return alone, samples.REASON
        found, reason = self._chosen(needs, batch)
        if not batch.features:
            reason += "; no features were given, so every task goes through the whole graph (slower)"
        return found, reason

    def check_forced(self, needs: Needs) -> None:
        """
        Raises:
            ConfigurationError: a plan is forced that does not provide what the method needs.
        """
        if self._wish != "auto" and PLANS[self._wish].provides < needs:
            plan = PLANS[self._wish]
            raise ConfigurationError(
                f'gradients="{plan.name}" provides {plan.provides.name}, but this method (or its detector) needs '
                f'{needs.name}. Use gradients="auto".'
            )

    @property
    def at_features(self) -> bool:
        """Whether the user wants Gramians of the gradients at the features, which are other numbers."""
        return self._wish == "features"

    def waits_for_weights(self, needs: Needs) -> bool:
        """Whether a step is one pass of the weighted losses, so that micro-batches can wait with their graphs."""
        return needs == Needs.LOSSES and self._wish in ("auto", "losses")

    def candidates(self, needs: Needs) -> list[Plan]:
        """Every exact plan that provides what is asked."""
        if needs == Needs.LOSSES:
            return [PLANS["losses"]]
        return [p for p in PLANS.values() if p.provides >= needs and p.name != "features"]

    def forced(self, plan: Plan) -> Planner:
        """A planner for this plan alone, in the same memory."""
        out = Planner(plan.name, self._memory, across=self._across)
        out.storage = self.storage
        return out

    def pin(self, needs: Needs, name: str) -> None:
        """From now on try this plan first."""
        self.restore({**self.pins, needs.name: name})

    def restore(self, pins: Mapping[str, str]) -> None:
        """Take over the pins of an earlier run."""
        self.pins = dict(pins)
        self._choices = {}

    def _chosen(self, needs: Needs, batch: Batch) -> tuple[TaskGradients, str]:
        key = _key(needs, batch)
        choice = self._choices.get(key)
        if choice is None:
            if len(self._choices) >= _REMEMBERED:
                self._choices.pop(next(iter(self._choices)))
            choice = self._choices[key] = self._choose(needs, batch)
        for plan in choice.plans:
            if choice.refuses(plan, batch):
                continue
            if plan is choice.plans[-1] or choice.knows(plan, batch):
                return self.run(plan, batch), choice.reason(plan)
            if self._trial(plan, choice, batch):
                compared = "; in this step compared with plain autograd" if self._check else ""
                return self.run(plan, batch), choice.reason(plan) + compared
        raise AssertionError("the last plan is never refused")

    def _choose(self, needs: Needs, batch: Batch) -> _Choice:
        item = torch.finfo(linalg.row_dtype(batch.shared)).bits // 8
        rows = len(batch.losses) * batch.size * item
        if self._memory is not None and rows > self._memory:
            if needs > Needs.GRAMIAN:
                raise ConfigurationError(
                    f"the task gradients take {rows / 1e6:.0f} MB and the memory budget is "
                    f"{self._memory / 1e6:.0f} MB, but this method (or its detector) reads whole rows. Raise the "
                    f"budget, or take one that needs the Gramian only."
                )
            return _Choice((PLANS["streaming"],), "the rows would not fit into the memory budget")
        pinned = self.pins.get(needs.name)
        if pinned is not None:
            first = PLANS[pinned]
            rest = () if first.name == "sequential" else (PLANS["sequential"],)
            return _Choice((first, *rest), "pinned by tune, the fastest where it was measured")
        return _Choice(*rule.preferences(needs, rule.Shape.of(batch)))

    def _trial(self, plan: Plan, choice: _Choice, batch: Batch) -> bool:
        """Whether the plan serves this graph; the graph is kept."""
        try:
            found = self.run(plan, batch, keep_graph=True)
            assert isinstance(found, (jacobian.Stored, jacobian.Blocks))
            error = check.disagreement(found, batch) if self._check else 0.0
        except (LossError, FeaturesError):  # the user's, whatever the plan
            raise
        except _FAILURES as failure:
            choice.refuse(plan, batch, " ".join(str(failure).split())[:200])
            return False
        if error is None:  # an error in a moment: nothing to be compared with
            return True
        if not error <= check.tolerance(batch):
            choice.refuse(plan, batch, f"its gradients differ from plain autograd's (relative error {error:.0e})")
            return False
        choice.accept(plan, batch)
        return True

    def run(self, plan: Plan, batch: Batch, *, keep_graph: bool = False) -> TaskGradients:
        """Task gradients by this plan, unchecked."""
        if plan.together and self._wish == "auto":
            with warnings.catch_warnings():  # vmap warns of slow fallbacks, and the user did not ask for it
                warnings.filterwarnings("ignore", message="There is a performance drop")
                return self._collected(plan, batch, keep_graph)
        return self._collected(plan, batch, keep_graph)

    def _collected(self, plan: Plan, batch: Batch, keep_graph: bool) -> TaskGradients:
        if plan.name == "losses":
            return Weighted(batch)
        if plan.name == "features":
            return features_only.collect(batch, keep_graph=keep_graph)
        if self._across:
            plan = dataclasses.replace(plan, capped=False)
        item = torch.finfo(linalg.row_dtype(batch.shared)).bits // 8
        most = None if self._memory is None else self._memory // item
        return jacobian.collect(plan, batch, self.storage, keep_graph=keep_graph, most=most)


class _Choice:
    """For one shape of step: the plans in order, and which graphs each has been found to serve."""

    def __init__(self, plans: tuple[Plan, ...], why: str) -> None:
        self.plans = plans
        self._why = why
        self._serves: dict[tuple[str, Outline], bool] = {}
        self._refusals: dict[str, str] = {}

    def refuses(self, plan: Plan, batch: Batch) -> bool:
        return any(self._serves.get((plan.name, o)) is False for o in batch.outlines)

    def knows(self, plan: Plan, batch: Batch) -> bool:
        return all(self._serves.get((plan.name, o)) for o in batch.outlines)

    def accept(self, plan: Plan, batch: Batch) -> None:
        self._serves.update({(plan.name, o): True for o in batch.outlines})

    def refuse(self, plan: Plan, batch: Batch, why: str) -> None:
        unknown = [o for o in batch.outlines if (plan.name, o) not in self._serves]
        self._serves.update({(plan.name, o): False for o in unknown or batch.outlines})
        self._refusals[plan.name] = why

    def reason(self, plan: Plan) -> str:
        refused = "".join(f"; {name} refused: {why}" for name, why in self._refusals.items() if name != plan.name)
        return f"{plan.name}: {self._why}{refused}"


def _key(needs: Needs, batch: Batch) -> object:
    """What a choice depends on: shapes, dtypes, device, and the graph's size."""
    first = batch.shared[0]
    return (
        needs,
        len(batch.losses),
        batch.size,
        tuple([f.shape for f in batch.features]),
        first.dtype,
        first.device.type,
        batch.separated,
        batch.reach.size,
        torch.is_autocast_enabled(first.device.type),
    )
