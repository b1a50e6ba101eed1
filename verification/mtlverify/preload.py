"""What the harness's processes import before they are forked; see :mod:`mtlverify.processes`."""

import contextlib

import torch

with contextlib.suppress(ImportError):  # the extra "verify"; without it a command says so
    pass

# The first optimizer of a process imports torch's compiler.
torch.optim.SGD([torch.zeros(1)])
