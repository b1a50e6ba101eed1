"""The official layouts, on tiny files made here: loaded right, trained, and whatever is wrong is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtlcore
from mtlbench import protocol
from mtlbench.data.sources import DataError
from mtlbench.networks import celeba, resnet, segnet
from mtlbench.protocol import plan
from mtlbench.suite import MethodEntry
from mtlbench.tasks import dense, scenes
from mtlbench.tasks.base import Budget, Network, joined
from mtlbench.tasks.celeba import ATTRIBUTES

SIZE = (32, 64)


def _scenes(root, label="label", normals=True, counts=(3, 2), first=False):
    """A set as MTAN prepared it."""
    generator = np.random.default_rng(0)
    for part, count in zip(("train", "val"), counts):
        for folder in ("image", label, "depth", *(["normal"] if normals else [])):
            (root / part / folder).mkdir(parents=True)
        for i in range(count):
            folder = root / part
            np.save(folder / "image" / f"{i}.npy", generator.random((*SIZE, 3)))
            np.save(folder / label / f"{i}.npy", generator.integers(-1, 7, SIZE).astype(float))
            depth = generator.random((*SIZE, 1)) + 0.5
            depth[:4] = 0  # not measured
            np.save(folder / "depth" / f"{i}.npy", depth)
            if normals:
                normal = generator.normal(size=(*SIZE, 3))
                np.save(folder / "normal" / f"{i}.npy", normal / np.linalg.norm(normal, axis=-1, keepdims=True))
    return root


@pytest.fixture(autouse=True)
def _fresh():
    scenes._load.cache_clear()


def test_nyuv2_is_read_as_it_lies_there(tmp_path, monkeypatch):
    root = _scenes(tmp_path / "nyuv2")
    monkeypatch.setenv("MTLCORE_DATA", str(tmp_path))
    splits = mtlcore.create("task", "nyuv2").load()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [2, 1, 2]
    inputs, targets = splits.test.batch(torch.arange(2))
    assert inputs.shape == (2, 3, *SIZE)
    assert {n: tuple(t.shape) for n, t in targets.items()} == {
        "segmentation": (2, *SIZE), "depth": (2, 1, *SIZE), "normals": (2, 3, *SIZE),
    }  # fmt: skip
    picture = np.load(root / "val" / "image" / "1.npy").astype(np.float32)
    assert np.array_equal(inputs[1].numpy(), np.moveaxis(picture, -1, 0))
    assert len({*splits.train.sources, *splits.validation.sources, *splits.test.sources}) == 5


@pytest.mark.parametrize("label", ["label", "label_7"])
def test_both_layouts_of_cityscapes_are_accepted(tmp_path, label):
    task = mtlcore.create("task", "cityscapes", root=str(_scenes(tmp_path, label, normals=False)))
    assert set(task.load().train.batch(torch.tensor([0]))[1]) == {"segmentation", "depth"}


def test_a_whole_run_by_the_rules_of_the_line(tmp_path, monkeypatch):
    """Training on all training images, the test metrics of the last epochs averaged, no look at validation."""
    monkeypatch.setattr(segnet, "WIDTHS", (4, 4, 4, 4, 4))
    task = mtlcore.create("task", "nyuv2", root=str(_scenes(tmp_path)), network="segnet")
    monkeypatch.setattr(plan, "PROBES", 1)
    budget = Budget(
        steps=1, batch_size=2, learning_rate=1e-4, epochs=2, schedule="StepLR", schedule_options={"step_size": 1},
        selection="mean-of-last-epochs", last_epochs=2, train_on_validation=True,
    )  # fmt: skip
    found = protocol.train("nyuv2", task, MethodEntry(name="ls"), 0, budget, {})
    assert set(found.metrics) == {m.key for m in task.metrics}
    assert len(found.metrics) == 9
    assert all(np.isfinite(v) for v in found.metrics.values())
    assert found.validation == {}


def _announces(path, rows):
    """A file whose header promises more than it has, and more than there is memory for."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (rows, 64, 3)})


