"""The exported graph's resize, against torch's antialiased one."""

import pytest
import torch
from torch.nn import functional as F

from anomalib_mixedteacher.components.pre_processing import (
    AntialiasedPreProcessor,
    AntialiasedResize,
    default_transform,
)


@pytest.mark.parametrize("size", [(64, 64), (200, 150), (40, 300), (65, 63), (33, 500)])
def test_resize_equals_torch(size):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    expected = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(AntialiasedResize((64, 64))(images), expected, rtol=1e-9, atol=1e-9)


def test_exported_transform_equals_the_training_transform():
    pre_processor = AntialiasedPreProcessor(default_transform((48, 64)))
    images = torch.rand(2, 3, 150, 90)
    torch.testing.assert_close(pre_processor(images), pre_processor.transform(images), rtol=1e-5, atol=1e-5)


def test_restored_from_a_checkpoint_configuration():
    source = AntialiasedPreProcessor(default_transform((48, 64)))
    restored = AntialiasedPreProcessor(default_transform((256, 256)))
    restored.load_checkpoint_config(source.checkpoint_config())
    images = torch.rand(1, 3, 100, 100)
    assert torch.equal(restored(images), source(images))
    assert restored(images).shape[-2:] == (48, 64)
