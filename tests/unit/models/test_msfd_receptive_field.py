"""Receptive fields, against hand-computed ones and against the pixels that gradients reach."""

import pytest
import torch
from torch import nn

from anomalib_mixedteacher.components.teacher import FeatureExtractor
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.models.msfd.upsampling import ReceptiveField, receptive_fields

# The stem sees 7 + 2 * 2 = 11 pixels at stride 4. Each 3 x 3 convolution adds twice the stride of its input:
# ResNet-18 has 4 a stage, wide ResNet-50 3, 4, 6 and 3; the first one of stages 2 to 4 has the stage before's stride.
BY_HAND = {
    "resnet18": [
        (11 + 4 * 8, 4),  # 43
        (43 + 8 + 3 * 16, 8),  # 99
        (99 + 16 + 3 * 32, 16),  # 211
        (211 + 32 + 3 * 64, 32),  # 435
    ],
    "wide_resnet50_2": [
        (11 + 3 * 8, 4),  # 35
        (35 + 8 + 3 * 16, 8),  # 91
        (91 + 16 + 5 * 32, 16),  # 267
        (267 + 32 + 2 * 64, 32),  # 427
    ],
}


@pytest.mark.parametrize("backbone", BY_HAND)
def test_equals_hand_computed(backbone):
    extractor = FeatureExtractor(backbone, [f"layer{stage}" for stage in (1, 2, 3, 4)])
    assert receptive_fields(extractor) == [ReceptiveField(size, stride, 0.0) for size, stride in BY_HAND[backbone]]


def averaging(backbone: str, layers: tuple[str, ...]) -> FeatureExtractor:
    """A backbone whose convolutions average: what sees a pixel has a positive gradient to it, and no ReLU is dead."""
    extractor = FeatureExtractor(backbone, layers).double().eval().requires_grad_(False)
    for layer in extractor.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.fill_(1 / layer.weight[0].numel())
    return extractor


def seen(extractor: FeatureExtractor, size: int, positions: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    """First and last pixel along height and width that reach a position of each stage, by gradients.

    Where the image grows to the right and downwards the max-pooling passes the window's last pixel on, where it falls
    the first one. The two together have the whole field's extent.
    """
    ramp = torch.arange(1.0, size + 1, dtype=torch.float64)
    growing = ramp[:, None] + ramp[None, :]
    images = torch.stack([growing, growing.flip(0, 1)])[:, None].repeat(1, 3, 1, 1).requires_grad_()
    extents = []
    for stage, (row, column) in zip(extractor(images), positions, strict=True):
        (gradient,) = torch.autograd.grad(stage[:, :, row, column].sum(), images, retain_graph=True)
        support = gradient.sum(dim=(0, 1)) > 0
        rows, columns = support.any(1).nonzero().flatten(), support.any(0).nonzero().flatten()
        extents.append((rows[0].item(), rows[-1].item(), columns[0].item(), columns[-1].item()))
    return extents


@pytest.mark.parametrize(
    ("backbone", "layers", "size", "positions"),
    [
        # whose fields lie in the image; row and column differ, so that both stride and start are seen
        ("resnet18", ("layer1", "layer2", "layer3"), 240, [(20, 31), (9, 15), (7, 8)]),
        ("wide_resnet50_2", ("layer1", "layer2"), 112, [(9, 14), (6, 7)]),
    ],
)
def test_equals_what_gradients_reach(backbone, layers, size, positions):
    extractor = averaging(backbone, layers)
    expected = []
    for field, position in zip(receptive_fields(extractor), positions, strict=True):
        centers = [field.start + field.stride * index for index in position]
        expected.append(tuple(c + sign * (field.size - 1) / 2 for c in centers for sign in (-1, 1)))
    assert min(min(extent) for extent in expected) >= 0
    assert max(max(extent) for extent in expected) < size
    assert seen(extractor, size, positions) == expected


def test_even_kernels_paddings_and_dilations():
    # pixels 0 and 1, then 4 and 5: centre of the first field at 0.5
    field = ReceptiveField(1, 1, 0.0).through(kernel=2, stride=4, padding=0, dilation=1)
    assert field == ReceptiveField(2, 4, 0.5)
    # taps at positions -1, 1 and 3, whose fields reach from -4 to 13
    field = field.through(kernel=3, stride=2, padding=1, dilation=2)
    assert field == ReceptiveField(18, 8, 4.5)


def test_dilated_pooling_is_read():
    extractor = averaging("resnet18", ("layer1",))
    extractor.maxpool.dilation = 3
    # the stem then sees 7 + 6 * 2 pixels
    assert receptive_fields(extractor)[0] == ReceptiveField(19 + 4 * 8, 4, 4.0)


@pytest.mark.parametrize(("backbone", "layer"), [("seresnet18", "SEModule"), ("resnetblur18", "BlurPool2d")])
def test_other_backbones_are_refused(backbone, layer):  # attention sees the whole image
    message = f"field of {backbone} cannot be read from its layers .*{layer}.*: choose a plain ResNet such as resnet18"
    with pytest.raises(ConfigurationError, match=message):
        receptive_fields(FeatureExtractor(backbone, ["layer1", "layer2"]))
