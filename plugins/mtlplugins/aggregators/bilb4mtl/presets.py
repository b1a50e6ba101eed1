"""The published settings, one row per data set [code]; see docs/explanation/bilb4mtl.md.

The learning rate is that of the router; in the published code model and router are in one Adam with this rate.
Schedules, epochs and batch sizes belong to the training loop and are not part of a preset.
"""

from __future__ import annotations

from typing import Any

# The published behaviour: coefficients may turn negative, and the router's input is part of the graph.
_PUBLISHED: dict[str, Any] = {"pareto_safe": False, "discrepancy": "adjacent"}
_DENSE: dict[str, Any] = {
    **_PUBLISHED, "router": "linear", "squash": "softmax", "clamp_low": 0.2, "clamp_high": 0.8,
    "detach_features": False,
}  # fmt: skip
_FREE: dict[str, Any] = {**_PUBLISHED, "router": "free", "tau": "sigma", "divide_by": "detached-sum", "router_lr": 1e-3}

PRESETS: dict[str, dict[str, Any]] = {
    "cityscapes": {
        **_DENSE, "normalisation": "identical", "tau": "one", "divide_by": "one", "lamb": 0.1, "router_lr": 3e-4,
    },
    "nyuv2": {
        **_DENSE, "normalisation": "rescaled", "tau": "sigma", "divide_by": "sum", "lamb": 0.05, "router_lr": 8e-5,
    },
    "celeba": {
        **_FREE, "normalisation": "identical", "squash": "sigmoid", "init_low": 1.0, "init_high": 1.0, "lamb": 0.01,
    },
    # One epoch: 110 000 molecules in batches of 120.
    "qm9": {
        **_FREE, "normalisation": "log", "log_reference_every": 917, "squash": "relu-sigmoid",
        "init_low": 0.2, "init_high": 1.0, "lamb": 0.05,
    },
}  # fmt: skip
