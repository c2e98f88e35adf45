"""Probe of teachers: distances by brute force, and a student that learns."""

import sys

import pytest
import torch
from torch.nn import BatchNorm2d

from anomalib_mixedteacher.benchmark import probe
from anomalib_mixedteacher.benchmark.distill import distill
from anomalib_mixedteacher.benchmark.probe import (
    describe,
    distilled_maps,
    nearest_distance,
    nearest_neighbour_maps,
    score,
)
from anomalib_mixedteacher.components import Teacher
from anomalib_mixedteacher.components.distance import normalized_distance


def make_teacher(folder):
    teacher = Teacher("resnet18", (1, 2), pool=True)
    teacher.load(str(folder))
    return teacher


def test_nearest_distance_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    queries, memory = (torch.rand(n, 5, generator=generator, dtype=torch.float64) for n in (20, 30))
    torch.testing.assert_close(nearest_distance(queries, memory), torch.cdist(queries, memory).amin(dim=1).square())


def test_descriptors_have_one_unit_of_length_a_layer(teacher_folder, images):
    described = describe(make_teacher(teacher_folder), images)
    assert described.shape == (4, 64 + 128, 8, 8)
    torch.testing.assert_close(described[:, :64].norm(dim=1), torch.ones(4, 8, 8))


def test_good_images_are_near_themselves(teacher_folder, datamodule):
    datamodule.setup()
    teacher = make_teacher(teacher_folder)
    maps = nearest_neighbour_maps(teacher, datamodule.train_data, 64)
    predictions = score(maps, datamodule.test_data, 64)
    assert predictions.maps.shape == (len(datamodule.test_data), 64, 64)
    good, bad = (predictions.scores[predictions.labels == label] for label in (0, 1))
    assert bad.min() > good.max()  # bright squares on stripes
    itself = score(maps, datamodule.train_data, 64).scores
    assert itself.max() < 1e-3 * bad.min()  # all positions fit into the memory


def test_distilled_student_comes_close_on_what_it_saw(teacher_folder, images):
    teacher = make_teacher(teacher_folder)
    images = images[:3].repeat(6, 1, 1, 1)

    def loss(epochs):
        student = distill(teacher, images, epochs)
        pairs = zip(teacher(images), student(images), strict=True)
        return sum(normalized_distance(t, s).mean().item() for t, s in pairs)

    assert loss(30) < 0.5 * loss(1)


def test_batch_normalisation_learns_in_the_first_epoch_only(teacher_folder, images):
    student, longer = (distill(make_teacher(teacher_folder), images.repeat(4, 1, 1, 1), epochs) for epochs in (1, 3))
    counts = {int(m.num_batches_tracked) for s in (student, longer) for m in s.modules() if isinstance(m, BatchNorm2d)}
    assert counts == {2}


def test_what_a_student_did_not_see_stands_out(teacher_folder, datamodule):
    datamodule.setup()
    maps = distilled_maps(make_teacher(teacher_folder), datamodule.train_data, 64, epochs=20)
    predictions = score(maps, datamodule.test_data, 64)
    assert predictions.maps.shape == (len(datamodule.test_data), 64, 64)
    good, bad = (predictions.scores[predictions.labels == label] for label in (0, 1))
    assert bad.mean() > good.mean()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--backbones", "resnet50"], 2, "--backbones: invalid choice: 'resnet50' (choose from"),
        (["--pool", "creak"], 2, "--pool: invalid choice: 'creak' (choose from"),
        (["--image-size", "8"], 1, "probe: --image-size is 8: give 32 or more."),
    ],
)
def test_wrong_arguments_are_one_sentence(monkeypatch, capsys, arguments, status, sentence):
    monkeypatch.setattr(sys, "argv", ["probe", "--root", "tiles", *arguments])
    try:
        found = probe.main()
    except SystemExit as end:
        found = end.code
    assert found == status
    assert sentence in capsys.readouterr().err.splitlines()[-1]