WRONG = {
    "a pickle": (lambda p: np.save(p, np.array([{"a": 1}]), allow_pickle=True), "pickled objects"),
    "another shape": (lambda p: np.save(p, np.zeros((5, 5))), "has shape 5 x 5; expected"),
    "not finite": (lambda p: np.save(p, np.full((*SIZE, 3), np.nan)), "not finite"),
    "text": (lambda p: np.save(p, np.full((*SIZE, 3), "x")), "not a plain array"),
    "no array": (lambda p: p.write_bytes(b"\x80\x04N."), "is not read|cannot be read"),
    "empty": (lambda p: p.write_bytes(b""), "is not read|cannot be read"),
    "an absurd header": (lambda p: _announces(p, 10**12), "cannot be read"),
    "0 to 255": (lambda p: np.save(p, np.full((*SIZE, 3), 255, np.uint8)), "largest value is 255.*divide by 255"),
    "odd size": (lambda p: np.save(p, np.zeros((33, 64, 3))), "multiples of 32"),
}


@pytest.mark.parametrize(("write", "complaint"), WRONG.values(), ids=WRONG)
def test_a_hostile_array_is_an_error_that_names_the_file(tmp_path, write, complaint):
    root = _scenes(tmp_path)
    for i in range(3):
        write(root / "train" / "image" / f"{i}.npy")
    with pytest.raises(DataError, match=complaint) as caught:
        mtlcore.create("task", "nyuv2", root=str(root)).load()
    assert ".npy" in str(caught.value)


def test_a_class_between_two_classes_is_refused(tmp_path):
    """It would have been rounded down without a word."""
    root = _scenes(tmp_path)
    for i in range(3):
        np.save(root / "train" / "label" / f"{i}.npy", np.full(SIZE, 2.5))
    with pytest.raises(DataError, match=r"label.*\.npy has class 2\.5, which is not a whole number"):
        mtlcore.create("task", "nyuv2", root=str(root)).load()


@pytest.mark.parametrize("label", [-2.0, 13.0])
def test_a_class_that_the_set_does_not_have_is_refused(tmp_path, label):
    """One below -1 would have counted as unlabelled without a word."""
    root = _scenes(tmp_path)
    for i in range(3):
        np.save(root / "train" / "label" / f"{i}.npy", np.full(SIZE, label))
    with pytest.raises(DataError, match=rf"label.*\.npy has class {label:g}; there are 13, and -1 for unlabelled"):
        mtlcore.create("task", "nyuv2", root=str(root)).load()


def test_what_is_missing_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.delenv("MTLCORE_DATA", raising=False)
    for name in ("nyuv2", "cityscapes", "celeba", "office"):
        with pytest.raises(DataError, match="no folder is known.*root.*MTLCORE_DATA.*Layout"):
            mtlcore.create("task", name).load()
    root = _scenes(tmp_path)
    (root / "train" / "image" / "1.npy").unlink()
    with pytest.raises(DataError, match=r"has 2 files, but no 1\.npy"):
        mtlcore.create("task", "nyuv2", root=str(root)).load()


def test_unlabelled_pixels_count_nowhere():
    torch.manual_seed(0)
    depth, guess = torch.rand(2, 1, 4, 4) + 0.5, torch.rand(2, 1, 4, 4)
    hidden = depth.clone()
    hidden[:, :, :2] = 0
    other = guess.clone()
    other[:, :, :2] = 99.0
    assert dense.loss("depth", guess, hidden) == dense.loss("depth", other, hidden)
    expected = (guess - depth)[:, :, 2:].abs().mean()
    assert float(dense.loss("depth", guess, hidden)) == pytest.approx(float(expected), rel=1e-5)
    found = dense.score("depth", dense.tally("depth", other, hidden))
    assert found["absolute error"] == pytest.approx(float(expected), rel=1e-5)
    label, scores = torch.randint(0, 7, (2, 4, 4)), torch.randn(2, 7, 4, 4)
    label[:, 0] = -1
    by_hand = torch.nn.functional.cross_entropy(scores, label, ignore_index=-1)
    torch.testing.assert_close(dense.loss("segmentation", scores, label), by_hand)
    right = (scores.argmax(1) == label)[:, 1:].float().mean()
    found = dense.score("segmentation", dense.tally("segmentation", scores, label))
    assert found["pixel accuracy"] == pytest.approx(100 * float(right), rel=1e-5)


