"""QM9 in torch_geometric's layout, on tiny files made here; and the published network, for padded molecules."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mtlcore
from mtlbench import protocol, protocols
from mtlbench.data import molecules
from mtlbench.data.sources import DataError
from mtlbench.networks.mpnn import MPNN
from mtlbench.protocol import plan
from mtlbench.runner import merged_budget
from mtlbench.suite import MethodEntry
from mtlbench.tasks import qm9_graphs
from mtlbench.tasks.base import Network

HEAD = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom,u298_atom,h298_atom,g298_atom"
METHANE = """gdb_1
     RDKit          3D

  5  4  0  0  0  0  0  0  0  0999 V2000
   -0.0127    1.0858    0.0080 C   0  0  0  0
    0.0022   -0.0060    0.0020 H   0  0  0  0
    1.0117    1.4638    0.0003 H   0  0  0  0
   -0.5408    1.4475   -0.8766 H   0  0  0  0
   -0.5238    1.4379    0.9064 H   0  0  0  0
  1  2  1  0
  1  3  1  0
  1  4  1  0
  1  5  1  0
M  END
$$$$
"""


def _block(number, generator):
    """A chain of heavy atoms with hydrogens at both ends, as RDKit writes it."""
    heavy = ["CNOF"[int(generator.integers(4))] for _ in range(int(generator.integers(1, 5)))]
    atoms = ["H", *heavy, "H"]
    rows = [f"{x:10.4f}{y:10.4f}{z:10.4f} {a:<3} 0  0" for a, (x, y, z) in zip(atoms, generator.normal(size=(9, 3)))]
    bonds = [f"{i:3d}{i + 1:3d}{int(generator.integers(1, 4)):3d}  0" for i in range(1, len(atoms))]
    counts = f"{len(atoms):3d}{len(bonds):3d}  0  0  0  0  0  0  0  0999 V2000"
    return "\n".join([f"gdb_{number}", "     RDKit          3D", "", counts, *rows, *bonds, "M  END", "$$$$", ""])


@pytest.fixture
def root(tmp_path):
    """Thirty molecules, of which the third and the thirtieth are left out."""
    generator = np.random.default_rng(0)
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "gdb9.sdf").write_text(METHANE + "".join(_block(i, generator) for i in range(2, 31)))
    rows = [",".join([f"gdb_{i}", *(f"{v:.4f}" for v in generator.normal(size=19))]) for i in range(1, 31)]
    (raw / "gdb9.sdf.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    words = [f"line {i}" for i in range(1, 10)]  # nine lines before the list, one after it
    listed = ["    3  [H]C  C", "   30  N  N"]
    (raw / "uncharacterized.txt").write_text("\n".join([*words, *listed, "2 compounds"]) + "\n")
    qm9_graphs._load.cache_clear()
    return tmp_path


def test_the_files_are_read_as_they_lie_there(root, monkeypatch):
    task = mtlcore.create("task", "qm9-graphs", root=str(root))
    splits = task.load()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [24, 2, 2]
    assert len({*splits.train.sources, *splits.validation.sources, *splits.test.sources}) == 28
    table = np.array([r.split(",")[1:] for r in (root / "raw" / "gdb9.sdf.csv").read_text().split("\n")[1:-1]], float)
    kept = np.delete(table, [2, 29], axis=0)
    train = kept[splits.train.sources]
    _, targets = splits.train.batch(torch.tensor([5]))
    for name, column, factor in (("mu", 3, 1.0), ("homo", 5, 27211.386246), ("u0", 15, 43.36414), ("cv", 14, 1.0)):
        assert task.scale(name) == pytest.approx(factor * train[:, column].std())
        mine = (train[5, column] - train[:, column].mean()) / train[:, column].std()
        assert float(targets[name]) == pytest.approx(mine, rel=1e-4)
    monkeypatch.setenv("MTLCORE_DATA", str(root.parent))
    root.rename(root.parent / "qm9-graphs")
    assert len(mtlcore.create("task", "qm9-graphs").load().train) == 24


def test_methane_is_a_carbon_with_four_hydrogens(root):
    molecule = next(molecules.read_sdf(root / "raw" / "gdb9.sdf"))
    packed = molecule.packed()
    features, place, bonds = packed.split([7, 3, 29], dim=1)
    assert features[0].tolist() == [0, 1, 0, 0, 0, 6, 4]
    assert features[1].tolist() == [1, 0, 0, 0, 0, 1, 0]
    assert not packed[5:].any()
    assert place[2].tolist() == pytest.approx([1.0117, 1.4638, 0.0003])
    assert torch.equal(bonds, bonds.T)
    assert bonds[0, 1:5].tolist() == [1, 1, 1, 1]
    assert int(bonds.sum()) == 8


# --- the network ------------------------------------------------------------------------------------------------------


def _by_hand(net, packed):
    """The published network on one molecule, pair by pair, with the matrix of every pair made (NNConv)."""
    x = packed[packed[:, :5].any(1)]
    n, dim = len(x), net.enter.out_features
    out = state = F.relu(net.enter(x[:, :7]))
    for _ in range(3):
        heard = []
        for i in range(n):
            messages = []
            for j in range(n):
                if i == j:
                    continue
                kind = F.one_hot(x[i, 10 + j].long(), 5)[1:]
                edge = torch.cat([kind.float(), (x[i, 7:10] - x[j, 7:10]).norm()[None]])
                matrix = net.messages.second(F.relu(net.messages.first(edge))).view(dim, dim)
                messages.append(out[j] @ matrix)
            mean = torch.stack(messages).mean(0) if messages else torch.zeros(dim)
            heard.append(F.relu(mean + net.messages.root(out[i])))
        out = state = net.memory(torch.stack(heard), state)
    q = cell = torch.zeros(1, dim)
    both = torch.zeros(1, 2 * dim)
    for _ in range(3):
        q, cell = net.reader(both, (q, cell))
        share = (out @ q[0]).softmax(0)
        both = torch.cat([q, (share[:, None] * out).sum(0, keepdim=True)], dim=1)
    return F.relu(net.leave(both))[0]


def test_the_network_is_the_published_one_whatever_else_is_in_the_batch(root):
    torch.manual_seed(0)
    net = MPNN(7, dim=6, hidden=9)
    packed = torch.stack([m.packed() for m in list(molecules.read_sdf(root / "raw" / "gdb9.sdf"))[:6]])
    with torch.no_grad():
        together = net(packed)
        for molecule, found in zip(packed, together):
            torch.testing.assert_close(found, _by_hand(net, molecule), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found, net(molecule[None])[0], rtol=1e-4, atol=1e-6)


def test_the_order_of_the_atoms_and_where_the_molecule_lies_do_not_matter(root):
    torch.manual_seed(0)
    net = MPNN(7, dim=6, hidden=9)
    packed = next(molecules.read_sdf(root / "raw" / "gdb9.sdf")).packed()
    order = torch.cat([torch.tensor([3, 0, 4, 1, 2]), torch.arange(5, 29)])
    moved = packed[order]
    moved[:, 10:] = moved[:, 10:][:, order]
    moved[:5, 7:10] += torch.tensor([3.0, -1.0, 2.0])
    with torch.no_grad():
        torch.testing.assert_close(net(moved[None]), net(packed[None]), rtol=1e-4, atol=1e-6)


def test_the_network_has_the_published_size():
    """The layers of the code for 11 features: enter, network of pairs, root with bias, GRU, LSTM, leave."""
    layers = [11 * 64 + 64, 5 * 128 + 128, 128 * 4096 + 4096, 64 * 64 + 64, 3 * 64 * 128 + 6 * 64]
    layers += [4 * 64 * 192 + 8 * 64, 128 * 64 + 64]
    assert sum(p.numel() for p in MPNN(11, 64, 128).parameters()) == sum(layers) == 616_960
    assert mtlcore.create("task", "qm9-graphs").trunk().messages.second.out_features == 4096


@pytest.mark.parametrize("line", ["nash-mtl", "ldc-mtl", "libmtl"])
def test_every_task_that_a_protocol_names_exists_and_takes_its_budget(line):
    for name in protocols.PROTOCOLS[line].budgets:
        budget = merged_budget(mtlcore.create("task", name).budget, protocols.budget_for(line, name))
        assert budget.epochs is not None
    molecules_budget = protocols.budget_for(line, "qm9-graphs")
    assert molecules_budget.batch_size == (128 if line == "libmtl" else 120)


def test_it_trains_by_the_protocol_of_the_line(root, monkeypatch):
    monkeypatch.setattr(plan, "PROBES", 1)
    task = mtlcore.create("task", "qm9-graphs", root=str(root), dim=4)
    budget = merged_budget(task.budget, protocols.budget_for("nash-mtl", "qm9-graphs"))
    budget = dataclasses.replace(budget, epochs=2, batch_size=8, evaluations=2)
    found = protocol.train("qm9-graphs", task, MethodEntry(name="nash-mtl"), 0, budget, {})
    assert set(found.metrics) == {m.key for m in task.metrics}
    assert all(np.isfinite(v) for v in found.metrics.values())
    assert set(Network(task)(task.load().test.batch(torch.arange(2))[0])[0]) == set(task.tasks)


# --- what is wrong is named -------------------------------------------------------------------------------------------

WRONG = {
    "an element": ("gdb9.sdf", lambda t: t.replace(" C   0", " Xe  0", 1), r"gdb9\.sdf, line 5: this is not a mol"),
    "too large": ("gdb9.sdf", lambda t: t.replace("  5  4  0", " 30  4  0", 1), r"line 4: .*30 atoms"),
    "a bond to nobody": ("gdb9.sdf", lambda t: t.replace("  1  2  1", "  1  9  1", 1), r"line 10: .*atoms 1 and 9"),
    "no number": ("gdb9.sdf", lambda t: t.replace("-0.0127", "  here ", 1), r"line 5: .*could not convert"),
    "not finite": ("gdb9.sdf", lambda t: t.replace("-0.0127", "    nan", 1), r"begins in line 1 has a place"),
    "torn": ("gdb9.sdf", lambda t: t[: -len("$$$$\n")], r"does not end with"),
    "another name": ("gdb9.sdf", lambda t: t.replace("gdb_2\n", "gdb_7\n", 1), r"molecule 2 is 'gdb_7'.*'gdb_2'"),
    "a column": ("gdb9.sdf.csv", lambda t: t.replace("u0_atom", "u0_atm", 1), r"does not name u0_atom"),
    "a value": ("gdb9.sdf.csv", lambda t: t.replace("gdb_2,", "gdb_2,x", 1).replace(",x", ",0,0,0,x", 1), r"line 3"),
    "a list": ("uncharacterized.txt", lambda t: t.replace("    3  [H]C", "  [H]C", 1), r"does not begin with a number"),
}


@pytest.mark.parametrize(("file", "change", "complaint"), WRONG.values(), ids=WRONG)
def test_hostile_files_are_errors_that_name_file_and_place(root, file, change, complaint):
    path = root / "raw" / file
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    with pytest.raises(DataError, match=complaint):
        mtlcore.create("task", "qm9-graphs", root=str(root)).load()


def test_what_is_missing_is_named_with_the_way_out(root, monkeypatch):
    monkeypatch.delenv("MTLCORE_DATA", raising=False)
    with pytest.raises(DataError, match=r"no folder is known.*root.*MTLCORE_DATA.*gdb9\.sdf"):
        mtlcore.create("task", "qm9-graphs").load()
    (root / "raw" / "gdb9.sdf.csv").unlink()
    with pytest.raises(DataError, match=r"none of .*gdb9\.sdf\.csv.* is there"):
        mtlcore.create("task", "qm9-graphs", root=str(root)).load()
