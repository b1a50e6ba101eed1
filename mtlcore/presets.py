"""Whole systems by one name, with the settings that were measured, or with those that were published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mtlcore import hyperparameters
from mtlcore.contracts import Needs
from mtlcore.errors import ConfigurationError
from mtlcore.hyperparameters import Allowed
from mtlcore.registry import create
from mtlcore.teleporting import Brakes, Teleporter

if TYPE_CHECKING:
    from mtlcore.contracts import Aggregator, TeleportStrategy
    from mtlcore.multitask import MultiTask

PAPER_TELEPORT: dict[str, Any] = {
    "search": "penalty",  # [paper Eq. 11] minimise L_t - gamma L_g over the adapter
    "objective": "sharpness",  # [paper Eq. 8-10]
    "estimator": "sphere",  # [paper Eq. 9] random perturbations
    "relative": False,  # [paper Eq. 7] absolute loss differences
    "rank": 5,  # [paper]
    "gamma": 0.1,  # [paper]; the authors' code has 0.05 in the same units
    "samples": 5,  # [code]; n is not readable in the paper
    "delta": 1e-4,  # [code]; nor is delta
    "per_tensor": True,  # [code]
    "alpha": 8,  # [code]
    "adapter": "peft-lora",  # [paper] Hugging Face PEFT
    "lr": 1e-4,  # [code] that of the training (Cityscapes, NYUv2)
    "steps": 12,  # [choice]; the code makes two passes over the training set, some hundred times as many
    "perturb": "all",  # [code] the heads' parameters, too; "trunk" if nobody handed over heads
}
"""COST's LoRA as published. What could not be read in the paper is from the authors' code, and marked."""

PAPER_HISTORY: dict[str, Any] = {
    "reuse_direction": "previous",  # [code] g' is the combined direction of the step before
    "reuse_over": "shared",  # [code] the cosine is taken over all shared parameters
}
"""Historical trajectory reuse as the authors' code has it."""

PAPER_AGGREGATORS: dict[str, dict[str, Any]] = {
    "fairgrad": {"alpha": 2.0, "outer_scale": "n-tasks", "max_norm": 1.0},
    "cagrad": {"rescale": "1+c^2", "outer_scale": "n-tasks", "max_norm": 1.0},
    "nash-mtl": {"max_norm": 1.0},
}
"""Options of methods, given by name, as in the trainers on which the authors' code is built [code]: FairGrad's default
and scripts, the trunk's direction times K "to match the sum of the losses", then clipped to 1; heads are left alone."""


COOLDOWN = 20
"""Steps between two attempts, without the paper's settings: as often as in the study of
docs/explanation/cost-measured.md. Many rescalings in a row make some weights ever larger, with which SGD diverges.
[choice]"""

_EPOCHS = {
    "start_epoch": Allowed("integer", low=0),
    "steps_per_epoch": Allowed("integer", low=1, optional=True),
}


