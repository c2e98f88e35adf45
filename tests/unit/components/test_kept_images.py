"""Images that are decoded once: the same items, and when they must be read again."""

import copy
import logging
import pickle

import pytest
import torch
from anomalib.data import Folder
from anomalib.data.datasets.image.folder import FolderDataset
from torchvision.transforms import v2

from anomalib_mixedteacher import SyntheticTextures
from anomalib_mixedteacher.components.kept_images import KeptImages, keep_images

RESIZE = v2.Resize((32, 32), antialias=True)
ITEM = 3 * 32 * 32 * 4 + 32 * 32 + 1  # float32 image, uint8 mask, boolean label


@pytest.fixture
def data(image_folder):
    """A datamodule that was set up: 8 training images of 32 pixels, 6 validation images, half of these defective."""
    return folder(image_folder)


def folder(image_folder, augmentations=RESIZE) -> Folder:
    datamodule = Folder(
        "tiny", root=image_folder, normal_dir="good", normal_test_dir="good_test", abnormal_dir="bad", mask_dir="mask",
        num_workers=3, seed=0, train_batch_size=4, augmentations=augmentations,
    )  # fmt: skip
    datamodule.setup()
    return datamodule


def assert_same(found, expected) -> None:
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            assert type(getattr(found, name)) is type(value)
            assert torch.equal(getattr(found, name), value), name
        else:
            assert getattr(found, name) == value, name


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Paths of the images that were read."""
    from anomalib.data.datasets.base import image as module

    found, read = [], module.read_image
    monkeypatch.setattr(module, "read_image", lambda path, *a, **k: found.append(path) or read(path, *a, **k))
    return found


def test_items_are_read_once_and_are_the_same(data, reads):
    expected = {name: list(getattr(data, name)) for name in ("train_data", "val_data")}
    size = ITEM * (len(data.train_data) + len(data.val_data))
    reads.clear()
    kept = keep_images(data, size)
    assert kept.size == size
    assert len(reads) == len(set(reads)) + 2 == len(data.train_data) + len(data.val_data) + 2  # two for an estimate
    reads.clear()
    for _ in range(2):
        for name, items in expected.items():
            for found, item in zip(getattr(data, name), items, strict=True):
                assert_same(found, item)
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch.image[0], expected["val_data"][0].image)
    assert not reads


def test_everything_else_is_the_datamodules_own_and_comes_back(data, reads):
    before = data.train_data, data.val_data, data.test_data
    kept = keep_images(data, 10**8)
    assert data.num_workers == 0
    assert data.train_dataloader().num_workers == 0
    for name, dataset in zip(("train_data", "val_data"), before, strict=False):
        now = getattr(data, name)
        assert isinstance(now, KeptImages)
        assert len(now) == len(dataset)
        assert now.samples is dataset.samples
        assert now.augmentations is dataset.augmentations
        assert (now.name, now.task, now.category) == (dataset.name, dataset.task, dataset.category)
    assert data.test_data is before[2]
    held = data.train_data
    kept.release()
    assert (data.train_data, data.val_data, data.test_data) == before
    assert data.num_workers == 3
    reads.clear()
    assert_same(held[0], before[0][0])
    assert len(reads) == 2


def test_changing_an_item_changes_nothing(data):
    expected = data.train_data[0]
    keep_images(data, 10**8)
    data.train_data[0].image.fill_(7)
    assert_same(data.train_data[0], expected)


def test_can_be_copied(data):
    expected = data.train_data[1]
    keep_images(data, 10**8)
    for other in (copy.deepcopy(data.train_data), pickle.loads(pickle.dumps(data.train_data))):
        assert_same(other[1], expected)
    with pytest.raises(AttributeError):
        _ = data.train_data.no_such_attribute


def test_beyond_the_budget_images_are_read_in_every_epoch(data, reads, caplog):
    before = data.train_data
    size = ITEM * (len(data.train_data) + len(data.val_data))
    with caplog.at_level(logging.INFO):
        assert keep_images(data, size - 1) is None
    assert caplog.messages == ["Images are read in every epoch: they take 1 MB, of 1 MB."]
    assert data.train_data is before
    assert data.num_workers == 3
    assert len(reads) == 2


class Noisy(FolderDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)


@pytest.mark.parametrize("reason", ["RandomHorizontalFlip", "Noisy"])
def test_what_may_change_is_read_in_every_epoch(image_folder, reason, caplog):
    data = folder(image_folder, v2.Compose([RESIZE, v2.RandomHorizontalFlip()]) if reason != "Noisy" else RESIZE)
    if reason == "Noisy":
        data.val_data.__class__ = Noisy
    before = data.train_data
    with caplog.at_level(logging.INFO):
        assert keep_images(data, 10**8) is None
    assert caplog.messages == [f"Images are read in every epoch: {reason} may change them at random."]
    assert data.train_data is before


def test_the_packages_own_data_sets(tmp_path):
    data = SyntheticTextures(tmp_path, image_size=64, num_train=3, num_test_good=2, num_defects_per_kind=1)
    data.prepare_data()
    data.setup()
    expected = data.train_data[2]
    assert keep_images(data, 10**9) is not None
    assert_same(data.train_data[2], expected)
