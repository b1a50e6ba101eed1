"""The units inside a transformer layer, whose forward torch.fx does not trace."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from mtlplugins.teleports.symmetry import operations as ops
from mtlplugins.teleports.symmetry.scaling import Group, Member


def feed_forward(layer: nn.TransformerEncoderLayer, path: str, unsafe: set[nn.Module]) -> list[Group]:
    """The units of linear1 -> ReLU -> dropout -> linear2, if all of these are safe."""
    parts = (layer.linear1, layer.activation, layer.dropout, layer.linear2)
    relu = layer.activation is F.relu or type(layer.activation) is nn.ReLU
    kinds = [type(part) for part in parts if part is not layer.activation]
    if not relu or {layer, *parts} & unsafe or kinds != [nn.Linear, nn.Dropout, nn.Linear]:
        return []
    members = [Member(f"{path}linear1.weight", ops.rows(layer.linear1.weight), True)]
    if layer.linear1.bias is not None:
        members.append(Member(f"{path}linear1.bias", ops.rows(layer.linear1.bias), True))
    members.append(Member(f"{path}linear2.weight", ops.indices(layer.linear2.weight).T.contiguous(), False))
    return [Group(f"{path}linear1", layer.linear1.out_features, tuple(members))]
