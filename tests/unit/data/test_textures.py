"""Textures and their defects: exact masks, determinism, and the range of the pixels."""

import numpy as np
import pytest

from anomalib_mixedteacher.data.defects import DEFECTS
from anomalib_mixedteacher.data.synthetic_textures import render
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
    assert 0 <= image.min() < image.max() <= 1
    assert image.std() > 0.03  # more than the sensor noise


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_a_category_vary_but_share_their_colour(family):
    first, second = texture(family, 1, 128).photograph(), texture(family, 2, 128).photograph()
    assert np.abs(first - second).mean() > 0.02
    assert np.abs(first.mean((0, 1)) - second.mean((0, 1))).max() < 0.08
    other = FAMILIES[family](SIZE, np.random.default_rng(5), np.random.default_rng(1))
    assert np.abs(other.surface - texture(family).surface).mean() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_mask_is_exact(family, defect):
    for seed, size in enumerate((SIZE, SIZE, 256)):
        good = texture(family, seed, size)
        surface, mask = DEFECTS[defect](good, np.random.default_rng(seed))
        before, after = good.photograph(), good.photograph(surface)
        assert mask.dtype == bool
        assert 4 <= mask.sum() < 0.3 * size**2
        np.testing.assert_array_equal(after[~mask], before[~mask])
        # visible after rounding to 8 bits too
        assert (np.abs(after - before).max(-1)[mask] > 2 / 255).mean() > 0.6
        assert 0 <= surface.min() < surface.max() <= 1


@pytest.mark.parametrize("family", ["weave", "grid"])
def test_missing_thread_is_one_thread(family):
    good = texture(family, 0, 128)
    _, mask = DEFECTS["missing_thread"](good, np.random.default_rng(0))
    assert len(np.unique(np.floor(good.threads[mask]))) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_render_depends_on_each_argument(family):
    first = render(family, SIZE, 0, "test", "stain", 0)
    again = render(family, SIZE, 0, "test", "stain", 0)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for arguments in (
        (1, "test", "stain", 0),
        (0, "test", "hole", 0),
        (0, "test", "stain", 1),
        (0, "train", "good", 0),
    ):
        assert (render(family, SIZE, *arguments)[0] != first[0]).any()


@pytest.mark.parametrize(
    ("family", "mean", "deviation", "pixels"),
    [
        ("weave", 0.43046, 0.11112, 129),
        ("grain", 0.50719, 0.12943, 158),
        ("grid", 0.48527, 0.25536, 97),
        ("cells", 0.34009, 0.14639, 224),
        ("speckle", 0.61492, 0.13982, 56),
    ],
)
def test_images_stay_what_they_are(family, mean, deviation, pixels):
    """Figures of the demo and of the documentation depend on them: raise GENERATOR_VERSION where they change."""
    image, mask = render(family, SIZE, 0, "test", "stain", 0)
    assert (image.mean(dtype=float), image.std(dtype=float)) == pytest.approx((mean, deviation), abs=1e-4)
    assert mask.sum() == pixels


@pytest.mark.parametrize("family", FAMILIES)
def test_a_larger_image_shows_more_not_larger(family):
    small, large = texture(family, size=256), texture(family, size=512)
    assert small.pitch == large.pitch
    areas = {
        size: [render(family, size, 0, "test", "hole", index)[1].sum() for index in range(8)] for size in (256, 512)
    }
    assert 0.5 < np.mean(areas[512]) / np.mean(areas[256]) < 2
