"""What this wing registers. Strings only: nothing is imported until somebody asks for it."""

from __future__ import annotations

from mtlcore.hookspecs import Register, hookimpl

TASKS: dict[str, str] = {
    "adult": "mtlbench.tasks.adult:Adult",
    "celeba": "mtlbench.tasks.celeba:CelebA",
    "chem-props": "mtlbench.tasks.chem_props:ChemProps",
    "cityscapes": "mtlbench.tasks.scenes:Cityscapes",
    "digits-domains": "mtlbench.tasks.digits_domains:DigitsDomains",
    "fashion-scenes": "mtlbench.tasks.fashion_scenes:FashionScenes",
    "grid-digits": "mtlbench.tasks.grid_fashion:GridDigits",
    "grid-fashion": "mtlbench.tasks.grid_fashion:GridFashion",
    "gridworlds": "mtlbench.tasks.gridworlds:Gridworlds",
    "heat-pinn": "mtlbench.tasks.heat_pinn:HeatPinn",
    "instructions": "mtlbench.tasks.instructions:Instructions",
    "movielens": "mtlbench.tasks.movielens:MovieLens",
    "multifashion": "mtlbench.tasks.multimnist:MultiFashion",
    "multifashion-mnist": "mtlbench.tasks.multimnist:MultiFashionMNIST",
    "multimnist": "mtlbench.tasks.multimnist:MultiMNIST",
    "nyuv2": "mtlbench.tasks.scenes:NYUv2",
    "office": "mtlbench.tasks.office:Office",
    "qm9": "mtlbench.tasks.qm9:QM9",
    "qm9-geometry": "mtlbench.tasks.qm9_geometry:QM9Geometry",
    "qm9-graphs": "mtlbench.tasks.qm9_graphs:QM9Graphs",
    "rf1": "mtlbench.tasks.rf1:RiverFlow",
    "school": "mtlbench.tasks.school:School",
    "withheld-digits": "mtlbench.tasks.withheld:WithheldDigits",
}


@hookimpl
def mtlcore_register_tasks(register: Register) -> None:
    """Benchmark tasks."""
    for name, target in TASKS.items():
        register(name, target)


@hookimpl
def mtlcore_register_commands(register: Register) -> None:
    """`mtl bench` and `mtl speed`."""
    register("bench", "mtlbench.command:app")
    register("speed", "mtlbench.speed.command:app")
