"""What the harness's processes import before they are forked; see :mod:`mtlverify.processes`."""

import contextlib
import importlib

import torch

from mtlverify.declared import declared_laws

# By name: an import that nobody uses would be taken for a mistake.
with contextlib.suppress(ImportError):  # the extra "verify"; without it a command says so
    importlib.import_module("hypothesis")
    for module in {target.partition(":")[0] for _, target in declared_laws("mtlverify.laws")}:
        importlib.import_module(module)

# The first optimizer of a process imports torch's compiler.
torch.optim.SGD([torch.zeros(1)])