def test_normals_are_judged_by_their_angle():
    normal = torch.zeros(1, 3, 1, 4)
    normal[:, 2] = 1.0
    angle = torch.deg2rad(torch.tensor([0.0, 10.0, 25.0, 90.0]))
    guess = 5 * torch.stack([angle.sin(), torch.zeros(4), angle.cos()])[None, :, None]
    found = dense.score("normals", dense.tally("normals", guess, normal))
    assert found["mean angle"] == pytest.approx(31.25, abs=0.01)
    assert [found[f"within {b:g}°"] for b in dense.WITHIN] == [50.0, 50.0, 75.0]
    assert float(dense.loss("normals", guess, normal)) == pytest.approx(float((1 - angle.cos()).mean()), abs=1e-6)


def test_augmentation_keeps_depth_and_normals_true(tmp_path):
    """Zooming in by s brings a wall nearer by s; a mirror turns the x component of normals round."""
    example = {
        "image": torch.rand(3, *SIZE), "segmentation": torch.zeros(SIZE).long(), "depth": torch.full((1, *SIZE), 6.0),
        "normals": torch.tensor([0.6, 0.0, 0.8])[:, None, None].expand(3, *SIZE),
    }  # fmt: skip
    seen = set()
    for seed in range(30):
        out = scenes._augmented(example, torch.Generator().manual_seed(seed))
        assert {n: v.shape for n, v in out.items()} == {n: v.shape for n, v in example.items()}
        assert out["segmentation"].dtype == torch.long
        (depth,) = out["depth"].unique().tolist()
        (x,) = out["normals"][0].unique().tolist()
        seen.add((round(depth, 3), round(x, 3)))
    assert seen == {(d, x) for d in (6.0, 5.0, 4.0) for x in (0.6, -0.6)}


def test_the_networks_have_the_published_sizes():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    net = segnet.SegNet()
    convolutions = [m for m in [*net.enter.modules(), *net.deepen.modules()] if isinstance(m, torch.nn.Conv2d)]
    assert sum(map(count, convolutions)) == 14_714_688  # the convolutions of VGG-16
    assert count(resnet.resnet18()) == 11_176_512  # ResNet-18 of torchvision without its classifier
    assert sum(isinstance(m, torch.nn.Conv2d) for m in celeba.trunk()) == 7
    x = torch.rand(2, 3, *SIZE)
    for network in ("segnet", "mtan"):
        with torch.no_grad():
            outputs, features = Network(scenes.NYUv2(network=network))(x)
        assert {n: tuple(o.shape[1:]) for n, o in outputs.items()} == {
            "segmentation": (13, *SIZE), "depth": (1, *SIZE), "normals": (3, *SIZE),
        }  # fmt: skip
        assert (features is None) == (network == "mtan")


# --- CelebA ---------------------------------------------------------------------------------------------------------


