"""Errors of others that a user can mend."""

import pytest
import torch
from anomalib.data import Folder
from PIL import Image
from torch import nn

from anomalib_mixedteacher.errors import sentence


def test_a_single_value_for_batch_normalisation():
    with pytest.raises(ValueError, match="more than 1 value") as info:
        nn.BatchNorm2d(2)(torch.zeros(1, 2, 1, 1))
    assert "choose a batch size that leaves no single image over" in sentence(info.value)
    assert sentence(ValueError("anything else")) is None


@pytest.mark.parametrize(
    ("name", "reason"), [("Prüfbilder", "path contains non-printable characters"), ("a/" * 300, "path is too long")]
)
def test_a_path_that_anomalib_cannot_read(tmp_path, name, reason):
    with pytest.raises(ValueError, match="Path ") as info:
        Folder("tiny", root=tmp_path / name, normal_dir="good").setup()
    assert f"{name.rstrip('/')}/good' ({reason}): move the data to a shorter path of ASCII" in sentence(info.value)


def test_too_few_images_for_anomalibs_splits(tmp_path):
    (tmp_path / "good").mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / "good" / f"{index}.png")
    with pytest.raises(ValueError, match="not enough values to unpack") as info:
        Folder("tiny", root=tmp_path, normal_dir="good").setup()
    assert "too few images to set some aside for test and validation: add images, or set none" in sentence(info.value)
    assert sentence(ValueError("not enough values to unpack (expected 2, got 0)")) is None


def test_no_validation_images(tmp_path):
    (tmp_path / "good").mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / "good" / f"{index}.png")
    data = Folder("tiny", root=tmp_path, normal_dir="good", test_split_mode="none", val_split_mode="none")
    data.setup()
    with pytest.raises(AttributeError) as info:
        data.val_dataloader()
    assert "There are no validation images: set some of the training images aside (--data.val_" in sentence(info.value)
