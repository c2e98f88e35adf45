"""MKD's feed-forward gradient with respect to the image, against autograd in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.models.mkd.anomaly_map import _unpooled, activations, image_gradient
from anomalib_mixedteacher.models.mkd.torch_model import MkdModel


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Two images with rows and columns that no max-pooling window covers."""
    return torch.randn(2, 3, 33, 47, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def model(images) -> MkdModel:
    torch.manual_seed(0)
    model = MkdModel(direction_weight=0.5, sigma=2.0)
    model.teachers["vgg"].load("random")
    model.double().train()
    with torch.no_grad():
        for _ in range(5):
            model.student_features(images + 0.2 * torch.randn_like(images))  # statistics that matter
    return model.eval()


def test_gradient_equals_autograd_image_by_image(model, images):
    score, gradient = model.score_and_gradient(images)
    for index, image in enumerate(images.split(1)):
        pixels = image.clone().requires_grad_()
        expected = model.loss.score(model.teacher_features(pixels), model.student_features(pixels))
        (reference,) = torch.autograd.grad(expected.sum(), pixels)
        torch.testing.assert_close(score[index : index + 1], expected.detach(), rtol=1e-12, atol=0)
        limit = 1e-11 * reference.abs().max().item()
        torch.testing.assert_close(gradient[index : index + 1], reference, rtol=0, atol=limit)


@pytest.mark.parametrize("size", [(8, 8), (9, 15)])
def test_any_chain_equals_autograd(size):
    """With a shallow map's gradient entering in the middle, scales and shifts, and an odd side."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
    ).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    layers.train()(images)
    layers.eval()
    pixels = images.requires_grad_()
    steps = activations(layers, pixels)
    towards = [torch.randn_like(steps[6]), torch.randn_like(steps[9])]
    (expected,) = torch.autograd.grad([steps[6], steps[9]], pixels, towards)
    torch.testing.assert_close(image_gradient(layers, steps, towards), expected, rtol=1e-10, atol=1e-13)


def test_equal_maxima_share_the_gradient_of_their_window():
    x = torch.randint(0, 3, (2, 4, 7, 10), generator=torch.Generator().manual_seed(0)).double()
    y = F.max_pool2d(x, 2)
    towards = torch.randn_like(y)
    expected = torch.zeros_like(x)
    for b, c, i, j in torch.cartesian_prod(*(torch.arange(side) for side in y.shape)).tolist():
        window = x[b, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        share = (window == window.max()).double()
        expected[b, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = towards[b, c, i, j] * share / share.sum()
    torch.testing.assert_close(_unpooled(towards, x, y), expected, rtol=1e-12, atol=0)


def test_works_in_inference_mode_and_leaves_the_model_alone(model, images):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(images).anomaly_map
    with torch.inference_mode():
        assert torch.equal(model(images + 0).anomaly_map, expected)
    assert not expected.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_does_not_round_predictions(images, dtype):
    model = MkdModel(direction_weight=0.5).eval()
    model.teachers["vgg"].load("random")
    expected = model(images.float())
    with torch.autocast("cpu", dtype=dtype):
        result = model(images.float())
    assert torch.equal(result.anomaly_map, expected.anomaly_map)
    assert torch.equal(result.pred_score, expected.pred_score)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_images_have_finite_maps(model, value):
    result = model(torch.full((2, 3, 32, 48), value, dtype=torch.float64))  # at 0 the expert, without biases, is dead
    assert result.anomaly_map.isfinite().all()
    assert result.pred_score.isfinite().all()


def test_exported_program_gives_the_same_map(model, images):
    example = torch.rand(3, 3, 32, 48, dtype=torch.float64)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    images = F.interpolate(images, (32, 48))
    result, expected = program.module()(images), model(images)
    scale = expected.anomaly_map.max().item()
    torch.testing.assert_close(result.anomaly_map, expected.anomaly_map, rtol=0, atol=1e-10 * scale)
    torch.testing.assert_close(result.pred_score, expected.pred_score, rtol=1e-10, atol=0)
