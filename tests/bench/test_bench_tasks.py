"""Benchmark tasks: no source example in two parts, normalised with training data only, splits that never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtlcore
from mtlbench.data import sources
from mtlbench.tasks import movielens
from mtlbench.tasks.base import MultiSplit, Network, evaluate, losses_of
from mtlbench.tasks.fashion_scenes import _cosine

TASKS = {
    "multimnist": {"train": "b140affd6c1dc98e", "validation": "f4a56b39b081802a", "test": "ba6898c3646bc9d9"},
    "grid-fashion": {"train": "9c2797365d732f07", "validation": "e8623d02a885f916", "test": "c8e890f9728080f3"},
    "fashion-scenes": {"train": "ba23a84d0f269ac0", "validation": "87fc7637e990b371", "test": "4ea0c7c110e5a0e4"},
    "adult": {"train": "1e7515fa42ccd391", "validation": "943a9f0c656385da", "test": "148a43aa335f59d4"},
    "multifashion": {"train": "b077e9207ee524b4", "validation": "ad3f7de7623808a5", "test": "c332ed79ff106d43"},
    "multifashion-mnist": {"train": "661e11663f617573", "validation": "120cccc8cb6ab793", "test": "4efb6a8419956460"},
    "grid-digits": {"train": "a723bfa179646242", "validation": "b22ccb7c5a459dde", "test": "bc007e272de5dd3f"},
    "rf1": {"train": "5a3e6c2bae2f0083", "validation": "7749c666e46372ba", "test": "171e809cdf901567"},
    "digits-domains": {"train": "bc37fe2443b31b4f", "validation": "c66c882d06644684", "test": "695d76173a7d6f75"},
    "school": {"train": "e6a287ccb8adf07b", "validation": "697c697754782525", "test": "9b2d27157eb618fc"},
    "chem-props": {"train": "3ea3c19b321101be", "validation": "59a1bddf25d7f2a8", "test": "cbfe2614abaac736"},
    "movielens": {"train": "56a9869344d1bf11", "validation": "500ed07138c0c233", "test": "cf50b3da59eacc36"},
    "qm9": {"train": "5eb7c93dbabb7df0", "validation": "24cc72fb343cefa1", "test": "9cd80f52d178a06b"},
    "qm9-geometry": {"train": "5eb7c93dbabb7df0", "validation": "24cc72fb343cefa1", "test": "9cd80f52d178a06b"},
}
QUICK = ("multimnist", "grid-digits", "rf1", "school", "movielens")


@pytest.fixture
def task(request):
    """A task whose data are on this machine; tests never download anything."""
    made = mtlcore.create("task", request.param)
    for source in made.sources:
        if sources.status(source).startswith("to fetch"):
            pytest.skip(f"needs data source {source!r}: {sources.status(source)}")
    return made


def _all(test):
    marks = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in TASKS]
    return pytest.mark.parametrize("task", marks, indirect=True)(test)


def _name(task):
    return next(n for n in TASKS if type(mtlcore.create("task", n)) is type(task))


@_all
def test_no_source_example_is_in_two_parts(task):
    splits = task.load()
    used = {name: set(np.unique(getattr(splits, name).sources)) for name in ("train", "validation", "test")}
    assert all(used.values())
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]


@_all
def test_splits_are_pinned(task):
    assert task.load().fingerprints() == TASKS[_name(task)]


def _inputs(task, part):
    """The columns that are numbers; in movielens the first two say who and which film."""
    split = getattr(task.load(), part)
    if isinstance(split, MultiSplit):
        return torch.cat([p.inputs for p in split.parts.values()])
    return split.inputs[:, 2:] if _name(task) == "movielens" else split.inputs


@_all
def test_training_inputs_are_standardised_and_test_inputs_only_nearly(task):
    if _name(task) == "qm9-geometry":
        pytest.skip("places stay in angstrom: distances are compared over molecules")
    train, test = _inputs(task, "train"), _inputs(task, "test")
    assert abs(float(train.mean())) < 0.03
    assert abs(float(train.std()) - 1.0) < 0.12  # some clip at 6 standard deviations, and rare columns lose by it
    # With statistics of its own the test part would be exactly centred too.
    assert abs(float(test.mean())) > 1e-5


@_all
def test_an_untrained_network_has_finite_losses_and_all_declared_metrics(task):
    torch.manual_seed(0)
    network = Network(task)
    inputs, targets = task.load().train.batch(torch.arange(8))
    outputs, _ = network(inputs)
    for name, loss in losses_of(task, outputs, targets).items():
        assert name in task.tasks
        assert loss.shape == ()
        assert bool(torch.isfinite(loss))
    found = evaluate(task, network, task.load().validation)
    assert set(found) == {m.key for m in task.metrics}
    assert all(np.isfinite(v) for v in found.values())


@_all
def test_metrics_do_not_depend_on_the_batch_size(task):
    torch.manual_seed(0)
    network = Network(task)
    part = task.load().validation
    small, large = evaluate(task, network, part, 37), evaluate(task, network, part, 500)
    assert small == pytest.approx(large, rel=1e-5)


@pytest.mark.parametrize("task", ["multimnist"], indirect=True)
def test_multimnist_shows_both_digits(task):
    from mtlbench.data.images import mnist_5k

    images, digits = mnist_5k()
    part = task.load().test
    top_left, bottom_right = part.sources[0]
    canvas = part.inputs[0, 0]
    darkest = canvas.min()
    # Where only one of the digits can be, the canvas shows exactly that digit.
    corner = torch.from_numpy(images[top_left][:8, :8] > 0)
    assert bool(((canvas[:8, :8] > darkest) == corner).all())
    other = torch.from_numpy(images[bottom_right][-8:, -8:] > 0)
    assert bool(((canvas[-8:, -8:] > darkest) == other).all())
    assert int(part.targets["top-left"][0]) == digits[top_left]
    assert int(part.targets["bottom-right"][0]) == digits[bottom_right]


@pytest.mark.parametrize("task", ["rf1"], indirect=True)
def test_rf1_parts_do_not_overlap_in_time(task):
    splits = task.load()
    rows = {name: np.sort(getattr(splits, name).sources) for name in ("train", "validation", "test")}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        gaps = np.abs(rows[one][:, None] - rows[other][None, :])
        assert gaps.min() > 100  # a row spans 108 hours


def test_the_angle_of_normals_is_that_of_torch():
    torch.manual_seed(0)
    output, normal = 3 * torch.randn(2, 3, 5, 7), torch.nn.functional.normalize(torch.randn(2, 3, 5, 7), dim=1)
    torch.testing.assert_close(_cosine(output, normal), torch.cosine_similarity(output, normal, dim=1))
    assert bool(torch.isfinite(_cosine(torch.zeros_like(output), normal)).all())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["fashion-scenes"], indirect=True)
def test_scene_normals_are_unit_and_depth_is_positive(task):
    targets = task.load().test.targets
    assert torch.allclose(targets["normals"].norm(dim=1), torch.tensor(1.0), atol=1e-5)
    assert float(targets["depth"].min()) > 0
    assert int(targets["segmentation"].max()) == 10


@pytest.mark.parametrize("task", ["school"], indirect=True)
def test_school_has_63_schools_and_each_learns_from_its_own_pupils_only(task):
    splits = task.load()
    assert len(task.tasks) == 63
    for part in (splits.train, splits.validation, splits.test):
        assert set(part.parts) == set(task.tasks)
        assert min(len(school) for school in part.parts.values()) >= 3
    everybody = np.concatenate([splits.train.sources, splits.validation.sources, splits.test.sources])
    assert len(np.unique(everybody)) == len(everybody) == 4049  # of 4,059: two schools are left out


@pytest.mark.slow
@pytest.mark.parametrize("task", ["chem-props"], indirect=True)
def test_missing_labels_of_molecules_count_nowhere(task):
    splits = task.load()
    known = {name: int((~target.isnan()).sum()) for name, target in splits.train.targets.items()}
    assert len(known) == 16
    assert min(known.values()) > 100
    assert max(known.values()) < len(splits.train)
    target = torch.tensor([1.0, float("nan"), 3.0])
    output = torch.tensor([[1.0], [100.0], [1.0]])
    assert float(task.loss("density", output, target)) == pytest.approx(2.0)
    assert task.tally("density", output, target).tolist() == [2.0, 2.0]
    assert not task.has_labels("density", target[1:2])


@pytest.mark.parametrize("task", ["movielens"], indirect=True)
def test_the_area_under_the_curve_is_that_of_sklearn(task):
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(0)
    logits, seen = 3 * torch.randn(500, 1), (torch.rand(500) < 0.3).float()
    found = task.score("seen", task.tally("seen", logits, seen))["AUC"]
    assert found == pytest.approx(roc_auc_score(seen.numpy(), logits[:, 0].numpy()), abs=2e-3)


@pytest.mark.parametrize("task", ["movielens"], indirect=True)
def test_pairs_without_a_rating_are_pairs_that_nobody_rated(task):
    ratings = movielens.pd.read_parquet(next(p for p in sources.locate("movielens").values() if "data" in p.name))
    rated = set(zip(ratings["user_id"], ratings["movie_id"]))
    part = task.load().test
    for who, film, seen in zip(*part.inputs[:, :2].long().T.tolist(), part.targets["seen"].tolist()):
        assert ((who, film) in rated) == bool(seen)
