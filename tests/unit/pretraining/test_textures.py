"""Procedural textures: standardised, seeded, periodic, and cells against brute force."""

import pytest
import torch

from anomalib_mixedteacher.pretraining.draw import Draw
from anomalib_mixedteacher.pretraining.textures import FAMILIES, draw_fields, nearest_points, standardize

SIZE = 48


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
class TestFamilies:
    def test_fields_are_standardised(self, family):
        fields = family(6, SIZE, Draw(0))
        assert fields.shape == (6, SIZE, SIZE)
        assert fields.isfinite().all()
        torch.testing.assert_close(fields.mean(dim=(1, 2)), torch.zeros(6), atol=1e-4, rtol=0)
        torch.testing.assert_close(fields.std(dim=(1, 2), correction=0), torch.ones(6), atol=1e-3, rtol=0)

    def test_a_seed_fixes_the_fields(self, family):
        assert torch.equal(family(3, SIZE, Draw(5)), family(3, SIZE, Draw(5)))
        assert not torch.equal(family(3, SIZE, Draw(5)), family(3, SIZE, Draw(6)))

    def test_fields_of_a_batch_differ(self, family):
        fields = family(4, SIZE, Draw(1)).flatten(1)
        correlation = torch.corrcoef(fields).abs() - torch.eye(4)
        assert correlation.max() < 0.95

    def test_the_borders_meet(self, family):
        if family.__name__ == "weave":
            pytest.skip("its pattern of threads may jump")
        for fields in (family(16, SIZE, Draw(2)), family(16, SIZE, Draw(2)).transpose(1, 2)):
            inside = (fields[:, 1:] - fields[:, :-1]).abs().mean()
            across = (fields[:, 0] - fields[:, -1]).abs().mean()
            assert across < 1.3 * inside


def test_nearest_points_are_those_of_brute_force_over_all_periods():
    generator = torch.Generator().manual_seed(0)
    points = SIZE * torch.rand(1, 7, 2, generator=generator, dtype=torch.float64)
    ramp = torch.arange(SIZE, dtype=torch.float64)
    rows, columns = ramp[None, :, None].expand(1, SIZE, SIZE), ramp[None, None].expand(1, SIZE, SIZE)
    used = torch.tensor([[[5]]])
    first, second, which = nearest_points(rows, columns, points, used, torch.ones(1, 1, 1, dtype=torch.float64))

    pixels = torch.stack([rows[0], columns[0]], dim=-1).flatten(0, 1)
    shifts = torch.cartesian_prod(ramp[:3] - 1, ramp[:3] - 1) * SIZE
    distances = torch.stack([torch.cdist(pixels, points[0, :5] + shift) for shift in shifts]).amin(dim=0)
    reference = distances.sort(dim=1)
    torch.testing.assert_close(first.flatten(), reference.values[:, 0])
    torch.testing.assert_close(second.flatten(), reference.values[:, 1])
    assert torch.equal(which.flatten(), reference.indices[:, 0])


def test_a_constant_field_becomes_zero_not_infinite():
    assert torch.equal(standardize(torch.full((2, 8, 8), 3.0)), torch.zeros(2, 8, 8))


def test_any_number_of_fields():
    for n in (1, 9, 10):
        assert draw_fields(n, 32, Draw(0)).shape == (n, 32, 32)
