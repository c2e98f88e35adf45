"""Whitening against numpy's covariance."""

import numpy as np
import torch

from anomalib_mixedteacher.components.whitening import Whitening, gather_moments


def correlated_maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    mixing, offset = rng.normal(size=(5, 5)), rng.normal(size=5)
    maps = [np.einsum("dc,bchw->bdhw", mixing, rng.normal(size=(2, 5, *size))) for size in sizes]
    return [torch.from_numpy(map_ + offset[:, None, None]) for map_ in maps]


def test_squared_norm_is_the_mahalanobis_distance_with_a_ridge():
    maps = correlated_maps((6, 4), (3, 7))
    whitening = Whitening(5).double()
    whitening.fit(*(gather_moments([map_]) for map_ in maps))
    vectors = np.concatenate([map_.numpy().transpose(0, 2, 3, 1).reshape(-1, 5) for map_ in maps])
    covariance = np.cov(vectors.T, bias=True)
    inverse = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / 5 * np.eye(5))
    centred = maps[0].numpy() - vectors.mean(axis=0)[:, None, None]
    expected = np.einsum("bchw,cd,bdhw->bhw", centred, inverse, centred)
    np.testing.assert_allclose(whitening(maps[0]).square().sum(dim=1).numpy(), expected, rtol=1e-10)


def test_channels_that_do_not_vary_stay_finite():
    whitening = Whitening(5).double()
    maps = correlated_maps((8, 8))
    maps[0][:, 2:] = 0  # channels that a teacher never uses here
    whitening.fit(gather_moments(maps))
    assert whitening(maps[0]).isfinite().all()
    none = Whitening(5)
    none.fit(gather_moments([torch.zeros(2, 5, 4, 4)]))
    assert none(torch.ones(2, 5, 4, 4)).isfinite().all()


def test_mixed_precision_does_not_round_whitened_maps():
    maps = correlated_maps((6, 4))[0].float()
    whitening = Whitening(5)
    whitening.fit(gather_moments([maps]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = whitening(maps)
    assert torch.equal(rounded, whitening(maps))


def test_maps_stay_as_they_are_until_fitted():
    maps = correlated_maps((6, 4))[0]
    np.testing.assert_allclose(Whitening(5).double()(maps).numpy(), maps.numpy(), rtol=1e-12)
