"""What the built-in plugins register. Strings only: nothing is imported until somebody asks for it."""

from __future__ import annotations

from mtlcore.hookspecs import Register, hookimpl

AGGREGATORS: dict[str, str] = {
    "aligned-mtl": "mtlplugins.aggregators.aligned_mtl:AlignedMTL",
    "bilb4mtl": "mtlplugins.aggregators.bilb4mtl.single_loop:BiLB4MTL",
    "bilb4mtl-double-loop": "mtlplugins.aggregators.bilb4mtl.double_loop:BiLB4MTLDoubleLoop",
    "cagrad": "mtlplugins.aggregators.cagrad:CAGrad",
    "config": "mtlplugins.aggregators.config:ConFIG",
    "dualproj": "mtlplugins.aggregators.dualproj:DualProj",
    "dwa": "mtlplugins.aggregators.dwa:DWA",
    "fairgrad": "mtlplugins.aggregators.fairgrad:FairGrad",
    "famo": "mtlplugins.aggregators.famo:FAMO",
    "gls": "mtlplugins.aggregators.gls:GLS",
    "gradops": "mtlplugins.aggregators.gradops:GradOPS",
    "imtl-g": "mtlplugins.aggregators.imtl_g:IMTLG",
    "imtl-l": "mtlplugins.aggregators.imtl_l:IMTLL",
    "ls": "mtlplugins.aggregators.ls:LS",
    "m-config": "mtlplugins.aggregators.m_config:MConFIG",
    "mgda": "mtlplugins.aggregators.mgda:MGDA",
    "nash-mtl": "mtlplugins.aggregators.nash_mtl:NashMTL",
    "pcgrad": "mtlplugins.aggregators.pcgrad:PCGrad",
    "rlw": "mtlplugins.aggregators.rlw:RLW",
    "si": "mtlplugins.aggregators.si:SI",
    "stch": "mtlplugins.aggregators.stch:STCH",
    "sum": "mtlplugins.aggregators.sum:Sum",
    "upgrad": "mtlplugins.aggregators.upgrad:UPGrad",
    "uw": "mtlplugins.aggregators.uw:UW",
}
DETECTORS: dict[str, str] = {
    "cosine": "mtlplugins.detectors.cosine:Cosine",
    "dominated": "mtlplugins.detectors.dominated:Dominated",
    "imbalance": "mtlplugins.detectors.imbalance:Imbalance",
}
TELEPORTS: dict[str, str] = {
    "attention-qk": "mtlplugins.teleports.symmetry.attention_qk:AttentionQK",
    "linear-boundary": "mtlplugins.teleports.symmetry.linear_boundary:LinearBoundary",
    "lora": "mtlplugins.teleports.lora.strategy:LoRA",
    "random": "mtlplugins.teleports.symmetry.random_rescaling:RandomRescaling",
    "relu-rescaling": "mtlplugins.teleports.symmetry.relu_rescaling:ReluRescaling",
}


@hookimpl
def mtlcore_register_aggregators(register: Register) -> None:
    """Gradient aggregators and loss balancers."""
    for name, target in AGGREGATORS.items():
        register(name, target)


@hookimpl
def mtlcore_register_detectors(register: Register) -> None:
    """Conflict detectors."""
    for name, target in DETECTORS.items():
        register(name, target)


@hookimpl
def mtlcore_register_teleports(register: Register) -> None:
    """Teleport strategies."""
    for name, target in TELEPORTS.items():
        register(name, target)
