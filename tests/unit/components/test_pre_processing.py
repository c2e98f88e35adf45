"""The exported graph's resize, against torch's antialiased one."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize

from anomalib_mixedteacher.components.distillation_mixin import DistillationMixin
from anomalib_mixedteacher.components.pre_processing import AntialiasedPreProcessor, AntialiasedResize


@pytest.mark.parametrize("size", [(64, 64), (200, 150), (40, 300), (65, 63), (33, 500)])
def test_resize_equals_torch(size):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    expected = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(AntialiasedResize((64, 64))(images), expected, rtol=1e-9, atol=1e-9)


def test_restored_from_a_checkpoint_configuration():
    source = DistillationMixin.configure_pre_processor((48, 64))
    restored = DistillationMixin.configure_pre_processor((256, 256))
    restored.load_checkpoint_config(source.checkpoint_config())
    images = torch.rand(1, 3, 100, 100)
    assert torch.equal(restored(images), source(images))
    assert restored(images).shape[-2:] == (48, 64)


BICUBIC, NEAREST = InterpolationMode.BICUBIC, InterpolationMode.NEAREST


@pytest.mark.parametrize(
    "transform",
    [
        Resize((48, 64), antialias=True),
        Compose([Compose([Resize((48, 64), antialias=True)]), Normalize([0.5] * 3, [0.5] * 3)]),
        Compose([Resize((48, 64), interpolation=2, antialias=True)]),  # Pillow's number of it
        Compose([Resize((48, 64), interpolation=NEAREST, antialias=True)]),
        Compose([Resize((48, 64), interpolation=BICUBIC, antialias=False)]),
    ],
)
def test_the_users_transform_is_exported_as_it_is(transform, caplog):
    pre_processor = AntialiasedPreProcessor(transform)
    images = torch.rand(2, 3, 150, 90)
    torch.testing.assert_close(pre_processor(images), pre_processor.transform(images), rtol=1e-5, atol=1e-5)
    assert not caplog.messages


@pytest.mark.parametrize("resize", [Resize((48, 64), interpolation=BICUBIC), Resize(48)])
def test_a_resize_that_the_graph_has_without_antialiasing_is_named(resize, caplog):
    pre_processor = AntialiasedPreProcessor(Compose([resize]))
    images = torch.rand(2, 3, 150, 90)
    assert pre_processor(images).shape == pre_processor.transform(images).shape
    without = Resize(resize.size, interpolation=resize.interpolation, antialias=False)
    assert torch.equal(pre_processor(images), without(images))
    AntialiasedPreProcessor().load_checkpoint_config(pre_processor.checkpoint_config())
    assert len(caplog.messages) == 2
    assert all(message.startswith(f"From Resize(size={resize.size}, ") for message in caplog.messages)
    assert all("exported models resize without antialiasing" in message for message in caplog.messages)
