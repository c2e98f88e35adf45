"""MKD's gradients with respect to the image, by autograd and feed-forward, against references and each other."""

import pytest
import torch
from anomalib_mixedteacher.benchmark.gradient_cost import (
    FROZEN_LOOP,
    GRADIENT_LOOP,
    OFFICIAL_LOOP,
    maps_as_official,
    ratios,
)
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.models.mkd import feed_forward, gradient, smooth_grad
from anomalib_mixedteacher.models.mkd.smooth_grad import SmoothGrad
from anomalib_mixedteacher.models.mkd.torch_model import MkdModel

METHODS = ["gradient", "smooth_grad", "guided_backprop"]


@pytest.fixture(scope="module")
def images():
    """Two images with rows and columns that no max-pooling window covers, and a flat part where windows are tied."""
    images = torch.randn(2, 3, 33, 47, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[:, :, 4:30, 6:40] = 0.3
    return images


@pytest.fixture(scope="module")
def build(images):
    teacher = MkdModel().teachers["vgg"]
    teacher.load("random")

    def build(**arguments):
        torch.manual_seed(0)
        model = MkdModel(**{"direction_weight": 0.5, "sigma": 2.0, "smooth_samples": 2, **arguments})
        model.teachers["vgg"] = teacher
        model.double().train()
        with torch.no_grad():
            for _ in range(5):
                model.students["vgg"](images + 0.2 * torch.randn_like(images))  # statistics that matter
        return model.eval()

    return build


def networks(model: MkdModel) -> tuple:
    return model.teachers["vgg"].extractor.net, model.students["vgg"], model.loss


def reference_gradient(model: MkdModel, images: torch.Tensor) -> torch.Tensor:
    """Image by image."""
    gradients = []
    for image in images.split(1):
        image = image.clone().requires_grad_()
        model.loss.score(*model.features(image)).backward()
        gradients.append(image.grad)
    model.zero_grad()
    return torch.cat(gradients)


@pytest.mark.parametrize("arguments", [{}, {"direction_only": True}, {"cloner": "equal"}])
def test_gradient_equals_finite_differences(build, arguments):
    model = build(**arguments)
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    score, result = model.score_and_gradient(images)
    assert torch.equal(score, model.loss.score(*model.features(images)))
    step = 1e-7
    for index in range(2):
        for pixel in result[index].abs().flatten().topk(3).indices.tolist():
            change = torch.zeros(1, *images.shape[1:], dtype=torch.float64)
            change.view(-1)[pixel] = step
            with torch.no_grad():
                up, down = (
                    model.loss.score(*model.features(images[index : index + 1] + sign * change)) for sign in (1, -1)
                )
            assert result[index].flatten()[pixel].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-5)


@pytest.mark.parametrize("localization", METHODS)
def test_batch_gives_what_its_images_give_one_by_one(build, images, localization):
    model = build(localization=localization)
    together = model(images)
    for index in range(2):
        alone = model(images[index : index + 1])
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[index], rtol=1e-9, atol=0)
        torch.testing.assert_close(alone.pred_score[0], together.pred_score[index], rtol=1e-12, atol=0)


@pytest.mark.parametrize("cloner", ["small", "equal"])
@pytest.mark.parametrize("localization", METHODS)
def test_feed_forward_equals_autograd(build, images, localization, cloner):
    model = build(localization=localization, cloner=cloner)
    guided = localization == "guided_backprop"
    both = []
    for form in (gradient, feed_forward):
        compute = lambda x: form.score_and_gradient(*networks(model), x, guided)  # noqa: B023, E731
        score, result = compute(images)
        if localization == "smooth_grad":
            result = model.smooth_grad(lambda x: compute(x)[1], images)  # noqa: B023
        both.append((score, result))
    torch.testing.assert_close(both[1][0], both[0][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(both[1][1], both[0][1], rtol=0, atol=1e-11 * both[0][1].abs().max().item())


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (2, 3)])
def test_unpooling_of_ties_equals_autograd(size):
    x = torch.randint(0, 3, (2, 4, *size), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    y = F.max_pool2d(x, 2)
    towards = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, towards)
    assert torch.equal(feed_forward._unpool(towards, x, y), expected)


