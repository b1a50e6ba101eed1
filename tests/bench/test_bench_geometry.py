"""QM9 as graphs: what a node is, what the network may and may not see, and whether it has units to rescale."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import mtlcore
from mtlbench.networks.egnn import EGNN
from mtlbench.tasks.qm9 import atoms
from mtlbench.tasks.qm9_geometry import FEATURES, HEAVY, _nodes

METHANOL = (
    "['C','O','H','H','H','H']",
    "[[-.05, .66, 0.],[-.05,-.76,0.],[-1.09,.98,0.],[.44,1.07,.89],[.44,1.07,-.89],[.88,-1.05,0.]]",
)


def _molecules() -> torch.Tensor:
    """Three, the last one the largest there is."""
    torch.manual_seed(0)
    out = torch.zeros(3, HEAVY, FEATURES + 3)
    for molecule, n in zip(out, (1, 4, HEAVY)):
        molecule[torch.arange(n), torch.randint(0, 4, (n,))] = 1.0
        molecule[:n, FEATURES - 1] = torch.randint(0, 4, (n,)).float()
        molecule[:n, FEATURES:] = 2 * torch.randn(n, 3)
    return out


def test_a_node_is_a_heavy_atom_with_the_hydrogens_that_are_nearest_to_it():
    nodes = _nodes(*atoms(*METHANOL))
    assert nodes.shape == (HEAVY, FEATURES + 3)
    assert nodes[0, :FEATURES].tolist() == [1, 0, 0, 0, 3]  # C with three
    assert nodes[1, :FEATURES].tolist() == [0, 0, 1, 0, 1]  # O with one
    assert not nodes[2:].any()
    np.testing.assert_allclose(nodes[:2, FEATURES:], [[0, 0.71, 0], [0, -0.71, 0]], atol=1e-12)


def test_a_molecule_may_be_turned_moved_and_its_atoms_renamed():
    molecules = _molecules().double()
    net = EGNN(FEATURES, HEAVY).double()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    moved = molecules.clone()
    moved[..., FEATURES:] = molecules[..., FEATURES:] @ turn + 3.0  # the places of atoms that are none move, too
    moved = moved[:, torch.randperm(HEAVY)]
    with torch.no_grad():
        torch.testing.assert_close(net(moved), net(molecules), rtol=1e-10, atol=1e-12)


def test_the_network_sees_elements_hydrogens_and_distances():
    molecules = _molecules()
    net = EGNN(FEATURES, HEAVY)
    for column in (0, FEATURES - 1, FEATURES):
        other = molecules.clone()
        other[1:, 1, column] += 1.0
        with torch.no_grad():
            assert not torch.allclose(net(other)[1:], net(molecules)[1:], rtol=1e-3)


def test_gradients_are_finite_where_distances_are_zero():
    net = EGNN(FEATURES, HEAVY)
    net(_molecules()).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())


def test_its_hidden_units_can_be_rescaled():
    """Unlike those of the published network, of which none is found that could be."""
    molecules = _molecules()
    net, heads = EGNN(FEATURES, HEAVY), nn.ModuleDict({"a": nn.Linear(32, 1), "b": nn.Linear(32, 1)})

    def losses():
        z = net(molecules)
        return {"a": heads["a"](z).square().mean(), "b": (heads["b"](z) - 3.0).square().mean()}, z

    def values():
        return torch.stack([loss.detach() for loss in losses()[0].values()])

    before, weights = values(), {n: p.detach().clone() for n, p in net.named_parameters()}
    stands_still = torch.optim.SGD([*net.parameters(), *heads.parameters()], lr=0.0)
    teleport = mtlcore.Teleporter("random", accept="losses")
    report = mtlcore.MultiTask(net, "ls", stands_still, heads=heads, teleport=teleport, probe=losses).step(losses)
    assert report.teleport is not None
    assert report.teleport.accepted
    torch.testing.assert_close(values(), before, rtol=1e-4, atol=0)
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, weights[name])}
    assert {f"layers.{i}.{part}.{j}.weight" for i in (0, 1) for part in ("message", "update") for j in (0, 2)} <= moved
