"""Whitening against numpy's covariance."""

import numpy as np
import torch

from anomalib_mixedteacher.components.maps import euclidean_distance
from anomalib_mixedteacher.components.whitening import Whitening


def correlated_maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    mixing, offset = rng.normal(size=(5, 5)), rng.normal(size=5)
    maps = [np.einsum("dc,bchw->bdhw", mixing, rng.normal(size=(2, 5, *size))) for size in sizes]
    return [torch.from_numpy(map_ + offset[:, None, None]) for map_ in maps]


def test_squared_norm_is_the_mahalanobis_distance_with_a_ridge():
    maps = correlated_maps((6, 4), (3, 7))
    whitening = Whitening(5).double()
    whitening.fit(maps)
    directions = [map_.numpy() / np.sqrt((map_.numpy() ** 2).sum(axis=1, keepdims=True)) for map_ in maps]
    vectors = np.concatenate([direction.transpose(0, 2, 3, 1).reshape(-1, 5) for direction in directions])
    covariance = np.cov(vectors.T, bias=True)
    inverse = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / 5 * np.eye(5))
    away = directions[0] - vectors.mean(axis=0)[:, None, None]
    expected = np.einsum("bchw,cd,bdhw->bhw", away, inverse, away) / 5
    white = whitening(maps[0])
    np.testing.assert_allclose(euclidean_distance(white, torch.zeros_like(white)).numpy(), expected, rtol=1e-10)


def test_features_without_variance_stay_finite():
    whitening = Whitening(5).double()
    maps = correlated_maps((8, 8))
    maps[0][:, 2:] = 0  # channels that a teacher never uses here
    whitening.fit(maps)
    assert whitening(maps[0]).isfinite().all()
    constant = Whitening(5)
    constant.fit([torch.ones(2, 5, 4, 4)])
    assert constant(torch.ones(2, 5, 4, 4)).isfinite().all()


def test_mixed_precision_does_not_round_whitened_features():
    maps = correlated_maps((6, 4))[0].float()
    whitening = Whitening(5)
    whitening.fit([maps])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = whitening(maps)
    assert torch.equal(rounded, whitening(maps))


def test_features_are_normalised_only_until_fitted():
    maps = correlated_maps((6, 4))[0]
    expected = maps.numpy() / np.sqrt((maps.numpy() ** 2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(Whitening(5).double()(maps).numpy(), expected, rtol=1e-12)
