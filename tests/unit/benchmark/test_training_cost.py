"""Cost of training: the official loop step by step, what each variant trains, tables, and the command."""

import copy
import math
import re
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from anomalib_mixedteacher.benchmark.training_cost import Epoch, main, operator_table, table, train, train_officially
from torch import nn

from anomalib_mixedteacher.cache_folder import CACHE_VARIABLE
from anomalib_mixedteacher.components import Teacher
from anomalib_mixedteacher.models.mixed_teacher.torch_model import MixedTeacherModel

SIDE, IMAGES, BATCH, EPOCHS = 64, 4, 2, 2
BACKBONES = ("resnet18", "efficientnet_b0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(cache, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    sizes = {"image_size": SIDE, "images": IMAGES, "batch": BATCH, "epochs": EPOCHS}
    return Namespace(data="SyntheticTextures", root=None, teacher_weights="random", device="cpu", **sizes)


@pytest.fixture
def model(images):
    torch.manual_seed(0)
    model = MixedTeacherModel().double()
    model.load_teachers("random")
    for teacher in model.teachers.values():
        teacher.set_normalization_statistics(images.double())
    return model


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) for _ in range(IMAGES // BATCH)]


@pytest.fixture
def seen(monkeypatch):
    """What the teachers are given: (backbone, image), one entry an image."""
    entries = []
    forward = Teacher.forward

    def noting(self, images):
        entries.extend((self.backbone, image.clone()) for image in images)
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", noting)
    return entries


def normalize(images):
    return (images - 0.5) / 0.25


def loader(batches):
    return [SimpleNamespace(image=images) for images in batches]


def reference_loss(teacher, student):
    layers = []
    for t, s in zip(teacher, student, strict=True):
        cosine = (t * s).sum(1) / ((t**2).sum(1).sqrt() * (s**2).sum(1).sqrt())
        layers.append((1 - cosine).mean())  # half the squared distance of unit vectors
    return sum(layers) / len(layers)


def one_cycle(step, steps):
    """Learning rate and first beta of torch's one-cycle schedule with a peak of 4e-3: up for 30 %, then down."""

    def cosine(start, end, share):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    top = 0.3 * steps - 1
    if step <= top:
        return cosine(4e-3 / 25, 4e-3, step / top), cosine(0.95, 0.85, step / top)
    share = (step - top) / (steps - 1 - top)
    return cosine(4e-3, 4e-3 / 25e4, share), cosine(0.85, 0.95, share)


def reference_training(teacher, student, batches, epochs):
    """Adam written out, with batch normalisation in training mode in the first epoch only."""
    parameters = list(student.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    products = [1.0, 1.0]
    steps = epochs * len(batches)
    for step in range(steps):
        student.train(step < len(batches))
        images = normalize(batches[step % len(batches)])
        loss = reference_loss(teacher(images), student(images))
        gradients = torch.autograd.grad(loss, parameters)
        rate, beta = one_cycle(step, steps)
        products = [beta ** (step + 1), 0.999 ** (step + 1)]
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(beta).add_((1 - beta) * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p -= rate * (m / (1 - products[0])) / ((v / (1 - products[1])).sqrt() + 1e-8)


def test_official_loop_trains_each_student_on_its_own_loss(model, batches):
    reference = copy.deepcopy(model)
    untrained = copy.deepcopy(model)
    times = train_officially(model, loader(batches), normalize, EPOCHS)
    assert len(times) == EPOCHS
    assert all(epoch.seconds > 0 and epoch.tail == 0 for epoch in times)
    for name, student in reference.students.items():
        reference_training(reference.teachers[name], student, batches, EPOCHS)
        result, before = model.students[name].state_dict(), untrained.students[name].state_dict()
        for key, expected in student.state_dict().items():
            torch.testing.assert_close(result[key], expected, rtol=1e-8, atol=1e-9)
        assert all(not torch.equal(result[k], v) for k, v in before.items() if k.endswith("weight"))
    for key, value in untrained.teachers.state_dict().items():
        assert torch.equal(model.teachers.state_dict()[key], value)


def test_official_teachers_see_every_image_in_every_epoch(model, batches, seen):
    train_officially(model, loader(batches), normalize, EPOCHS)
    expected = [normalize(image) for images in batches for image in images]
    for backbone in BACKBONES:
        found = [image for name, image in seen if name == backbone]
        assert len(found) == EPOCHS * IMAGES
        for image in expected:
            assert sum(torch.equal(image, other) for other in found) == EPOCHS
    assert len(seen) == 2 * EPOCHS * IMAGES


@pytest.mark.parametrize(
    ("name", "times", "channels_last", "kind"),
    [
        ("official", EPOCHS, False, torch.float32),
        ("official:both_teachers", 2 * EPOCHS, False, torch.float32),
        ("MixedTeacher", 1, True, torch.float32),
        ("MixedTeacher:learning_bn", 1, True, torch.float32),
        # after each epoch a second time, for the statistics of good images
        ("MixedTeacher:feature_cache=0", 2 * EPOCHS, True, torch.float32),
        ("MixedTeacher:contiguous", 1, False, torch.float32),
        ("MixedTeacher:bf16-mixed", 1, False, torch.bfloat16),
    ],
)
def test_variants_are_what_they_are_called(name, times, channels_last, kind, settings, seen, monkeypatch):
    orders, kinds = [], set()
    forward = nn.Conv2d.forward

    def noting(self, images):
        result = forward(self, images)
        if self.training and self.groups == 1 and self.kernel_size != (1, 1):  # else both orders may be one
            orders.extend(t.is_contiguous(memory_format=torch.channels_last) for t in (images, self.weight, result))
            kinds.add(result.dtype)
        return result

    monkeypatch.setattr(nn.Conv2d, "forward", noting)
    times_of_epochs = train(name, settings)
    assert len(times_of_epochs) == EPOCHS
    assert all(epoch.seconds > epoch.tail >= 0 for epoch in times_of_epochs)
    assert all((epoch.tail == 0) == name.startswith("official") for epoch in times_of_epochs)
    for backbone in BACKBONES:
        assert sum(other == backbone for other, _ in seen) == times * IMAGES
    assert orders
    assert all(order == channels_last for order in orders)
    assert kinds == {kind}


def test_table_takes_ratios_round_by_round():
    measured = {
        "official": [[Epoch(9, 0), Epoch(2, 0), Epoch(4, 0)], [Epoch(9, 0), Epoch(6, 0), Epoch(6, 0)]],
        "MixedTeacher": [[Epoch(6, 0), Epoch(1, 0.5), Epoch(2, 1.0)], [Epoch(12, 0), Epoch(6, 3.0), Epoch(6, 3.0)]],
        "MixedTeacher:contiguous": [[Epoch(6, 0), Epoch(3, 0), Epoch(3, 0)]] * 2,
    }
    assert table(measured).splitlines() == [
        "| variant | epoch / official | range | behind the last batch |",
        "| --- | --- | --- | --- |",
        "| official | 1.00 | 1.00 to 1.00 | 0% |",
        "| MixedTeacher | 0.75 | 0.50 to 1.00 | 50% |",
        "| MixedTeacher, first epoch | 2.00 | 2.00 to 2.00 | 0% |",
        "| MixedTeacher, contiguous | 0.75 | 0.50 to 1.00 | 0% |",
    ]
    measured["official:both_teachers"] = [[Epoch(9, 0), Epoch(4, 0), Epoch(8, 0)], [Epoch(9, 0), Epoch(8, 0)]]
    lines = table(measured).splitlines()
    assert lines[0] == (
        "| variant | epoch / official | range | epoch / official, both teachers | range | behind the last batch |"
    )
    assert lines[3] == "| MixedTeacher | 0.75 | 0.50 to 1.00 | 0.50 | 0.25 to 0.75 | 50% |"
    del measured["official"], measured["official:both_teachers"]
    assert table(measured).splitlines()[2] == "| MixedTeacher | 50% |"


def test_operators_are_shares_of_the_loop():
    averages = [SimpleNamespace(key=f"aten::{i}", self_cpu_time_total=1e4 * i, count=i) for i in range(14)]
    lines = operator_table(averages, seconds=2.0).splitlines()
    assert lines[2] == "| aten::13 | 6.5% | 13 |"
    assert lines[13] == "| aten::2 | 1.0% | 2 |"
    assert lines[14:] == ["| everything else | 55.0% | |"]  # 1 - (2 + ... + 13) / 200


def test_command(settings, capsys):
    sizes = ["--image-size", str(SIDE), "--images", str(IMAGES), "--batch", str(BATCH), "--epochs", str(EPOCHS)]
    chosen = ["--variants", "official", "MixedTeacher", "Stfpm"]
    assert main([*sizes, "--rounds", "1", *chosen, "--profile"]) == 0
    out = capsys.readouterr().out
    assert f"training_cost --image-size {SIDE}" in out
    assert "| official | 1.00 | 1.00 to 1.00 | 0% |" in out
    for label in ("MixedTeacher", "MixedTeacher, first epoch", "Stfpm"):
        (ratio,) = re.findall(rf"^\| {label} \| (\d+\.\d\d) \| \1 to \1 \| \d+% \|$", out, re.MULTILINE)
        assert float(ratio) > 0
    assert float(re.search(r"both students on (\d+\.\d) images/s", out).group(1)) > 0
    shares = [float(share) for share in re.findall(r"\| (-?\d+\.\d)% \| \d* ?\|", out)]
    assert len(shares) == 13
    assert sum(shares) == pytest.approx(100, abs=1)
    assert min(shares) >= 0
    assert re.search(r"^\| aten::convolution_backward \| \S+ \| \d+ \|$", out, re.MULTILINE)


def test_one_epoch_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--epochs", "1"])
    assert "does not count: give --epochs 2 or more." in capsys.readouterr().err
