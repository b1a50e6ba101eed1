"""The second look of a method that looks twice (FAMO): the losses of the same batch where the optimizer arrived."""

from __future__ import annotations

from mtlcore import inputs
from mtlcore.asking import aggregator as asking
from mtlcore.asking.seeds import step_seed
from mtlcore.contracts import Needs, StepView
from mtlcore.errors import ConfigurationError, LossError, listed
from mtlcore.inputs import Closure, Losses
from mtlcore.presence import Presence
from mtlcore.snapshot import Noise, Snapshot
from mtlcore.step.run import Run


def check_taken(run: Run) -> None:
    """
    Raises:
        ConfigurationError: the step before still waits for its second look.
    """
    if run.progress.awaiting:
        raise ConfigurationError(
            f"aggregator {run.who} looks at the losses twice in a step: after the optimizer's step, call "
            f"observe(losses) with the losses of the same batch, or use step(closure)."
        )


def take(run: Run, losses: Losses) -> None:
    """Show the method these losses; its new state is the run's from here on.

    Raises:
        NonFiniteError: a loss is NaN or infinite; the method's state is as before.
        LossError: these are other tasks than those of the step, or as in a step.
        PluginError: as in a step.
    """
    progress = run.progress
    assert progress.state is not None

    def look() -> tuple[Presence, list[float]]:
        presence, scalars = inputs.present_losses(losses, progress.tasks, graph=False)
        return presence, inputs.finite(inputs.numbers(scalars), presence.present, when="after the step ")

    presence, values = run.processes.looked(look) if run.processes.several() else look()
    if progress.awaited and set(presence.present) != set(progress.awaited):
        raise LossError(
            f"a second look takes the losses of the step's own batch: the step had {listed(progress.awaited)}, and "
            f"here {'is' if len(presence.present) == 1 else 'are'} {listed(presence.present)}. Evaluate the same batch "
            f"with the same tasks; the method's state is as before."
        )
    view = StepView(
        losses=presence.spread_numbers(values),
        present=presence,
        step=progress.step - 1,
        generator=step_seed(progress.seed, progress.step - 1),
        needs=Needs.LOSSES,
    )
    state = asking.observe(run.aggregator, view, progress.state)
    run.progress = progress._replace(state=state, awaiting=False, awaited=())


def take_again(run: Run, closure: Closure, noise: Noise) -> None:
    """Evaluate the batch under the noise of its first evaluation; no trace is left but the method's state."""
    with Snapshot(modules=run.modules()).restored():
        noise.restore()
        losses, _ = inputs.evaluated(closure)
        take(run, losses)
