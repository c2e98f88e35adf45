"""Teachers that see each image once, and when they must see it again."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from anomalib_mixedteacher.cache_folder import CACHE_VARIABLE
from anomalib_mixedteacher.components import FeatureExtractor, Teacher
from anomalib_mixedteacher.components.cached_teachers import cached_teachers, digest_files
from anomalib_mixedteacher.components.distillation_model import DistillationModel
from anomalib_mixedteacher.errors import CacheError

TRANSFORM = v2.Compose([v2.Resize((32, 32)), v2.Normalize([0.5] * 3, [0.2] * 3)])


class Counting(Teacher):
    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    teacher = Counting("resnet18", (1, 2))
    model = DistillationModel({"resnet": teacher}, {"resnet": FeatureExtractor("resnet18", (1, 2))})
    model.load_teachers("random")
    return model


@pytest.fixture
def files(tmp_path):
    """Five files, the last two of equal content."""
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        path.write_text(str(min(index, 3)))
    return [str(path) for path in paths]


def images(files) -> torch.Tensor:
    """Images that the files' contents determine."""
    seeds = [int(Path(file).read_text()) for file in files]
    return torch.stack([torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def test_each_image_is_seen_once_and_answers_are_the_rounded_features(model, files):
    teachers = cached_teachers(model, digest_files(files), [None, TRANSFORM], budget=1)
    for chosen in (files[:2], files[2:4], [files[3], files[0]], [files[4]], files[::-1]):
        found = teachers.features(images(chosen), chosen)["resnet"]
        with torch.no_grad():
            expected = model.teacher_features(images(chosen))["resnet"]
        model.teachers["resnet"].seen -= len(chosen)
        for got, exact in zip(found, expected, strict=True):
            torch.testing.assert_close(got, exact, rtol=2**-10, atol=1e-6)
            assert torch.equal(got, got.half().float())
    assert model.teachers["resnet"].seen == 4


def test_an_images_features_do_not_depend_on_its_batch(model, files):
    """On the CPU: there the last bits of what a network gives depend on how many images it gets at once."""
    found = []
    for size in (1, 2, 3, 5):
        teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=1)
        parts = [files[first : first + size] for first in range(0, len(files), size)]
        found.append(torch.cat([teachers.features(images(part), part)["resnet"][0] for part in parts]))
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_what_is_not_known_is_computed_exactly(model, files):
    teachers = cached_teachers(model, digest_files(files[:2]), [TRANSFORM], budget=1)
    for paths in (files[2:3], None):
        found = teachers.features(images(files[2:3]), paths)["resnet"][0]
        assert torch.equal(found, model.teacher_features(images(files[2:3]))["resnet"][0])


def test_beyond_the_budget_a_file_serves_the_next_run(model, files, tmp_path):
    for expected in (4, 4):
        teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=0)
        teachers.features(images(files), files)
        teachers.features(images(files[:1]), files[:1])
        teachers.close()
        assert model.teachers["resnet"].seen == expected + 1  # the batch of five, two of them equal
    assert len(list((tmp_path / "cache" / "teacher_features").iterdir())) == 2


def test_a_damaged_file_is_computed_again(model, files, tmp_path):
    found = []
    for damaged in (False, True, False):
        teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=0)
        if damaged:
            (path,) = (tmp_path / "cache" / "teacher_features").glob("*.f16")
            path.write_bytes(b"\xff\x7f" * 50 + path.read_bytes()[100:])  # NaN
        found += [teachers.features(images(paths), paths)["resnet"][0] for paths in (files[2:], files[:2])]
        teachers.close()
    assert all(torch.equal(other, found[index % 2]) for index, other in enumerate(found))
    assert model.teachers["resnet"].seen == 5 + 5  # the equal ones twice; the third run computes nothing


@pytest.mark.parametrize("change", ["weights", "transform", "setting"])
def test_whatever_features_depend_on_makes_them_anew(model, files, change):
    transform, settings = TRANSFORM, {}
    cached_teachers(model, digest_files(files), [transform], budget=0).features(images(files), files)
    seen = model.teachers["resnet"].seen
    if change == "weights":
        next(model.teachers["resnet"].parameters()).mul_(1.5)
    elif change == "transform":
        transform = v2.Compose([v2.Resize((64, 64)), v2.Normalize([0.5] * 3, [0.2] * 3)])
    else:
        settings = {"precision": "bf16-mixed"}
    teachers = cached_teachers(model, digest_files(files), [transform], budget=0, **settings)
    found = teachers.features(images(files), files)["resnet"][0]
    assert model.teachers["resnet"].seen == 2 * seen
    torch.testing.assert_close(found, model.teacher_features(images(files))["resnet"][0], rtol=2**-10, atol=1e-6)


