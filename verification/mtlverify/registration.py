"""What this wing registers. Strings only: nothing is imported until somebody asks for it."""

from __future__ import annotations

from typing import Any

from mtlcore.hookspecs import Register, hookimpl

LAWS: dict[str, str] = {
    # every aggregator must obey these
    "finite": "mtlverify.laws.universal:finite",
    "pure": "mtlverify.laws.universal:pure",
    "deterministic": "mtlverify.laws.universal:deterministic",
    "shape-dtype-device": "mtlverify.laws.universal:shape_dtype_device",
    # an aggregator may claim these
    "non-conflicting": "mtlverify.laws.conflict:non_conflicting",
    "descent-lower-bound": "mtlverify.laws.conflict:descent_lower_bound",
    "no-worse-than-mean": "mtlverify.laws.conflict:no_worse_than_mean",
    "no-conflict-identity": "mtlverify.laws.conflict:no_conflict_identity",
    "equal-projections": "mtlverify.laws.conflict:equal_projections",
    "conic-combination": "mtlverify.laws.weights:conic_combination",
    "simplex-weights": "mtlverify.laws.weights:simplex_weights",
    "permutation-equivariant": "mtlverify.laws.symmetry:permutation_equivariant",
    "parameter-rotation": "mtlverify.laws.symmetry:parameter_rotation",
    "equivariant-in-distribution": "mtlverify.laws.distribution:equivariant_in_distribution",
    "duplicate-task": "mtlverify.laws.symmetry:duplicate_task",
    "absent-task": "mtlverify.laws.tasks:absent_task",
    "positively-homogeneous": "mtlverify.laws.scaling:positively_homogeneous",
    "scale-free": "mtlverify.laws.scaling:scale_free",
    "linear-under-scaling": "mtlverify.laws.scaling:linear_under_scaling",
    "loss-unit-invariant": "mtlverify.laws.scaling:loss_unit_invariant",
    "pareto-stationary-zero": "mtlverify.laws.stationarity:pareto_stationary_zero",
    "strongly-stationary-zero": "mtlverify.laws.stationarity:strongly_stationary_zero",
    "zero-only-if-stationary": "mtlverify.laws.stationarity:zero_only_if_stationary",
    "resume-equivalent": "mtlverify.laws.state:resume_equivalent",
    "one-backward-pass": "mtlverify.laws.loss_level:one_backward_pass",
    "coefficient-identity": "mtlverify.laws.loss_level:coefficient_identity",
    "matches-reference": "mtlverify.laws.reference:matches_reference",
    # every detector must obey these
    "detector.finite": "mtlverify.laws.detectors:finite",
    "detector.pure": "mtlverify.laws.detectors:pure",
    "detector.deterministic": "mtlverify.laws.detectors:deterministic",
    "detector.shape-dtype-device": "mtlverify.laws.detectors:shape_dtype_device",
    # a detector may claim these
    "detector.matches-reference": "mtlverify.laws.detectors:matches_reference",
    "detector.scale-free": "mtlverify.laws.detectors:scale_free",
    "detector.permutation-equivariant": "mtlverify.laws.detectors:permutation_equivariant",
    "detector.symmetric": "mtlverify.laws.detectors:symmetric",
    "detector.silent-on-aligned": "mtlverify.laws.detectors:silent_on_aligned",
    # every teleport must obey these
    "teleport.finite": "mtlverify.laws.teleports:finite",
    "teleport.pure": "mtlverify.laws.teleports:pure",
    "teleport.deterministic": "mtlverify.laws.teleports:deterministic",
    "teleport.shape-dtype-device": "mtlverify.laws.teleports:shape_dtype_device",
    "teleport.rollback-exact": "mtlverify.laws.teleports:rollback_exact",
    # a teleport may claim these, the last four if it is exact
    "teleport.lowers-conflict": "mtlverify.laws.teleports:lowers_conflict",
    "teleport.zero-steps-stay": "mtlverify.laws.teleports:zero_steps_stay",
    "teleport.gamma-zero-keeps-losses": "mtlverify.laws.teleports:gamma_zero_keeps_losses",
    "teleport.gradients-in-new-coordinates": "mtlverify.laws.teleports:gradients_in_new_coordinates",
    "teleport.history-in-new-coordinates": "mtlverify.laws.teleports:history_in_new_coordinates",
    "teleport.loss-invariant": "mtlverify.laws.teleports:loss_invariant",
    "teleport.maps-tell-the-truth": "mtlverify.laws.teleports:maps_tell_the_truth",
}
PROBLEMS: dict[str, str] = {
    "cagrad-toy": "mtlverify.problems.cagrad_toy:CAGradToy",
    "curved-quadratics": "mtlverify.problems.curved_quadratics:CurvedQuadratics",
    "deep-linear": "mtlverify.problems.deep_linear:DeepLinear",
    "matrix-factorisation": "mtlverify.problems.matrix_factorisation:MatrixFactorisation",
    "pareto-mtl-toy": "mtlverify.problems.pareto_mtl_toy:ParetoMTLToy",
    "pl-nonconvex": "mtlverify.problems.pl_nonconvex:PLNonconvex",
    "quadratics": "mtlverify.problems.quadratics:Quadratics",
}


@hookimpl
def mtlcore_register_laws(register: Register) -> None:
    """The laws of this wing; any plugin may add its own."""
    for name, target in LAWS.items():
        register(name, target)


@hookimpl
def mtlcore_register_problems(register: Register) -> None:
    """Synthetic problems with a declared Pareto set."""
    for name, target in PROBLEMS.items():
        register(name, target)


@hookimpl
def mtlcore_register_commands(register: Register) -> None:
    """``mtl verify``."""
    register("verify", "mtlverify.command:app")


@hookimpl
def mtlcore_certify(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The certificate of one plugin, made now or taken from the cache."""
    from mtlverify.certificates import certify

    return certify(kind, name, options)


@hookimpl
def mtlcore_certified(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The certificate of one plugin if there is a valid one in the cache."""
    from mtlverify.certificates import lookup

    return lookup(kind, name, options)