def _celeba(root, flat=False, count=6):
    from PIL import Image

    generator = np.random.default_rng(0)
    places = ("", "", "") if flat else ("Eval", "Anno", "Img")
    evaluation, annotation, pictures = (root / ("celeba" if flat else "") / p for p in places)
    for folder in (evaluation, annotation, pictures / "img_align_celeba"):
        folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}.jpg" for i in range(1, count + 1)]
    for name in names:
        pixels = generator.integers(0, 255, (22, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / "img_align_celeba" / name)
    labels = [" ".join(generator.choice(["-1", "1"], 40)) for _ in names]
    rows = [f"{n} {v}" for n, v in zip(names, labels)]
    (annotation / "list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(ATTRIBUTES), *rows]) + "\n")
    parts = [f"{n} {min(2, i * 3 // count)}" for i, n in enumerate(names)]
    (evaluation / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return labels


@pytest.mark.parametrize("flat", [False, True], ids=["official", "torchvision"])
def test_celeba_in_both_layouts(tmp_path, flat):
    labels = _celeba(tmp_path, flat)
    task = mtlcore.create("task", "celeba", root=str(tmp_path))
    splits = task.load()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [2, 2, 2]
    inputs, targets = splits.validation.batch(torch.arange(2))
    assert inputs.shape == (2, 3, 64, 64)
    assert 0.0 <= float(inputs.min()) < float(inputs.max()) <= 1.0
    assert [int(targets[a][0]) for a in ATTRIBUTES] == [int(v == "1") for v in labels[2].split()]
    outputs, _ = Network(task)(inputs)
    assert len(outputs) == 40
    assert bool(torch.isfinite(task.loss("Male", outputs["Male"], targets["Male"])))


def test_f1_is_that_of_the_definition():
    task = mtlcore.create("task", "celeba")
    output, target = torch.tensor([[2.0], [1.0], [-1.0], [-2.0]]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert task.score("Male", task.tally("Male", output, target)) == {"F1": pytest.approx(50.0)}


LIST = "Anno/list_attr_celeba.txt"


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        (LIST, lambda t: t.replace("Bald", "Bold"), "does not name the forty attributes"),
        (LIST, lambda t: t.replace("000002.jpg 1", "000002.jpg 7").replace("000002.jpg -1", "000002.jpg 7"), "line 4"),
        (LIST, lambda t: t.replace("6\n", "7\n", 1), "announces '7' pictures and has 6"),
        (LIST, lambda t: t.replace("6\n", "\u00b2\n", 1), "announces '\u00b2' pictures and has 6"),
        (LIST, lambda t: t.replace("000001.jpg", "../../x.jpg"), "does not say which part|leads out"),
        ("Eval/list_eval_partition.txt", lambda t: t.replace(" 2", " 3"), "its part, 0, 1 or 2"),
        ("Eval/list_eval_partition.txt", lambda t: t.replace(" 2", " 1"), "no picture into part 2"),
    ],
)  # fmt: skip
def test_hostile_lists_are_named(tmp_path, file, change, complaint):
    _celeba(tmp_path)
    path = tmp_path / file
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=complaint):
        mtlcore.create("task", "celeba", root=str(tmp_path)).load()


def test_a_file_that_is_no_picture_is_named(tmp_path):
    _celeba(tmp_path)
    (tmp_path / "Img" / "img_align_celeba" / "000001.jpg").write_bytes(b"GIF89a nothing")
    splits = mtlcore.create("task", "celeba", root=str(tmp_path)).load()
    with pytest.raises(DataError, match=r"000001\.jpg is not a picture"):
        splits.train.batch(torch.tensor([0]))


# --- Office ---------------------------------------------------------------------------------------------------------


def test_office_trains_on_domains_of_unequal_size(tmp_path, monkeypatch):
    from PIL import Image

    generator = np.random.default_rng(0)
    for d, domain in enumerate(("amazon", "dslr", "webcam")):
        for part, count in (("train", 3 + d), ("val", 2), ("test", 2)):
            rows = []
            for i in range(count):
                path = tmp_path / domain / "images" / f"{part} {i}.jpg"  # with a space, as people's folders have
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
                rows.append(f"{path.relative_to(tmp_path)} {i}")
            (tmp_path / f"{domain}_{part}.txt").write_text("\n".join(rows) + "\n")
    task = mtlcore.create("task", "office", root=str(tmp_path), size=32)
    splits = task.load()
    assert [len(p) for p in splits.train.parts.values()] == [3, 4, 5]
    assert len(joined(splits.train, splits.validation)) == 7
    monkeypatch.setattr(plan, "PROBES", 1)
    budget = Budget(steps=2, batch_size=3, learning_rate=1e-3, evaluations=1)
    found = protocol.train("office", task, MethodEntry(name="mgda"), 0, budget, {})
    assert set(found.metrics) == {f"{d}/{metric}" for d in task.tasks for metric in ("accuracy", "calibration error")}
    assert found.conflict["min_cosine"] is not None
    from mtlbench.tasks import office

    for wrong in ("31", "\u00b2", "-1", "1.0", ""):  # a superscript is a digit, but no number
        (tmp_path / "amazon_test.txt").write_text(f"amazon/images/x.jpg {wrong}\n", encoding="utf-8")
        office._load.cache_clear()
        with pytest.raises(DataError, match="amazon_test.txt, line 1: expected a picture and a class below 31"):
            task.load()
