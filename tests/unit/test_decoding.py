"""Images as anomalib's data sets read them."""

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_mixedteacher.decoding import check_bits, check_image, check_mask, read_image
from anomalib_mixedteacher.errors import ConfigurationError, DataError
from mixedteacher_edge.decoding import to_rgb

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 50, 3), np.uint8)
GREY16 = RNG.integers(0, 65536, (40, 50), np.uint16)
FLOAT = (RGB[..., 0] / 255).astype(np.float32)


@pytest.mark.parametrize(("values", "name"), [(RGB, "i.png"), (GREY16, "i.png"), (FLOAT, "i.tif")])
def test_read_as_beside_the_camera(tmp_path, values, name):
    Image.fromarray(values).save(tmp_path / name)
    check_image(tmp_path / name)
    rgb = to_rgb(tmp_path / name)
    expected = rgb / np.float32(255) if rgb.dtype == np.uint8 else rgb
    tensor = read_image(tmp_path / name, as_tensor=True)
    torch.testing.assert_close(tensor.as_subclass(torch.Tensor), torch.from_numpy(expected).permute(2, 0, 1))
    assert tensor.is_contiguous()
    array = read_image(tmp_path / name)
    assert array.dtype == np.float64
    np.testing.assert_allclose(array, expected, atol=1e-7)


def test_8_bits_as_anomalib_reads_them(tmp_path):
    from anomalib.data.utils import image

    theirs = getattr(image.read_image, "__wrapped__", image.read_image)
    Image.fromarray(RGB).save(tmp_path / "i.png")
    for as_tensor in (False, True):
        assert (read_image(tmp_path / "i.png", as_tensor) == theirs(tmp_path / "i.png", as_tensor)).all()


def test_a_covered_camera_is_named(tmp_path, caplog):
    Image.new("RGB", (40, 50), (3, 200, 9)).save(tmp_path / "flat.png")
    check_image(tmp_path / "flat.png")
    assert "flat.png has one value in all its pixels" in caplog.text


@pytest.mark.parametrize(("kind", "size"), [("jpg", (50, 40)), ("tif", (50, 40))])
def test_masks_are_drawn_on_the_upright_image(tmp_path, kind, size):
    picture = Image.fromarray(RGB)  # 50 wide, 40 high as it lies
    picture.getexif()[0x0112] = 6
    picture.save(tmp_path / f"i.{kind}", exif=picture.getexif())
    assert read_image(tmp_path / f"i.{kind}", as_tensor=True).shape == (3, 50, 40)
    Image.new("L", (40, 50)).save(tmp_path / "upright.png")
    Image.new("L", (50, 40)).save(tmp_path / "lying.png")
    check_mask(tmp_path / f"i.{kind}", tmp_path / "upright.png")
    with pytest.raises(DataError, match="lying.png is 50 x 40 pixels, its image 40 x 50: draw it on the image"):
        check_mask(tmp_path / f"i.{kind}", tmp_path / "lying.png")


def test_anomalib_reads_masks_of_any_size_and_upright(tmp_path, monkeypatch):
    """What ``Folder`` calls; a line scan's mask has as many pixels as its image."""
    from anomalib.data.datasets.base import image as dataset

    drawn = (RGB[..., 0] > 100) * np.uint8(90)
    picture = Image.fromarray(drawn)
    picture.getexif()[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture.save(tmp_path / "mask.png", exif=picture.getexif())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow refuses twice as many
    mask = dataset.read_mask(str(tmp_path / "mask.png"), as_tensor=True)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask.as_subclass(torch.Tensor), torch.from_numpy(np.rot90(drawn, -1) // 90))
    assert (dataset.read_mask(tmp_path / "mask.png") == np.rot90(drawn, -1)).all()
    (tmp_path / "mask.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Cannot read the mask .*mask.png .*: replace the file"):
        dataset.read_mask(tmp_path / "mask.png")


def test_a_damaged_mask_is_named(tmp_path):
    Image.new("L", (40, 50)).save(tmp_path / "image.png")
    (tmp_path / "mask.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Cannot read .*mask.png .*: replace the file, or remove it"):
        check_mask(tmp_path / "image.png", tmp_path / "mask.png")


def test_a_model_reads_with_the_bits_that_it_was_trained_with(monkeypatch):
    check_bits(None)
    check_bits({"images": 3})
    with pytest.raises(ConfigurationError, match="of 12 bits: set the environment variable MIXEDTEACHER_BITS=12"):
        check_bits({"bits": 12})
    monkeypatch.setenv("MIXEDTEACHER_BITS", "12")
    check_bits({"bits": 12})
    with pytest.raises(ConfigurationError, match="images of 16 bits"):
        check_bits({"images": 3})