def cost(
    trunk: nn.Module | Iterable[nn.Parameter],
    aggregator: str | Aggregator = "fairgrad",
    optimizer: torch.optim.Optimizer | None = None,
    *,
    settings: Literal["measured", "paper"] = "measured",
    accept: Literal["confirmed", "conflict", "progress", "losses", "always"] | None = None,
    steps_per_epoch: int | None = None,
    start_epoch: int = 0,
    detect_every: int | None = None,
    teleport_options: Mapping[str, Any] | None = None,
    detector_options: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> MultiTask:
    """COST: a detector, teleports and the optimizer's history across them, around any aggregator.

    The defaults follow what was measured (docs/explanation/cost.md): they teleport along the exact symmetry of
    ReLU-like units (``relu-rescaling``) where a conflict is confirmed on the probe. This pays where the conflict is one
    of coordinates alone and the learning rate is low. No task with real data is known on which it does, and a training
    takes 10 to 30 % more time. A trunk without such units is left where it is, and the report says so. The paper's
    low-rank jump is one option away: ``teleport="lora"``, or anything in ``teleport_options``.

    Args:
        trunk: the shared network.
        aggregator: the method inside; the paper's is FairGrad.
        optimizer: the user's own; needed by ``step``.
        settings: "paper": the published teleport (:data:`PAPER_TELEPORT`) on the published trigger (Eq. 3; a cosine of
            zero counts [code]), :data:`PAPER_HISTORY`, and :data:`PAPER_AGGREGATORS`: FairGrad with alpha = 2, its
            direction times K and clipped to 1 [code].
            "measured": same trigger, and the teleport that our measurements support (above). Both run inside the same
            transaction, which the paper does not have.
        accept: what is asked of a teleport. "conflict": a loss that moves by more than ``tolerance``, or no less
            conflict, and it is refused. "confirmed": the same, and there must be a conflict on the probe in the first
            place: what one batch shows is often its noise. "progress": as "conflict", with a better outlook for the
            task that the next steps serve worst, instead of less conflict (:class:`mtlcore.Teleporter`),
            which is then what the ``lora`` teleport searches for. "losses": the losses only. "always": nothing but
            finite losses, as in the authors' code: the last step from ``settings="paper"`` to the system as it was
            run. Default: "confirmed"; with the paper's settings "conflict".
        steps_per_epoch: with it, at most one attempt per epoch [code], else no cap. In any case 20 steps lie between
            two attempts [choice: as in the study that was measured], except with the paper's settings.
        start_epoch: no teleport before this epoch [paper A.6; code: 50 of 200].
        detect_every: look for conflict in every n-th step. Default: in every step if the method needs task gradients
            anyway, else in every tenth, as looking costs a loss-level method K backward passes. [choice]
        teleport_options: fields of the ``lora`` teleport that differ from its defaults, or from the paper's settings;
            with some, ``lora`` is the teleport.
        detector_options: fields of the ``dominated`` detector that differ; for many tasks (CelebA's 40) use
            ``{"rule": "fraction"}`` [choice; the paper's Eq. 4 was not readable].
        **overrides: any other argument of :class:`mtlcore.MultiTask` (``probe``, ``heads``, ``tolerance``, ``seed``);
            ``detector``, ``teleport`` and ``brakes`` replace what is described here.

    Raises:
        ConfigurationError: unknown settings or ``accept``, epochs without ``steps_per_epoch``, or an argument that an
            override leaves without effect.
    """
    from mtlcore.multitask import MultiTask

    if settings not in ("measured", "paper"):
        raise ConfigurationError(f"settings={settings!r}: must be one of 'measured', 'paper'.")
    hyperparameters.check("cost", _EPOCHS, {"start_epoch": start_epoch, "steps_per_epoch": steps_per_epoch})
    if start_epoch and steps_per_epoch is None:
        raise ConfigurationError(f"start_epoch={start_epoch}: how long is an epoch? Pass steps_per_epoch=...")
    _refuse_unread(overrides, teleport_options, detector_options, accept, steps_per_epoch, start_epoch, detect_every)
    paper = settings == "paper"
    if accept is None:
        accept = "conflict" if paper else "confirmed"
    if "detector" not in overrides:
        rule = {"rule": "smallest", "at_zero": paper, **(detector_options or {})}
        overrides["detector"] = create("detector", "dominated", **rule)
    if "teleport" not in overrides:
        overrides["teleport"] = _strategy(paper, accept, overrides.get("heads") is not None, teleport_options)
    if overrides["teleport"] is not None and not isinstance(overrides["teleport"], Teleporter):
        history = PAPER_HISTORY if paper else {}
        tolerance = overrides.pop("tolerance", 0.02)
        overrides["teleport"] = Teleporter(overrides["teleport"], accept=accept, tolerance=tolerance, **history)
    if isinstance(aggregator, str):
        aggregator = create("aggregator", aggregator, **(PAPER_AGGREGATORS.get(aggregator, {}) if paper else {}))
    if "brakes" not in overrides:
        cooldown = 0 if paper else COOLDOWN
        overrides["brakes"] = _brakes(aggregator, steps_per_epoch, start_epoch, detect_every, cooldown)
    return MultiTask(trunk, aggregator, optimizer, **overrides)


def _strategy(paper: bool, accept: str, heads: bool, options: Mapping[str, Any] | None) -> TeleportStrategy:
    """The teleport of the settings."""
    found: TeleportStrategy
    if not (paper or options or accept == "progress"):
        found = create("teleport", "relu-rescaling")
        return found
    first = dict(PAPER_TELEPORT) if paper else {"objective": "progress"} if accept == "progress" else {}
    if not heads:
        first.pop("perturb", None)
    found = create("teleport", "lora", **{**first, **(options or {})})
    return found


def _refuse_unread(
    overrides: Mapping[str, Any],
    teleport_options: Mapping[str, Any] | None,
    detector_options: Mapping[str, Any] | None,
    accept: str | None,
    steps_per_epoch: int | None,
    start_epoch: int,
    detect_every: int | None,
) -> None:
    """Raises ConfigurationError for an argument that an override leaves without effect."""
    ready = isinstance(overrides.get("teleport"), Teleporter)
    unread: dict[str, dict[str, Any]] = {
        "teleport": {
            "teleport_options": teleport_options,
            "accept": accept if ready else None,
        },
        "detector": {"detector_options": detector_options},
        "brakes": {"steps_per_epoch": steps_per_epoch, "start_epoch": start_epoch, "detect_every": detect_every},
    }
    for override, arguments in unread.items():
        given = [name for name, value in arguments.items() if value]
        if override in overrides and given:
            raise ConfigurationError(
                f"{override}=... replaces what {', '.join(given)} would set: leave one of them out, or give the "
                f"options to the {override} that you hand over."
            )
    for name, options in (("teleport_options", teleport_options), ("detector_options", detector_options)):
        if options is not None and not isinstance(options, Mapping):
            raise ConfigurationError(f"{name} must be a dict of options, found {options!r}.")


def _brakes(
    aggregator: Any, steps_per_epoch: int | None, start_epoch: int, detect_every: int | None, cooldown: int
) -> Brakes:
    if detect_every is None:
        detect_every = 10 if getattr(aggregator, "needs", Needs.GRAMIAN) < Needs.GRAMIAN else 1
    return Brakes(
        start_step=start_epoch * (steps_per_epoch or 1),
        cap=None if steps_per_epoch is None else 1,
        steps_per_epoch=steps_per_epoch,
        cooldown=cooldown,
        detect_every=detect_every,
    )
