"""One attempt: snapshot, propose, check, accept or roll back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlcore import hyperparameters, trajectory
from mtlcore.contracts import ConflictDetector, Displacement, StepView, TeleportStrategy
from mtlcore.errors import ConfigurationError
from mtlcore.hyperparameters import Allowed
from mtlcore.registry import create, registry
from mtlcore.report import TeleportResult
from mtlcore.snapshot import undo_on_error
from mtlcore.teleporting.follow import Follower
from mtlcore.teleporting.memory import Direction, History, Memory, Over
from mtlcore.teleporting.problem import Closure, Problem, Together
from mtlcore.teleporting.proposal import checked
from mtlcore.teleporting.transaction import Transaction
from mtlcore.teleporting.verdict import Accept, Judge, Rule, Verdict, stay, unseen

OPTIONS = {
    "tolerance": Allowed("number", low=0.0, open_low=True),
    "trials": Allowed("integer", low=1),
    "accept": Allowed("choice", options=("confirmed", "conflict", "progress", "losses", "always")),
    "horizon": Allowed("integer", low=1),
    "history": Allowed("choice", options=("carry", "reset", "keep")),
    "reuse_sign": Allowed("choice", options=(1, -1)),
    "reuse_direction": Allowed("choice", options=("mean", "previous")),
    "reuse_over": Allowed("choice", options=("moved", "shared")),
    "batch_norm": Allowed("choice", options=("running", "batch")),
}
"""What the options of a :class:`Teleporter` may be."""


class Teleporter:
    """Tries one strategy as a transaction. ``MultiTask(teleport=...)`` makes one; hand over your own for other options.

    Args:
        strategy: what proposes: a registered name, or an instance.
        name: its name, for the result. Default: the registered one.
        detector: whose severity measures conflict. Default: minus the worst cosine of a task with the mean gradient;
            inside a MultiTask that of its detector.
        tolerance: largest relative change of any task's loss on the probe batch. For a strategy that calls itself
            exact the bound is that of rounding (1e-9 in float64, 1e-3 in float32) if it is smaller.
        trials: how many points an approximate displacement is tried at: itself, then nearer and nearer to the start,
            by what the measured drift suggests. An exact one is tried as it is.
        accept: what is asked of a proposal. "conflict": that it keeps every loss and lowers the conflict; "confirmed":
            the same, and that the detector finds a conflict on the probe, too, so that noise of one batch is no reason
            to move [ours]; "progress": that it keeps every loss, and that ``horizon`` steps along the mean gradient
            promise more to the task that they serve worst (not for exact strategies, which change the optimizer's
            metric as well); "losses": that it keeps every loss; "always": finite losses only, as the authors' code asks
            nothing [code]. From an exact strategy the losses are asked for in any case. With ``probe=None`` the trigger
            batch stands for the probe.
        horizon: how many steps "progress" looks ahead. [choice]
        history: "carry" transports what an exact map explains and reuses the rest by similarity; "reset" forgets the
            parameters that moved (any optimizer); "keep" leaves the history alone.
        reuse_sign: sign of the pre-teleport gradient in historical trajectory reuse: +1 paper and code, -1 descent.
        reuse_direction: what that gradient is: the "mean" gradient of the trigger batch [choice], or the combined one
            of the "previous" step [code], in whose place the mean stands as long as no step has been taken.
        reuse_over: the parameters over which the cosine is taken: those that "moved" [choice], or all "shared" ones
            [code], of which those that stayed make it smaller.
        batch_norm: how batch norms work during search and conflict check: "running" statistics [code], or those of the
            "batch". Losses are checked in both ways when the trunk trains with batch statistics.

    Raises:
        ConfigurationError: an option that is not one.
        UnknownPluginError, PluginError: from looking up a name.
    """

    def __init__(
        self,
        strategy: str | TeleportStrategy,
        *,
        name: str | None = None,
        detector: ConflictDetector | None = None,
        tolerance: float = 0.02,
        trials: int = 5,
        accept: Accept = "conflict",
        horizon: int = 10,
        history: History = "carry",
        reuse_sign: Literal[1, -1] = 1,
        reuse_direction: Direction = "mean",
        reuse_over: Over = "moved",
        batch_norm: Literal["running", "batch"] = "running",
    ) -> None:
        given = locals()
        hyperparameters.check("Teleporter", OPTIONS, given)
        self.options = {name: given[name] for name in OPTIONS}
        self.strategy: TeleportStrategy = create("teleport", strategy) if isinstance(strategy, str) else strategy
        if not isinstance(self.strategy, TeleportStrategy):
            raise ConfigurationError(
                f"Teleporter: strategy must be a registered name or an mtlcore.TeleportStrategy, found {strategy!r}."
            )
        self.name = registry().name_of(self.strategy) if name is None else name
        self.detector = detector
        self.tolerance = tolerance
        self.trials = trials
        if accept == "progress" and self.strategy.exact:
            raise ConfigurationError(
                f"accept='progress' and {self.strategy!r}: an exact teleport changes the metric of the optimizer as "
                f"well, and what its steps promise is not known before: use accept='conflict'."
            )
        self.accept = accept
        self.horizon = horizon
        self.history = history
        self.batch_norm = batch_norm
        self.memory = Memory(history, reuse_sign, reuse_direction, reuse_over)
        self.followers: list[Follower] = []

    def attempt(
        self,
        *,
        trunk: nn.Module,
        heads: nn.Module | None,
        closure: Closure,
        probe: Closure | None,
        view: StepView,
        optimizer: trajectory.Optimizers,
        generator: torch.Generator,
        direction: Sequence[Tensor] | None = None,
        together: Together | None = None,
    ) -> TeleportResult:
        """Try to teleport. On accept the network has moved, the optimizer's history with it, and the averaged copies
        that :attr:`followers` knows; on refusal, and when an exception passes through, everything is bit for bit as
        before.

        Args:
            trunk: the shared network.
            heads: the task-specific networks, if known.
            closure: evaluates the trigger batch: ({task: loss with graph}, features).
            probe: the same for a held-out batch; None: the trigger batch judges itself.
            view: losses and Gramian at the trigger.
            optimizer: whose history follows: one, several, or None.
            generator: source of randomness; its state is not advanced.
            direction: combined gradient of the last ordinary step per trainable trunk parameter, for historical
                trajectory reuse. Default: what ``reuse_direction`` says.
            together: other processes, that make the same attempt with batches of their own: the means over all of them
                are searched on and judged by, and all go to the same point.

        Raises:
            TeleportError: the optimizer's history cannot be carried.
            PluginError: the strategy broke its contract.
        """
        started = time.perf_counter()
        if self.history == "carry":
            trajectory.check_supported(optimizer)
        own = torch.Generator().manual_seed(_next_seed(generator) ^ view.step)
        transaction = Transaction(trunk, heads, optimizer, frozen_statistics=self.batch_norm == "running")
        for follower in self.followers:
            transaction.keep(follower.parameters())
        with undo_on_error(transaction.roll_back):
            problem = Problem(transaction, closure, view, self.detector, together)
            judge = problem if probe is None else Problem(transaction, probe, view, self.detector, together)
            verdict = self._try(transaction, problem, judge, own, direction, together)
            if not verdict.accepted:
                transaction.roll_back()
            return TeleportResult(
                strategy=self.name,
                accepted=verdict.accepted,
                reason=verdict.reason,
                relative_loss_change=verdict.changes,
                held_out=probe is not None,
                conflict_before=verdict.before,
                conflict_after=verdict.after,
                seconds=time.perf_counter() - started,
                diagnostics=verdict.diagnostics,
            )

    def _try(
        self,
        transaction: Transaction,
        problem: Problem,
        judge: Problem,
        generator: torch.Generator,
        direction: Sequence[Tensor] | None,
        together: Together | None,
    ) -> Verdict:
        with transaction.frozen():
            absent = unseen(problem.view, judge) if self.accept != "always" or self.strategy.exact else []
            if absent:
                return stay(
                    f"task {absent[0]} is neither in this batch nor in the probe, so its loss cannot be checked: "
                    f"pass a probe that has every task"
                )
            proposal = self.strategy.propose(problem, generator)
            transaction.undo_search()
            proposal = checked(proposal, transaction, self.strategy)
            if together is not None:
                together.alike(_tensors(proposal), f"teleport {registry().identify(self.strategy)}")
            if not proposal.parameters and not proposal.head_parameters:
                reason = str(proposal.diagnostics.get("reason", "the strategy proposed no move"))
                return stay(reason, proposal.diagnostics)
            if direction is None:
                direction = self.memory.previous
            slope = self.memory.slope(problem, proposal, direction)
            verdict = Judge(transaction, problem, judge, self._rule()).verdict(proposal)
        if verdict.accepted:
            # Flags and hooks come back first: the history is blended by a hook on the optimizer, not on the network.
            transaction.undo_search()
            transaction.move(proposal, verdict.scale)
            verdict.diagnostics.update(self.memory.follow(transaction, proposal, verdict.scale, slope))
            for follower in self.followers:
                verdict.diagnostics.update(follower.carry(proposal))
            transaction.commit(proposal)
        return verdict

    def refused(self, reason: str, held_out: bool) -> TeleportResult:
        """No attempt, and why."""
        nan = math.nan
        return TeleportResult(self.name, False, reason, {}, held_out, nan, nan, 0.0, {})

    def _rule(self) -> Rule:
        accept = self.accept if self.strategy.improves or self.accept == "always" else "losses"
        return Rule(self.strategy.exact, accept, self.tolerance, self.trials, self.horizon)

    # --- checkpoints ------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What the next attempt depends on, apart from the network: empty, except for a remembered direction."""
        previous = self.memory.previous
        return {} if previous is None else {"direction": [g.clone() for g in previous]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        previous = state.get("direction")
        self.memory.previous = None if previous is None else [g.clone() for g in previous]


def _tensors(proposal: Displacement) -> dict[str, Tensor]:
    """All that a proposal would move, by name."""
    moved = {f"trunk {n}": t for n, t in proposal.parameters.items()}
    return moved | {f"heads {n}": t for n, t in proposal.head_parameters.items()}


def _next_seed(generator: torch.Generator) -> int:
    """What the generator would draw next, without advancing it."""
    copy = torch.Generator(device=generator.device)
    copy.set_state(generator.get_state())
    return int(torch.randint(2**62, (), generator=copy, device=generator.device))
