"""Gaussian smoothing, against SciPy."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from anomalib_mixedteacher.components.maps import gaussian_smoothing


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_equals_scipy(sigma):
    anomaly_map = torch.rand(2, 1, 40, 56, dtype=torch.float64)
    expected = gaussian_filter(anomaly_map.numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4.0)
    result = gaussian_smoothing(sigma).double()(anomaly_map)
    torch.testing.assert_close(result, torch.from_numpy(expected), rtol=1e-6, atol=1e-7)


def test_sigma_zero_leaves_the_map():
    anomaly_map = torch.rand(1, 1, 8, 8)
    assert torch.equal(gaussian_smoothing(0)(anomaly_map), anomaly_map)
