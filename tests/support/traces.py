"""All that a teleport may disturb, as values to compare."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn


def bits(tensor):
    return None if tensor is None else tensor.detach().clone()


def everything(made, optimizer) -> dict:
    """All that a teleport may disturb, as values to compare."""
    found: dict = {}
    for where, net in (("trunk", made.trunk), ("heads", made.heads)):
        for n, m in net.named_modules():
            hooks = [len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)]
            found[f"{where} {n} module"] = (
                id(m),
                type(m),
                m.training,
                hooks,
                sorted(m.__dict__),
                getattr(m, "dropout", None) if isinstance(m, nn.RNNBase) else None,
            )
        for n, p in net.named_parameters():
            found[f"{where} {n}"] = (id(p), bits(p), p.requires_grad, bits(p.grad))
        for n, b in net.named_buffers():
            found[f"{where} {n}"] = (id(b), bits(b))
    for i, p in enumerate(made.parameters()):
        for key, value in optimizer.state.get(p, {}).items():
            found[f"optimizer {i} {key}"] = bits(value) if isinstance(value, torch.Tensor) else value
    found["torch"] = torch.get_rng_state()
    found["python"] = random.getstate()
    found["numpy"] = tuple(np.random.get_state()[1])
    found["grad mode"] = torch.is_grad_enabled()
    found["fast path"] = torch.backends.mha.get_fastpath_enabled()
    return found


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def assert_unchanged(before: dict, after: dict) -> None:
    assert before.keys() == after.keys(), set(before) ^ set(after)
    changed = [k for k in before if not same(before[k], after[k])]
    assert not changed
