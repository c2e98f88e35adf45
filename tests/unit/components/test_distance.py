"""The feature distances, against numpy written from the formulas."""

import numpy as np
import pytest
import torch

from anomalib_mixedteacher.components.maps import euclidean_distance, normalized_distance


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, 5, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))


def test_equals_formula(features):
    t, s = (f.numpy() for f in features)
    expected = np.empty((3, 4, 6))
    for b, i, j in np.ndindex(3, 4, 6):
        difference = t[b, :, i, j] / np.linalg.norm(t[b, :, i, j]) - s[b, :, i, j] / np.linalg.norm(s[b, :, i, j])
        expected[b, i, j] = 0.5 * (difference**2).sum()
    np.testing.assert_allclose(normalized_distance(*features).numpy(), expected, rtol=1e-12)


def test_half_precision_does_not_overflow():
    # a squared norm of 320 channels of 100 is 3.2e6; float16 ends at 65504
    t = torch.full((1, 320, 2, 2), 100.0, dtype=torch.float16)
    s = t.clone()
    s[:, 0] = -100
    expected = normalized_distance(t.double(), s.double())
    torch.testing.assert_close(normalized_distance(t, s).double(), expected, rtol=1e-5, atol=0)


def test_all_zero_features_are_finite_and_have_finite_gradient():
    t, s = torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2, requires_grad=True)
    distance = normalized_distance(t, s)
    distance.sum().backward()
    assert distance.abs().max() == 0
    assert s.grad.isfinite().all()


def test_euclidean_equals_formula(features):
    t, s = (f.numpy() for f in features)
    expected = np.empty((3, 4, 6))
    for b, i, j in np.ndindex(3, 4, 6):
        expected[b, i, j] = np.linalg.norm(t[b, :, i, j] - s[b, :, i, j]) ** 2 / 5
    np.testing.assert_allclose(euclidean_distance(*features).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_euclidean_in_half_precision_does_not_overflow(dtype):
    # a difference of 400 squares to 1.6e5; float16 ends at 65504
    t, s = torch.full((1, 3, 2, 2), 200.0, dtype=dtype), torch.full((1, 3, 2, 2), -200.0, dtype=dtype)
    assert torch.equal(euclidean_distance(t, s), torch.full((1, 2, 2), 1.6e5))
