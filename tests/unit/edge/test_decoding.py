"""Images of every accepted kind, and each one that is refused."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import resize

from mixedteacher_edge import decoding
from mixedteacher_edge.decoding import to_rgb
from mixedteacher_edge.errors import ConfigurationError, DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 50, 3), np.uint8)
GREY16 = RNG.integers(0, 65536, (40, 50), np.uint16)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def saved(folder: Path, content: bytes, name: str = "image.png") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def assert_rgb(result, expected, dtype):
    assert result.dtype == dtype
    assert result.flags.c_contiguous
    assert np.array_equal(result, expected)


def test_every_kind_of_an_8_bit_image(tmp_path):
    picture = Image.fromarray(RGB)
    path = saved(tmp_path, encoded(picture))
    for image in (path, str(path), path.read_bytes(), picture, RGB, RGB.copy(order="F"), RGB[:, ::-1][:, ::-1]):
        assert_rgb(to_rgb(image), RGB, np.uint8)
    assert np.shares_memory(to_rgb(RGB), RGB)


def test_grey_is_repeated():
    expected = np.stack([RGB[..., 0]] * 3, axis=-1)
    for image in (RGB[..., 0], RGB[..., :1], Image.fromarray(RGB[..., 0])):
        assert_rgb(to_rgb(image), expected, np.uint8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1"])
def test_modes_are_converted_as_pillow_does_strip_by_strip(mode, monkeypatch):
    monkeypatch.setattr(decoding, "_STRIP", 7 * 50)
    picture = Image.fromarray(RGB).convert(mode)
    assert_rgb(to_rgb(picture), np.asarray(picture.convert("RGB")), np.uint8)


def test_alpha_is_dropped_as_pillow_drops_it():
    rgba = RNG.integers(0, 256, (40, 50, 4), np.uint8)
    dropped = np.asarray(Image.fromarray(rgba).convert("RGB"))
    assert_rgb(to_rgb(rgba), dropped, np.uint8)
    assert_rgb(to_rgb(encoded(Image.fromarray(rgba))), dropped, np.uint8)


@pytest.mark.parametrize(("kind", "name"), [("PNG", "i.png"), ("TIFF", "i.tif"), ("PPM", "i.pgm")])
def test_16_bit_files_keep_their_range(tmp_path, kind, name):
    expected = np.repeat((GREY16.astype(np.float64) / 65535).astype(np.float32)[..., None], 3, axis=-1)
    picture = Image.fromarray(GREY16)
    path = saved(tmp_path, encoded(picture, kind), name)
    for image in (path, path.read_bytes(), picture, GREY16, GREY16.astype(">u2")):
        assert_rgb(to_rgb(image), expected, np.float32)


def test_12_bits_in_16(monkeypatch):
    values = GREY16 // 16
    expected = np.repeat((values / 4095).astype(np.float32)[..., None], 3, axis=-1)
    for image in (values, encoded(Image.fromarray(values)), values.astype(np.int16)):
        assert_rgb(to_rgb(image, bits=12), expected, np.float32)
    monkeypatch.setenv("MIXEDTEACHER_BITS", "12")
    assert_rgb(to_rgb(values), expected, np.float32)
    assert_rgb(to_rgb(RGB), RGB, np.uint8)
    with pytest.raises(DataError, match="has values from 0 to 4096, not 0 to 4095: give the camera's bits"):
        to_rgb(np.array([[0, 4096]], np.uint16).repeat(40, 0).repeat(20, 1))
    with pytest.raises(ConfigurationError, match="use 9 to 16 bits, not 120: mend --bits or the variable"):
        to_rgb(values, bits=120)
    monkeypatch.setenv("MIXEDTEACHER_BITS", "twelve")
    with pytest.raises(ConfigurationError, match="variable MIXEDTEACHER_BITS is 'twelve': give a number, or remove"):
        to_rgb(values)


def signed_tiff(values: np.ndarray) -> bytes:
    content = encoded(Image.fromarray(values.astype(np.uint16)), "TIFF", tiffinfo={339: 2})
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "I"
    return content


def test_signed_16_bits():
    values = GREY16 // 2
    expected = np.repeat((values / 32767).astype(np.float32)[..., None], 3, axis=-1)
    assert_rgb(to_rgb(signed_tiff(values)), expected, np.float32)
    with pytest.raises(DataError, match="has values from -1 to "):
        to_rgb(signed_tiff(np.where(values > 100, values, -1)))


def test_further_pages_are_told_once(tmp_path, caplog):
    images = [Image.fromarray(values) for values in (RGB, 255 - RGB)]
    path = saved(tmp_path, encoded(images[0], "TIFF", save_all=True, append_images=images[1:]), "pages.tif")
    for _ in range(2):
        assert_rgb(to_rgb(path), RGB, np.uint8)
    assert caplog.messages == [f"{path} has several pages, of which the first is taken."]
    assert decoding.pages(path) == 2
    assert_rgb(to_rgb(decoding.read_page(path, 2)), 255 - RGB, np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("values", [RGB, GREY16], ids=["RGB", "16 bits"])
def test_exif_turns_an_image_upright(tmp_path, orientation, kind, values):
    picture = Image.fromarray(values)
    picture.getexif()[0x0112] = orientation
    path = saved(tmp_path, encoded(picture, kind, exif=picture.getexif()), f"turned.{kind.lower()}")
    with Image.open(path) as image:
        expected = to_rgb(np.asarray(ImageOps.exif_transpose(image)))
        assert np.array_equal(to_rgb(image), expected)
    assert_rgb(to_rgb(path), expected, expected.dtype)


def test_more_pixels_than_the_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow refuses twice as many
    path = saved(tmp_path, encoded(Image.fromarray(RGB), "TIFF"), "scan.tif")
    assert_rgb(to_rgb(path), RGB, np.uint8)
    assert Image.MAX_IMAGE_PIXELS == 500
    assert_rgb(to_rgb(path, max_pixels=2000), RGB, np.uint8)
    with pytest.raises(DataError, match=r"scan.tif has 0.0 megapixels, and the limit is 0.001999: raise it"):
        to_rgb(path, max_pixels=1999)
    monkeypatch.setenv("MIXEDTEACHER_MAX_PIXELS", "1999")
    with pytest.raises(DataError, match="environment variable MIXEDTEACHER_MAX_PIXELS"):
        to_rgb(path)


@pytest.mark.parametrize("values", [RGB, (RGB / 255).astype(np.float32)], ids=["uint8", "float32"])
@pytest.mark.parametrize("size", [(16, 12), (40, 50), (60, 9)])
def test_shrinking_as_the_graph_does(monkeypatch, values, size):
    """Against torchvision in float64."""
    monkeypatch.setattr(decoding, "_STRIP", 7 * 50)
    images = torch.from_numpy(values.astype(np.float64) / (255 if values.dtype == np.uint8 else 1)).permute(2, 0, 1)
    expected = resize(images, list(size), antialias=True).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(decoding.shrink(values, size), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point(dtype):
    image = (RGB / 255).astype(dtype)
    assert_rgb(to_rgb(image), image.astype(np.float32), np.float32)
    grey = (RGB[..., 0] / 255).astype(np.float32)
    assert_rgb(to_rgb(encoded(Image.fromarray(grey), "TIFF")), np.stack([grey] * 3, axis=-1), np.float32)


@pytest.mark.parametrize("value", [-0.01, 1.01, 200.0, np.nan, np.inf])
def test_floating_point_out_of_range(value):
    image = np.zeros((40, 50, 3))
    image[3, 4, 1] = value
    with pytest.raises(DataError, match=r"not in \[0, 1\]: divide them by their range"):
        to_rgb(image)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((40, 50, 2), np.uint8), r"has the shape \(40, 50, 2\): give height and width, then 1, 3 or 4"),
        (np.zeros((1, 40, 50, 3), np.uint8), r"has the shape \(1, 40, 50, 3\)"),
        (np.zeros(40, np.uint8), r"has the shape \(40,\)"),
        (np.zeros((40, 50), np.int32), "values of type int32: give uint8, uint16, or floating-point"),
        (np.zeros((40, 50), bool), "values of type bool"),
        (np.zeros((31, 50), np.uint8), r"\(ndarray\) is 50 x 31 pixels, smaller than 32 pixels on a side"),
        (Image.new("L", (31, 50)), r"\(Image\) is 31 x 50 pixels"),
        (Image.fromarray(GREY16.astype(np.int32)), "32-bit integers as values, of a range that is not known: save it"),
        (b"no image", r"Cannot read the image \(bytes\) \(not a known image format\): replace the file or remove it"),
        (encoded(Image.fromarray(RGB))[:900], r"Cannot read the image \(bytes\)"),
        (Path("nowhere.png"), "There is no image nowhere.png: check the path"),
        ([1, 2], "An image cannot be a list: give a path, bytes, a Pillow image or a numpy array"),
    ],
)
def test_refused(image, sentence):
    with pytest.raises(DataError, match=sentence) as info:
        to_rgb(image)
    assert "\n" not in str(info.value)


def test_files_are_named(tmp_path):
    broken = saved(tmp_path, encoded(Image.fromarray(RGB), "JPEG")[:500], "broken.jpg")
    for image in (broken, str(broken), tmp_path):
        with pytest.raises(DataError, match=f"Cannot read the image {re.escape(str(image))} "):
            to_rgb(image)
    with pytest.raises(DataError, match="Cannot read the image left "):
        to_rgb(b"", "left")
    small = saved(tmp_path, encoded(Image.new("L", (8, 9))), "small.png")
    with pytest.raises(DataError, match="small.png is 8 x 9 pixels"), Image.open(small) as picture:
        to_rgb(picture)
