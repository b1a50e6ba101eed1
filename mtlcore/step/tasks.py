"""Tasks that come and go between two steps of a run. (:mod:`mtlcore.roster` has the rule for the method's state.)"""

from __future__ import annotations

from mtlcore import inputs, roster
from mtlcore.asking import aggregator as asking
from mtlcore.errors import ConfigurationError, did_you_mean
from mtlcore.step.run import Run


def add(run: Run, name: str) -> None:
    """One more task, the last in the order. ``MultiTask.add_task`` says what is raised."""
    tasks = _present(run)
    if name in tasks:
        raise ConfigurationError(f"there is a task {name!r} already. Tasks: {', '.join(map(str, tasks))}.")
    _change(run, inputs.task_names([*tasks, name]), [*range(len(tasks)), None])


def remove(run: Run, name: str) -> None:
    """One task less. ``MultiTask.remove_task`` says what is raised."""
    tasks = _present(run)
    if name not in tasks:
        raise ConfigurationError(f"there is no task {name!r} to remove. {did_you_mean(name, map(str, tasks), 'Tasks')}")
    if len(tasks) == 1:
        raise ConfigurationError(f"task {name!r} cannot be removed: it is the last one. Make a new MultiTask instead.")
    _change(run, tuple(n for n in tasks if n != name), [i for i, n in enumerate(tasks) if n != name])


def _present(run: Run) -> tuple[str, ...]:
    if run.pending or run.progress.awaiting:
        raise ConfigurationError("tasks come and go between two steps: finish this one with backward or observe.")
    if run.progress.tasks is None:
        raise ConfigurationError(
            "this run has no tasks yet, they are those of its first batch: declare MultiTask(..., tasks=[...])."
        )
    return run.progress.tasks


def _change(run: Run, names: tuple[str, ...], positions: roster.Positions) -> None:
    asking.start(run.aggregator, len(names))
    state, old = run.progress.state, len(run.progress.tasks or ())
    state = None if state is None else roster.moved(run.aggregator, state, positions, old)
    run.progress = run.progress._replace(tasks=names, state=state)
    run.watch_anew()
    if run.keeper is not None:
        run.keeper.restore({})  # weights for other tasks
