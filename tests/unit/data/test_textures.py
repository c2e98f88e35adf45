"""Textures and their defects: exact masks, determinism, and the range of the pixels."""

import numpy as np
import pytest

from anomalib_mixedteacher.data._generate import render
from anomalib_mixedteacher.data.defects import DEFECTS
from anomalib_mixedteacher.data.textures import FAMILIES, Texture

SIZE = 64


def texture(family: str, image_seed: int = 1, size: int = SIZE) -> Texture:
    return FAMILIES[family](size, np.random.default_rng(0), np.random.default_rng(image_seed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 65])
def test_photograph_is_a_float_image_with_structure(family, size):
    image = texture(family, size=size).photograph()
    assert image.shape == (size, size, 3)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    # More than the sensor noise.
    assert image.std() > 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_a_category_vary_but_share_their_colour(family):
    first, second = texture(family, 1, 128).photograph(), texture(family, 2, 128).photograph()
    assert np.abs(first - second).mean() > 0.02
    assert np.abs(first.mean((0, 1)) - second.mean((0, 1))).max() < 0.08


@pytest.mark.parametrize("family", FAMILIES)
def test_appearance_follows_the_seed(family):
    other = FAMILIES[family](SIZE, np.random.default_rng(5), np.random.default_rng(1))
    assert np.abs(other.surface - texture(family).surface).mean() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("size", [SIZE, 256])
def test_mask_is_exact(family, defect, size):
    for seed in range(3 if size == SIZE else 1):
        good = texture(family, seed, size)
        surface, mask = DEFECTS[defect](good, np.random.default_rng(seed))
        before, after = good.photograph(), good.photograph(surface)
        assert mask.dtype == bool
        assert mask.shape == (size, size)
        assert 4 <= mask.sum() < 0.3 * size**2
        np.testing.assert_array_equal(after[~mask], before[~mask])
        # Visible after rounding to 8 bits too.
        changed = np.abs(after - before).max(-1)[mask] > 2 / 255
        assert changed.mean() > 0.6
        assert surface.min() >= 0
        assert surface.max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_defect_differs_more_than_good_images_do_in_brightness(family):
    good = texture(family, 3, 128)
    surface, mask = DEFECTS["hole"](good, np.random.default_rng(0))
    assert good.photograph(surface)[mask].mean() < 0.85 * good.photograph()[mask].mean()


@pytest.mark.parametrize("family", ["weave", "grid"])
def test_missing_thread_uncovers_what_lies_beneath_along_one_thread(family):
    good = texture(family, 0, 128)
    surface, mask = DEFECTS["missing_thread"](good, np.random.default_rng(0), contrast=(1.0, 1.0))
    np.testing.assert_allclose(surface[mask], good.bare[mask], atol=1e-6)
    assert len(np.unique(np.floor(good.threads[mask]))) == 1


def test_ranges_of_size_are_followed():
    good = texture("speckle", 0, 128)
    small = DEFECTS["stain"](good, np.random.default_rng(0), size=(0.05, 0.05))[1].sum()
    large = DEFECTS["stain"](good, np.random.default_rng(0), size=(0.2, 0.2))[1].sum()
    assert large > 8 * small


@pytest.mark.parametrize("family", FAMILIES)
def test_render_depends_on_each_argument(family):
    first = render(family, SIZE, 0, "test", "stain", 0)
    again = render(family, SIZE, 0, "test", "stain", 0)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for arguments in ((1, "test", "stain", 0), (0, "test", "hole", 0), (0, "test", "stain", 1), (0, "test", None, 0)):
        assert (render(family, SIZE, *arguments)[0] != first[0]).any()
    assert (render(family, SIZE, 0, "train", None, 0)[0] != render(family, SIZE, 0, "test", None, 0)[0]).any()
