"""Images and masks that cannot be used are named; folders appear when they are whole."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anomalib_mixedteacher.data.base import CheckedDataset, folder_in_progress, load_mask
from anomalib_mixedteacher.errors import DataError


@pytest.fixture
def dataset(tmp_path) -> CheckedDataset:
    """A good image and a defective one of 40 x 36 pixels, with its mask."""
    rows = []
    for label in ("good", "hole"):
        path, mask = tmp_path / f"{label}.png", tmp_path / f"{label}_mask.png"
        Image.new("RGB", (40, 36), (200, 100, 0)).save(path)
        values = np.zeros((36, 40), np.uint8)
        values[5:10, 5:9], values[10, 5:9] = 128, 127
        Image.fromarray(values).save(mask)
        defective = label != "good"
        rows.append((str(path), label, int(defective), str(mask) if defective else "", "test"))
    samples = pd.DataFrame(rows, columns=["image_path", "label", "label_index", "mask_path", "split"])
    samples.attrs["task"] = "segmentation"
    return CheckedDataset(samples)


def test_items_have_images_in_unit_range_and_masks_cut_at_half_scale(dataset):
    good, hole = dataset
    assert good.image.shape == (3, 36, 40)
    torch.testing.assert_close(good.image[:, 0, 0], torch.tensor([200, 100, 0]) / 255)
    assert (int(good.gt_label), int(hole.gt_label)) == (0, 1)
    assert not good.gt_mask.any()
    expected = torch.zeros(36, 40, dtype=torch.uint8)
    expected[5:10, 5:9] = 1
    assert torch.equal(hole.gt_mask, expected)
    assert (good.mask_path, hole.mask_path) == (None, str(dataset.samples.mask_path[1]))
    assert dataset.collate_fn([good, hole]).gt_mask.shape == (2, 36, 40)


def test_a_mask_that_does_not_fit_is_refused_with_both_shapes(dataset):
    Image.new("L", (36, 40)).save(dataset.samples.mask_path[1])
    with pytest.raises(DataError, match="mask .*hole_mask.png is 36 x 40 pixels but its image is 40 x 36: provide"):
        dataset[1]


def test_a_mask_is_turned_as_its_file_says(tmp_path):
    stored = np.zeros((36, 40), np.uint8)
    stored[0, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(stored).save(tmp_path / "mask.png", exif=exif)
    assert torch.equal(load_mask(tmp_path / "mask.png", (40, 36)), torch.from_numpy(np.rot90(stored, -1) // 255))


def test_a_mask_may_have_as_many_pixels_as_an_image(tmp_path, monkeypatch):
    Image.new("L", (50, 40), 255).save(tmp_path / "mask.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert load_mask(tmp_path / "mask.png", (40, 50)).all()


def test_unreadable_and_tiny_files_are_named(dataset):
    image, mask = (Path(dataset.samples[column][1]) for column in ("image_path", "mask_path"))
    pixels = image.read_bytes()
    for content in (pixels[: len(pixels) // 2], b"no image"):
        image.write_bytes(content)
        with pytest.raises(DataError, match=r"Cannot read the image .*hole.png.*replace the file"):
            dataset[1]
    Image.new("RGB", (48, 31)).save(image)
    with pytest.raises(DataError, match="48 x 31 pixels, smaller than 32 pixels"):
        dataset[1]
    image.write_bytes(pixels)
    mask.write_bytes(mask.read_bytes()[:20])
    with pytest.raises(DataError, match=r"Cannot read the mask .*hole_mask.png"):
        dataset[1]


def test_an_interruption_leaves_nothing(tmp_path):
    def write():
        with folder_in_progress(tmp_path / "a" / "b") as work:
            (work / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list((tmp_path / "a").iterdir()) == []


def test_the_first_process_to_finish_provides_the_folder(tmp_path):
    with folder_in_progress(tmp_path / "a") as late:
        (late / "late").touch()
        with folder_in_progress(tmp_path / "a") as early:
            (early / "early").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "early"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=r"Cannot write images to .*file/a \(.+\): set root="),
        folder_in_progress(tmp_path / "file" / "a"),
    ):
        pass
