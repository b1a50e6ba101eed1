"""What the built-in plugins register. Strings only: nothing is imported until somebody asks for it."""

from __future__ import annotations

from mtlcore.hookspecs import Register, hookimpl

AGGREGATORS: dict[str, str] = {
    "aligned-mtl": "mtlplugins.aggregators.aligned_mtl:AlignedMTL",
    "auto-lambda": "mtlplugins.aggregators.auto_lambda:AutoLambda",
    "bilb4mtl": "mtlplugins.aggregators.bilb4mtl.single_loop:BiLB4MTL",
    "bilb4mtl-double-loop": "mtlplugins.aggregators.bilb4mtl.double_loop:BiLB4MTLDoubleLoop",
    "cagrad": "mtlplugins.aggregators.cagrad:CAGrad",
    "capped-mgda": "mtlplugins.aggregators.capped_mgda:CappedMGDA",
    "clipped": "mtlplugins.wrappers.clipped:Clipped",
    "config": "mtlplugins.aggregators.config:ConFIG",
    "conicgrad": "mtlplugins.aggregators.conicgrad:ConicGrad",
    "constant": "mtlplugins.aggregators.constant:Constant",
    "cosmos": "mtlplugins.aggregators.cosmos:COSMOS",
    "cr-mogm": "mtlplugins.wrappers.cr_mogm:CRMOGM",
    "db-mtl": "mtlplugins.aggregators.db_mtl:DBMTL",
    "dualproj": "mtlplugins.aggregators.dualproj:DualProj",
    "dwa": "mtlplugins.aggregators.dwa:DWA",
    "ema": "mtlplugins.wrappers.ema:EMA",
    "emtl": "mtlplugins.aggregators.emtl:EMTL",
    "excess-mtl": "mtlplugins.aggregators.excess_mtl:ExcessMTL",
    "fairgrad": "mtlplugins.aggregators.fairgrad:FairGrad",
    "famo": "mtlplugins.aggregators.famo:FAMO",
    "forum": "mtlplugins.aggregators.forum:FORUM",
    "gls": "mtlplugins.aggregators.gls:GLS",
    "go4align": "mtlplugins.aggregators.go4align:GO4Align",
    "graddrop": "mtlplugins.aggregators.graddrop:GradDrop",
    "gradnorm": "mtlplugins.aggregators.gradnorm:GradNorm",
    "gradops": "mtlplugins.aggregators.gradops:GradOPS",
    "gradvac": "mtlplugins.aggregators.gradvac:GradVac",
    "imgrad": "mtlplugins.aggregators.imgrad:IMGrad",
    "imtl": "mtlplugins.aggregators.imtl:IMTL",
    "imtl-g": "mtlplugins.aggregators.imtl_g:IMTLG",
    "imtl-l": "mtlplugins.aggregators.imtl_l:IMTLL",
    "krum": "mtlplugins.aggregators.krum:Krum",
    "layerwise": "mtlplugins.wrappers.layerwise:Layerwise",
    "ls": "mtlplugins.aggregators.ls:LS",
    "m-config": "mtlplugins.aggregators.m_config:MConFIG",
    "mgda": "mtlplugins.aggregators.mgda:MGDA",
    "moco": "mtlplugins.aggregators.moco:MoCo",
    "modo": "mtlplugins.aggregators.modo:MoDo",
    "moml": "mtlplugins.aggregators.moml:MOML",
    "nash-mtl": "mtlplugins.aggregators.nash_mtl:NashMTL",
    "pbi": "mtlplugins.aggregators.pbi:PBI",
    "pcd": "mtlplugins.aggregators.pcd:PCD",
    "pcgrad": "mtlplugins.aggregators.pcgrad:PCGrad",
    "pivrg": "mtlplugins.aggregators.pivrg:PIVRG",
    "random": "mtlplugins.aggregators.random_weights:RandomWeights",
    "rlw": "mtlplugins.aggregators.rlw:RLW",
    "row-normalised": "mtlplugins.wrappers.row_normalised:RowNormalised",
    "sdmgrad": "mtlplugins.aggregators.sdmgrad:SDMGrad",
    "si": "mtlplugins.aggregators.si:SI",
    "stch": "mtlplugins.aggregators.stch:STCH",
    "sum": "mtlplugins.aggregators.sum:Sum",
    "task-weighted": "mtlplugins.wrappers.task_weighted:TaskWeighted",
    "trimmed-mean": "mtlplugins.aggregators.trimmed_mean:TrimmedMean",
    "upgrad": "mtlplugins.aggregators.upgrad:UPGrad",
    "uw": "mtlplugins.aggregators.uw:UW",
    "wpcgrad": "mtlplugins.aggregators.wpcgrad:WPCGrad",
}
DETECTORS: dict[str, str] = {
    "cosine": "mtlplugins.detectors.cosine:Cosine",
    "dominated": "mtlplugins.detectors.dominated:Dominated",
    "imbalance": "mtlplugins.detectors.imbalance:Imbalance",
    "layer-conflict": "mtlplugins.detectors.layer_conflict:LayerConflict",
}
EXPLORERS: dict[str, str] = {
    "cosmos": "mtlplugins.explorers.cosmos:COSMOS",
    "epo": "mtlplugins.explorers.epo:EPO",
    "gradops-sweep": "mtlplugins.explorers.gradops_sweep:GradOPSSweep",
    "ls-sweep": "mtlplugins.explorers.ls_sweep:LSSweep",
    "pamal": "mtlplugins.explorers.pamal:PaMaL",
    "pareto-mtl": "mtlplugins.explorers.pareto_mtl:ParetoMTL",
    "phn": "mtlplugins.explorers.phn:PHN",
    "stch-sweep": "mtlplugins.explorers.stch_sweep:STCHSweep",
}
MERGERS: dict[str, str] = {
    "adamerging": "mtlplugins.mergers.adamerging:AdaMerging",
    "doge": "mtlplugins.mergers.doge:DOGE",
    "task-arithmetic": "mtlplugins.mergers.task_arithmetic:TaskArithmetic",
    "ties": "mtlplugins.mergers.ties:Ties",
    "weight-average": "mtlplugins.mergers.weight_average:WeightAverage",
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


@hookimpl
def mtlcore_register_explorers(register: Register) -> None:
    """Explorers of trade-offs."""
    for name, target in EXPLORERS.items():
        register(name, target)


@hookimpl
def mtlcore_register_mergers(register: Register) -> None:
    """Mergers of experts."""
    for name, target in MERGERS.items():
        register(name, target)
