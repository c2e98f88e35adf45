"""The cache of teacher features, with a teacher that counts."""

import pytest
import torch

from anomalib_mixedteacher.components.training_data import FeatureCache

MIB = 2**20


class Counting:
    """A teacher of two maps that notes the images it sees."""

    def __init__(self, side: int = 4) -> None:
        self.seen: list[float] = []
        self.side = side

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        values = images.mean(dim=(1, 2, 3))
        self.seen += values.tolist()
        ramp = torch.linspace(0, 1, self.side**2).view(1, 1, self.side, self.side)
        return [values.view(-1, 1, 1, 1) + ramp, values.view(-1, 1, 1, 1) * 3 + ramp[..., :1, :1]]


def batch(*values: float) -> tuple[torch.Tensor, list[str]]:
    images = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return images, [f"{value}.png" for value in values]


def test_each_image_is_computed_once_and_in_its_place():
    cache, compute, reference = FeatureCache(1), Counting(), Counting()
    for values in ((1, 2, 3), (3, 4), (4, 1, 5, 2), (5, 3)):
        images, paths = batch(*map(float, values))
        for found, expected in zip(cache.features(images, paths, compute), reference(images), strict=True):
            assert found.dtype == torch.float32
            assert torch.equal(found, expected.half().float())  # rounded, from the first time on
    assert compute.seen == [1, 2, 3, 4, 5]


def test_what_exceeds_half_precision_stays_finite():
    images, paths = batch(1e5, -1e5)
    for _ in range(2):
        first, _ = FeatureCache(1).features(images, paths, Counting())
        assert first[:, 0, 0, 0].tolist() == [65504, -65504]


def test_what_is_kept_does_not_change_with_what_is_given_out():
    cache, (images, paths) = FeatureCache(1), batch(1.0)
    cache.features(images, paths, Counting())[0].zero_()
    cache.features(images, paths, Counting())[0].zero_()
    assert cache.features(images, paths, Counting())[0].abs().sum() > 0


@pytest.mark.parametrize(("budget", "kept"), [(0, 0), (1, 3)])
def test_beyond_the_budget_features_are_computed_each_time(budget, kept):
    """A map of 384 x 384 in float16 takes 0.28 MiB: three fit."""
    cache, compute = FeatureCache(budget), Counting(384)
    assert 3 < MIB / (384 * 384 * 2) < 4
    images, paths = batch(1.0, 2.0, 3.0, 4.0, 5.0)
    for _ in range(3):
        cache.features(images, paths, compute)
    assert compute.seen == [1, 2, 3, 4, 5] + 2 * [1, 2, 3, 4, 5][kept:]
