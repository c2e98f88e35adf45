"""Cutting and joining, against maps that do not depend on the cut."""

import numpy as np
import pytest

from mixedteacher_edge.errors import ConfigurationError
from mixedteacher_edge.tiling import Mosaic, Tiling, cut, web_profile

SHAPES = [(70, 50), (64, 64), (65, 67), (64, 333), (300, 64), (257, 261), (112, 113)]


def pooled(pixels):
    """Means of 4 x 4 pixels, the image mirrored at its end, (ceil(H / 4), ceil(W / 4)) float64."""
    height, width = (-(-side // 4) * 4 for side in pixels.shape[:2])
    padded = np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)), "symmetric")
    return padded.reshape(height // 4, 4, width // 4, 4, -1).astype(np.float64).mean((1, 3, 4))


def joined(blocks, width, tile_map, tiling=None):
    tiling = tiling or Tiling(64)
    mosaic = Mosaic(width, tiling)
    lines = [mosaic.add(place, tile_map(tile).astype(np.float32)) for place, tile in cut(blocks, tiling)]
    return np.concatenate([*lines, mosaic.rest()])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at_once", [1, 50, 1000])
def test_the_joined_map_is_that_of_the_whole_image(shape, at_once):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    blocks = (image[start : start + at_once] for start in range(0, shape[0], at_once))
    np.testing.assert_allclose(joined(blocks, shape[1], pooled), pooled(image), rtol=1e-6)


def test_the_border_of_a_tile_counts_at_the_border_of_the_image_only():
    ring = np.full((16, 16), 9.0)
    ring[1:-1, 1:-1] = 1  # the outer sixteenth of a tile
    found = joined([np.zeros((300, 500, 1))], 500, lambda _: ring)
    expected = np.full((75, 125), 9.0)
    expected[1:-1, 1:-1] = 1
    assert np.array_equal(found, expected)


def test_one_map_fades_into_the_next_over_an_eighth():
    values = iter([1.0, 2.0])
    found = joined([np.zeros((64, 112, 1))], 112, lambda _: np.full((16, 16), next(values)))
    expected = np.concatenate([np.ones(13), [1.25, 1.75], np.full(13, 2.0)])  # the overlap is 12 to 15
    np.testing.assert_allclose(found, np.tile(expected, (16, 1)), rtol=1e-6)


def test_tiles_come_as_soon_as_their_lines_have_come():
    read = []

    def lines():
        for number in range(200):
            read.append(number)
            yield np.zeros((1, 64, 1))

    at = {place.top: len(read) for place, _ in cut(lines(), Tiling(64))}
    assert at == {0: 64, 48: 112, 96: 160, 136: 200}


def test_a_profile_is_what_good_images_reach_nearby_and_its_median_at_least():
    rng = np.random.default_rng(0)
    maps = [rng.random((rows, 60), np.float32) / 10 for rows in (30, 51)]
    for single in maps:
        single[:, 20] += 5
    found = web_profile(maps, Tiling(64))
    levels = np.quantile(np.concatenate(maps).astype(np.float64), 0.99, axis=0)
    nearby = np.array([levels[max(0, x - 4) : x + 5].max() for x in range(60)])  # an overlap is 16 pixels
    np.testing.assert_allclose(found, np.maximum(nearby, np.median(nearby)), rtol=1e-6)
    assert (found[16:25] > 5).all()
    assert found.min() == pytest.approx(np.median(nearby))
    assert (web_profile([np.zeros((4, 20), np.float32)], Tiling(64)) > 0).all()


def test_samples_of_many_images_reach_everywhere():
    tiling = Tiling(64)
    places = tiling.places(300, 500)
    seen = {place for number in range(200) for place in tiling.sample(300, 500, 1, number)}
    assert seen == set(places)
    some = tiling.sample(300, 500, 5, 3)
    assert len(set(some)) == 5
    assert set(tiling.sample(300, 500, 1000, 7)) == set(places)


@pytest.mark.parametrize("size", [0, 32, 100, -64])
def test_sizes_that_cannot_be_joined_are_refused(size):
    with pytest.raises(ConfigurationError, match=f"tile_size must be a multiple of 64, such as 256, not {size}"):
        Tiling(size)