def test_a_cache_that_cannot_be_written_costs_a_warning_and_no_more(model, files, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=0)
    for _ in range(2):
        found = teachers.features(images(files), files)["resnet"][0]
        assert torch.equal(found, model.teacher_features(images(files))["resnet"][0])
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING and "cache" in record.message]
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (v2.RandomHorizontalFlip(), "RandomHorizontalFlip"),
        (v2.Compose([v2.Resize(32), v2.Compose([v2.ColorJitter(0.1)])]), "ColorJitter"),
        (v2.GaussianBlur(3), "GaussianBlur"),
        (nn.Dropout(), "Dropout"),
    ],
)
def test_random_augmentations_switch_it_off_and_say_so(model, files, transform, name, caplog):
    with caplog.at_level(logging.INFO):
        assert cached_teachers(model, digest_files(files), [transform, TRANSFORM], budget=1) is None
    assert f"Teachers see every image in every epoch: {name} may change images at random." in caplog.text


def test_serves_under_autocast(model, files):
    teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=1)
    with torch.autocast("cpu"):
        for _ in range(2):
            assert teachers.features(images(files), files)["resnet"][0].isfinite().all()
    assert model.teachers["resnet"].seen == len(files)


def test_without_files_there_is_no_cache(model):
    assert cached_teachers(model, {}, [TRANSFORM], budget=1) is None


def test_an_image_that_was_changed_on_the_way_ends_the_cache(model, files, caplog):
    """By a callback, say, of which neither the file nor the transforms know."""
    cached_teachers(model, digest_files(files), [TRANSFORM], budget=0).features(images(files), files)  # a file
    for budget in (1, 0):
        teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=budget)
        teachers.features(images(files), files)
        caplog.clear()
        for changed in (images(files).flip(-1), images(files) + 0.3):
            found = teachers.features(changed, files)["resnet"][0]
            assert torch.equal(found, model.teacher_features(changed)["resnet"][0])
        assert caplog.text.count("an image is not what it was") == 1


class Reads(TorchDispatchMode):
    """Counts where the host reads a tensor's value, and so would wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def asynchronous(monkeypatch):
    """Treat the CPU as an accelerator."""
    monkeypatch.setattr("anomalib_mixedteacher.components.cached_teachers.is_asynchronous", lambda _: True)


def test_an_accelerator_is_waited_for_once_in_sixteen_batches(model, files, asynchronous):
    teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=1)
    teachers.features(images(files), files)
    reads = []
    for _ in range(32):
        with Reads() as counter:
            teachers.features(images(files), files)
        reads.append(counter.count)
    assert sum(reads) == 2
    assert reads[14] == reads[30] == 1
    assert model.teachers["resnet"].seen == len(files)


def test_an_accelerator_notices_a_changed_image_within_sixteen_batches(model, files, asynchronous, caplog):
    teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=1)
    for _ in range(3):
        teachers.features(images(files), files)
    teachers.features(images(files).flip(-1), files)
    for _ in range(16):
        found = teachers.features(images(files), files)["resnet"][0]  # sound again: the one before is not forgotten
    assert caplog.text.count("an image is not what it was") == 1
    assert torch.equal(found, model.teacher_features(images(files))["resnet"][0])


def test_the_last_batches_of_training_are_checked_too(model, files, asynchronous, caplog):
    teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=1)
    teachers.features(images(files), files)
    teachers.check()
    assert not caplog.records
    teachers.features(images(files) + 0.3, files)
    teachers.check()
    teachers.check()
    assert caplog.text.count("an image is not what it was") == 1


def test_without_a_home_features_stay_in_memory(model, files, monkeypatch, caplog):
    def homeless(_):
        raise CacheError("There is no home directory for it: name another place.")

    monkeypatch.setattr("anomalib_mixedteacher.components.cached_teachers.cache_folder", homeless)
    teachers = cached_teachers(model, digest_files(files), [TRANSFORM], budget=1)
    teachers.features(images(files), files)
    teachers.features(images(files), files)
    assert model.teachers["resnet"].seen == len(files)
    assert "features are kept in memory, or not at all: There is no home directory for it: name" in caplog.text
