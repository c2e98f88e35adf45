"""Probe of teachers: distances by brute force, and a student that learns."""

import torch

from anomalib_mixedteacher.benchmark.distill import distance_maps, distill
from anomalib_mixedteacher.benchmark.probe import describe, nearest_distance, nearest_neighbour_maps, score
from anomalib_mixedteacher.components import Teacher


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
    losses = [distance_maps(teacher, distill(teacher, images, epochs), images).mean().item() for epochs in (1, 30)]
    assert losses[1] < 0.5 * losses[0]
