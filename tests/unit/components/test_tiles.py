"""Tiles that are drawn for training."""

from collections import Counter

import torch

from anomalib_mixedteacher.components.tiles import draw
from mixedteacher_edge.tiling import Tiling

TILING = Tiling(64)


def test_the_border_is_learnt_like_the_middle():
    torch.manual_seed(0)
    seen: Counter[int] = Counter()
    for _ in range(500):
        for place in draw(64, 640, 4, TILING):
            seen.update(range(place.left, place.left + 64))
    assert min(seen[pixel] for pixel in range(640)) > 0.5 * seen[320]
    assert max(seen.values()) < 2 * seen[320]


def test_tiles_of_a_draw_differ_and_are_no_more_than_there_are():
    torch.manual_seed(0)
    places = draw(96, 64, 8, TILING)
    assert sorted((place.top, place.left) for place in places) == [(top, 0) for top in (0, 8, 16, 24, 32)]
    assert len(draw(64, 64, 8, TILING)) == 1
