"""Up-sampling of maps, against torch's transposed convolution with an explicit kernel and against SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn import functional as F

from anomalib_mixedteacher.components.maps import bilinear_resize
from anomalib_mixedteacher.models.msfd.upsampling import ReceptiveField, gaussian_upsample


def random_maps(field: ReceptiveField, size: tuple[int, int]) -> torch.Tensor:
    """As many positions as a ResNet has: sides rounded up."""
    shape = [-(-side // field.stride) for side in size]
    return torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def transposed_convolution(
    maps: torch.Tensor, size: tuple[int, int], field: ReceptiveField, sigma: float
) -> torch.Tensor:
    offsets = torch.arange(field.size, dtype=torch.float64) - (field.size - 1) / 2
    kernel = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma**2))
    first = int(field.start - (field.size - 1) / 2)  # pixel of the result's first row; outside of the image
    assert first <= 0
    padding = (0, field.size) * 2  # where the image ends behind the last field

    def crop(full: torch.Tensor) -> torch.Tensor:
        return F.pad(full, padding)[..., -first : size[0] - first, -first : size[1] - first]

    weighted = crop(F.conv_transpose2d(maps, kernel[None, None], stride=field.stride))
    return weighted / crop(F.conv_transpose2d(torch.ones_like(maps), kernel[None, None], stride=field.stride))


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (75, 100), (33, 62)])
@pytest.mark.parametrize(
    ("field", "sigma"),
    [
        (ReceptiveField(43, 4, 0.0), 43 / 6),
        (ReceptiveField(99, 8, 0.0), 99 / 6),
        (ReceptiveField(211, 16, 0.0), 211 / 6),
        (ReceptiveField(43, 4, 0.0), 1.5),
        (ReceptiveField(43, 4, 0.0), 1e4),  # all of the field weighs the same: where it ends is seen
        (ReceptiveField(18, 8, 4.5), 3.0),  # even, and not centred on pixel 0
        (ReceptiveField(17, 8, -1.0), 2.0),
    ],
)
def test_equals_the_transposed_convolution(field, sigma, size):
    maps = random_maps(field, size)
    expected = transposed_convolution(maps, size, field, sigma)
    torch.testing.assert_close(gaussian_upsample(maps, size, field, sigma), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e-2, 1e-12, 1e-200])
def test_the_narrowest_gaussian_takes_the_nearest_position(dtype, sigma):
    maps = torch.tensor([1.0, 2.0, 4.0], dtype=dtype).reshape(1, 1, 1, 3)
    result = gaussian_upsample(maps, (1, 12), ReceptiveField(43, 4, 0.0), sigma)[0, 0, 0]
    # pixels 2 and 6 lie halfway between two positions
    assert result.tolist() == [1, 1, 1.5, 2, 2, 2, 3, 4, 4, 4, 4, 4]


def test_pixels_beyond_every_field_take_the_nearest_position():
    maps = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).reshape(1, 1, 3, 1)
    result = gaussian_upsample(maps, (20, 1), ReceptiveField(3, 4, 0.0), 1e4)[0, 0, :, 0]
    # fields of three pixels about 0, 4 and 8: pixels 2 and 6 lie between two of them, 10 and more behind the last
    assert result.tolist() == [1, 1, 1.5, 2, 2, 2, 3, 4, 4] + 11 * [4]
    far = gaussian_upsample(maps, (3, 1), ReceptiveField(3, 4, 5000.0), 1.0)
    assert far.flatten().tolist() == [1, 1, 1]


def test_images_of_thousands_of_pixels_are_exact():
    field, sigma = ReceptiveField(43, 4, 0.0), 43 / 6
    maps = random_maps(field, (8192, 1))
    expected = transposed_convolution(maps, (8192, 1), field, sigma)
    result = gaussian_upsample(maps.float(), (8192, 1), field, sigma)
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_does_not_round_the_map(dtype):
    field = ReceptiveField(43, 4, 0.0)
    maps = random_maps(field, (64, 96)).float()
    with torch.autocast("cpu", dtype=dtype):
        rounded = gaussian_upsample(maps, (64, 96), field, 7.0)
    assert torch.equal(rounded, gaussian_upsample(maps, (64, 96), field, 7.0))


def test_bilinear_equals_scipy():
    maps = torch.rand(2, 1, 8, 12, dtype=torch.float64)
    rows, columns = ((np.arange(target) + 0.5) * source / target - 0.5 for source, target in ((8, 75), (12, 100)))
    grid = np.meshgrid(rows, columns, indexing="ij")
    expected = np.stack([map_coordinates(m, grid, order=1, mode="nearest") for m in maps[:, 0].numpy()])
    np.testing.assert_allclose(bilinear_resize(maps, (75, 100))[:, 0].numpy(), expected, rtol=1e-10)