class PositiveGradientReLU(torch.autograd.Function):
    """The rule of guided backpropagation (Springenberg et al. 2015)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, towards):
        (x,) = ctx.saved_tensors
        return towards * (towards > 0) * (x > 0)


def test_guided_backpropagation_equals_reference(build, images):
    model = build(localization="guided_backprop")
    pixels = images.clone().requires_grad_()
    x, maps = pixels, []
    for layer in model.students["vgg"].features:
        x = PositiveGradientReLU.apply(x) if isinstance(layer, nn.ReLU) else layer(x)
        if isinstance(layer, nn.MaxPool2d):
            maps.append(x)
    score = model.loss.score(model.features(pixels)[0], {"vgg": maps[1:]})
    (expected,) = torch.autograd.grad(score.sum(), pixels)
    result = model.score_and_gradient(images)[1]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    plain = reference_gradient(model, images)
    assert (result - plain).abs().max() > 0.01 * plain.abs().max()


@pytest.mark.parametrize("pixels_at_once", [1, 2**17])
def test_smooth_grad_equals_reference(build, images, monkeypatch, pixels_at_once):
    monkeypatch.setattr(smooth_grad, "PIXELS_AT_ONCE", pixels_at_once)
    model = build(localization="smooth_grad", smooth_samples=3, smooth_noise=0.05)
    model(images)  # makes the noise
    noise = model.smooth_grad.noise
    assert noise.shape == (3, 3, 33, 47)
    expected = torch.zeros_like(images)
    for index, image in enumerate(images):
        for sample in noise:
            noisy = image + 0.05 * (image.max() - image.min()) * sample
            expected[index] += reference_gradient(model, noisy[None])[0] / 3
    result = model(images)
    maps = model.anomaly_map_generator(expected)
    torch.testing.assert_close(result.anomaly_map, maps, rtol=0, atol=1e-11 * maps.max().item())
    # the score is that of the image itself
    torch.testing.assert_close(result.pred_score[:, 0], model.loss.score(*model.features(images)), rtol=1e-12, atol=0)


def test_noise_is_normal_and_always_the_same():
    images = torch.rand(1, 3, 32, 40)
    first, second = SmoothGrad(samples=20), SmoothGrad(samples=20)
    constant = lambda x: x  # noqa: E731
    first(constant, torch.rand(1, 3, 48, 48))  # another size before
    assert torch.equal(first(constant, images), second(constant, images))
    assert torch.equal(first.noise, second.noise)
    assert abs(first.noise.mean()) < 0.01
    assert first.noise.std().item() == pytest.approx(1, abs=0.01)
    assert len(first.noise.unique(dim=0)) == 20
    assert not first.state_dict()


@pytest.mark.parametrize("localization", METHODS)
def test_works_without_gradients_and_leaves_the_model_alone(build, images, localization):
    model = build(localization=localization)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert any(flags)
    assert not all(flags)
    expected = model(images).anomaly_map
    with torch.no_grad():
        without = model(images)
    fresh = build(localization=localization)  # whose noise is made in inference mode
    with torch.inference_mode():
        inference = fresh(images + 0)
    for result in (without, inference):
        assert torch.equal(result.anomaly_map, expected)
        assert not result.anomaly_map.requires_grad
        assert not result.pred_score.requires_grad
    assert torch.equal(fresh(images).anomaly_map, expected)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_autocast_to_float16_is_ignored(build, images):
    model = build().float()
    expected = model(images.float())
    with torch.autocast("cpu", dtype=torch.float16):
        result = model(images.float())
    assert torch.equal(result.anomaly_map, expected.anomaly_map)
    assert torch.equal(result.pred_score, expected.pred_score)


@pytest.mark.parametrize("localization", METHODS)
def test_bfloat16_in_inference_mode(build, images, localization):
    model, images = build(localization=localization).float(), images.float()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(images + 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(images)
    assert torch.equal(result.anomaly_map, expected.anomaly_map)
    assert torch.equal(result.pred_score, expected.pred_score)


@pytest.mark.parametrize("localization", METHODS)
def test_bfloat16_computes_the_networks_but_not_score_and_map(build, images, localization):
    model = build(localization=localization).float()
    images = images.float()
    expected = model(images)
    computed = set()
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(lambda *args: computed.add(args[2].dtype)) for layer in convolutions]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(images)
    for hook in hooks:
        hook.remove()
    assert computed == {torch.bfloat16}
    for value, reference in ((result.anomaly_map, expected.anomaly_map), (result.pred_score, expected.pred_score)):
        assert value.dtype == torch.float32
        assert not torch.equal(value.bfloat16().float(), value)  # holds more digits than bfloat16
        torch.testing.assert_close(value, reference, rtol=0, atol=0.15 * reference.max().item())


@pytest.mark.parametrize("localization", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_images_have_finite_maps(build, localization, value):
    model = build(localization=localization).float()
    result = model(torch.full((2, 3, 32, 48), value))  # at 0 the expert, which has no biases yet, is dead
    assert result.anomaly_map.isfinite().all()
    assert result.pred_score.isfinite().all()


@pytest.mark.parametrize("localization", ["smooth_grad", "guided_backprop"])
def test_exported_program_gives_the_same_map(build, images, localization):
    model = build(localization=localization)
    example = torch.rand(3, 3, 32, 48, dtype=torch.float64)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    images = F.interpolate(images, (32, 48))
    result, expected = program.module()(images), model(images)
    scale = expected.anomaly_map.max().item()
    torch.testing.assert_close(result.anomaly_map, expected.anomaly_map, rtol=0, atol=1e-10 * scale)
    torch.testing.assert_close(result.pred_score, expected.pred_score, rtol=1e-10, atol=0)
    assert not any("convolution_backward" in str(node.target) for node in program.graph.nodes)


def test_smooth_grad_is_exported_for_one_size_only():
    class Smooth(nn.Module):
        def __init__(self):
            super().__init__()
            self.smooth_grad = SmoothGrad(samples=2)

        def forward(self, images):
            return self.smooth_grad(lambda x: x**3, images)

    with pytest.raises(ConfigurationError, match="needs a graph of fixed size, which holds the noise: give input_size"):
        torch.export.export(
            Smooth(), (torch.rand(1, 3, 32, 32),), dynamic_shapes=({2: torch.export.Dim("height")},), strict=False
        )


@pytest.mark.parametrize("localization", METHODS)
def test_benchmark_compares_equal_maps(build, images, localization):
    fractions, difference = ratios(build(localization=localization), images, repetitions=1)
    assert difference < 1e-9
    assert set(fractions) == {OFFICIAL_LOOP, FROZEN_LOOP, GRADIENT_LOOP}
    assert all(fraction > 0 for fraction in fractions.values())


def test_benchmark_tells_how_far_bfloat16_is_from_float32(build, images):
    _, difference = ratios(build().float(), images.float(), repetitions=1, bfloat16=True)
    assert 1e-3 < difference < 0.2


def test_official_loop_differentiates_the_expert_and_leaves_it_frozen(build, images):
    model = build()
    expert = model.teachers["vgg"].extractor.net
    gradients = []
    handles = [
        layer.weight.register_hook(lambda gradient: gradients.append(gradient.shape))
        for layer in expert.requires_grad_(True).features
        if isinstance(layer, nn.Conv2d)
    ]
    expert.requires_grad_(False)
    maps_as_official(model, images)
    for handle in handles:
        handle.remove()
    assert len(gradients) == 13 * len(images)
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in expert.parameters())
