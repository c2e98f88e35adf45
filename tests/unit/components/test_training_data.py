"""Training images: checked, identified and sampled."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from anomalib_mixedteacher.components.training_data import check_training_images, is_deterministic, sample_batches
from anomalib_mixedteacher.errors import DataError


@pytest.fixture
def train(make_data, image_folder, tmp_path):
    """Build the training data of a folder of eight images; ``change`` may change the folder first."""

    def build(change=lambda folder: None):
        shutil.copytree(image_folder / "good", tmp_path / "good")
        change(tmp_path / "good")
        data = make_data(root=tmp_path, normal_test_dir=None, abnormal_dir=None, mask_dir=None, test_split_mode="none",
                         val_split_mode="none")  # fmt: skip
        data.setup()
        return data

    return build


def test_images_are_known_by_their_content_whatever_their_names(train, image_folder):
    contents = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in (image_folder / "good").iterdir())
    renamed = train(lambda folder: (folder / "0.png").rename(folder / "last.png"))
    found = check_training_images(renamed.train_data)
    assert found["images"] == 8
    assert found["sha256"] == hashlib.sha256("".join(contents).encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n but no more", r"Cannot read the image .*0\.png .*: replace the file or remove it"),
        (Image.new("RGB", (64, 20)), r"0\.png is 64 x 20 pixels, smaller than 32 pixels on a side: remove it"),
    ],
)
def test_a_bad_image_is_named(train, content, message):
    def spoil(folder):
        (folder / "0.png").write_bytes(content) if isinstance(content, bytes) else content.save(folder / "0.png")

    with pytest.raises(DataError, match=message):
        check_training_images(train(spoil).train_data)


def test_an_image_that_shows_nothing_is_named_and_used(train, caplog):
    """A covered camera among good images, or anomalib's own dummy data."""
    data = train(lambda folder: Image.new("RGB", (96, 96), (9, 80, 7)).save(folder / "0.png")).train_data
    assert check_training_images(data)["images"] == 8
    assert [message.split()[0] for message in caplog.messages] == [str(data.samples.image_path[0])]
    assert "one value in all its pixels" in caplog.text


def test_one_image_is_too_few():
    with pytest.raises(DataError, match="1 training image is too few .*: give at least 2, better 50, or hold fewer"):
        check_training_images([0])
    found = check_training_images([0, 0])
    assert (found["images"], found["sha256"]) == (2, None)  # of a data set that names no files


def test_samples_are_spread_evenly_and_the_same_each_time(train):
    data = train()
    names = [str(path) for path in data.train_data.samples.image_path]
    found = [[path for batch in sample_batches(data.train_dataloader(), count) for path in batch.image_path]
             for count in (3, 3, 100)]  # fmt: skip
    assert found == [[names[0], names[4], names[7]]] * 2 + [names]
    batch = next(iter(sample_batches(data.train_dataloader(), 3)))
    assert batch.image.shape == (3, 3, 96, 96)
    assert torch.equal(batch.image[0], data.train_data[0].image)


def test_only_transforms_known_to_be_deterministic_are():
    fixed = v2.Compose([v2.Resize((8, 8)), v2.Compose([v2.Normalize([0.5], [0.5])])])
    assert is_deterministic(None)
    assert is_deterministic(fixed)
    assert not is_deterministic(v2.Compose([fixed, v2.RandomHorizontalFlip()]))
    assert not is_deterministic(v2.Lambda(lambda image: image + np.random.rand()))  # noqa: NPY002
    assert not is_deterministic(type("Resize", (v2.Resize,), {})((8, 8)))  # which may do more
