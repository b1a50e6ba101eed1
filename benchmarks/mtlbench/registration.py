"""What this wing registers. Strings only: nothing is imported until somebody asks for it."""

from __future__ import annotations

from mtlcore.hookspecs import Register, hookimpl

TASKS: dict[str, str] = {
    "multimnist": "mtlbench.tasks.multimnist:MultiMNIST",
}


@hookimpl
def mtlcore_register_tasks(register: Register) -> None:
    """Benchmark tasks."""
    for name, target in TASKS.items():
        register(name, target)


@hookimpl
def mtlcore_register_commands(register: Register) -> None:
    """`mtl bench`."""
    register("bench", "mtlbench.command:app")
