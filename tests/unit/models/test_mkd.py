"""MKD's networks, loss and map, against references written from the paper's description."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, grey_opening
from torch.nn import functional as F

from anomalib_mixedteacher.components.morphology import opening
from anomalib_mixedteacher.errors import ConfigurationError, DataError, TeacherNotLoadedError
from anomalib_mixedteacher.models.mkd.anomaly_map import AnomalyMapGenerator, percentile
from anomalib_mixedteacher.models.mkd.loss import MkdLoss
from anomalib_mixedteacher.models.mkd.torch_model import MkdModel, build_cloner

SHAPES = [(128, 8, 12), (256, 4, 6), (512, 2, 3), (512, 1, 1)]  # pool2 to pool5 at 32 x 48


def random_features(seed: int, batch: int = 3) -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {"vgg": [torch.randn(batch, *shape, generator=generator, dtype=torch.float64).relu() for shape in SHAPES]}


def reference_terms(teacher, student, layers: slice) -> tuple[np.ndarray, np.ndarray]:
    """Value and direction term of each image, (B,)."""
    value = direction = 0
    for t, s in zip(teacher["vgg"][layers], student["vgg"][layers], strict=True):
        t, s = (x.numpy().reshape(len(x), -1) for x in (t, s))
        value = value + ((t - s) ** 2).mean(1)
        direction = direction + 1 - (t * s).sum(1) / np.sqrt((t**2).sum(1) * (s**2).sum(1))
    return value, direction


ALL, SCORED = slice(None), slice(1, None)


@pytest.fixture
def features():
    return random_features(0), random_features(1)


def test_loss_and_score_equal_reference(features):
    loss = MkdLoss(direction_weight=0.375)
    for layers, result in ((ALL, loss.per_image(*features)["vgg"]), (SCORED, loss.score(*features))):
        value, direction = reference_terms(*features, layers)
        np.testing.assert_allclose(result.numpy(), value + 0.375 * direction, rtol=1e-12)
    assert loss(*features).keys() == {"vgg"}
    assert loss(*features)["vgg"].item() == pytest.approx(loss.per_image(*features)["vgg"].mean().item(), rel=1e-12)


def test_direction_only(features):
    loss = MkdLoss(direction_only=True)  # needs no weight
    np.testing.assert_allclose(loss.per_image(*features)["vgg"].numpy(), reference_terms(*features, ALL)[1], rtol=1e-12)
    np.testing.assert_allclose(loss.score(*features).numpy(), reference_terms(*features, SCORED)[1], rtol=1e-12)


def test_half_precision_features_are_compared_in_single(features):
    teacher, student = ({"vgg": [300 * maps.half() for maps in x["vgg"]]} for x in features)
    result = MkdLoss(direction_weight=1.0).score(teacher, student)
    assert result.dtype == torch.float32
    widened = ({"vgg": [maps.double() for maps in x["vgg"]]} for x in (teacher, student))
    value, direction = reference_terms(*widened, SCORED)
    np.testing.assert_allclose(result.numpy(), value + direction, rtol=1e-5)


def test_auto_weight_brings_both_terms_to_one_scale(features):
    loss = MkdLoss()
    batches = [features, (random_features(2, 1), random_features(3, 1))]
    assert loss.needs_direction_weight
    loss.set_direction_weight(iter(batches))
    assert not loss.needs_direction_weight
    value, direction = (
        np.concatenate(terms) for terms in zip(*(reference_terms(*b, ALL) for b in batches), strict=True)
    )
    assert value.mean() == pytest.approx(loss.direction_weight.item() * direction.mean(), rel=1e-6)  # a float32 buffer
    restored = MkdLoss()
    restored.load_state_dict(loss.state_dict())
    assert restored.score(*features).tolist() == loss.score(*features).tolist()


def test_auto_weight_has_to_be_set(features):
    with pytest.raises(ConfigurationError, match="direction_weight='auto' is found when training starts"):
        MkdLoss().score(*features)
    with pytest.raises(ConfigurationError, match="train the model first, give a trained checkpoint, or give a number"):
        MkdLoss().per_image(*features)
    assert not MkdLoss(direction_only=True).needs_direction_weight
    assert not MkdLoss(direction_weight=2.0).needs_direction_weight


@pytest.mark.parametrize("factor", [1.0, 2.0, torch.nan])  # the same maps, the same direction, no numbers
def test_auto_weight_needs_a_difference_in_value_and_direction(features, factor):
    student = {"vgg": [factor * maps for maps in features[0]["vgg"]]}
    loss = MkdLoss()
    with pytest.raises(DataError, match=r"from which direction_weight='auto' cannot be found: check the training"):
        loss.set_direction_weight([(features[0], student)])
    assert loss.needs_direction_weight


def test_dead_maps_have_finite_score_and_gradient(features):
    loss = MkdLoss(direction_weight=1.0)
    dead = {"vgg": [torch.zeros_like(maps) for maps in features[0]["vgg"]]}
    for pair in ((features[0], dead), (dead, features[0]), (dead, dead)):
        assert loss.score(*pair).isfinite().all()
        assert all(gradient.isfinite().all() for side in loss.score_gradient(*pair) for gradient in side)


@pytest.mark.parametrize("direction_only", [False, True])
def test_gradient_of_the_score_with_respect_to_the_maps(features, direction_only):
    loss = MkdLoss(direction_weight=0.375, direction_only=direction_only)
    sides = [{"vgg": [maps.requires_grad_() for maps in side["vgg"]]} for side in features]
    expected = torch.autograd.grad(loss.score(*sides).sum(), [*sides[0]["vgg"][1:], *sides[1]["vgg"][1:]])
    teacher, student = loss.score_gradient(*sides)
    for result, reference in zip([*teacher, *student], expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("size", [100, 101, 150, 1024, 1537])
def test_percentile_equals_numpy(size):
    values = np.random.default_rng(size).exponential(size=(3, size))
    result = percentile(torch.from_numpy(values), 99)
    np.testing.assert_allclose(result.numpy(), np.percentile(values, 99, axis=1), rtol=1e-12)


@pytest.mark.parametrize("side", [1, 3, 5, 9])
def test_opening_equals_scipy_and_never_exceeds_the_map(side):
    maps = torch.from_numpy(np.random.default_rng(side).normal(size=(2, 1, 14, 19)))
    opened = opening(maps, side)
    for result, source in zip(opened[:, 0].numpy(), maps[:, 0].numpy(), strict=True):
        np.testing.assert_array_equal(result, grey_opening(source, size=(side, side)))
    assert (opened <= maps).all()
    assert torch.equal(opened, maps) == (side == 1)


@pytest.mark.parametrize(("sigma", "side"), [(4.0, 0), (2.0, 5), (0.0, 3), (0.0, 0)])
def test_map_equals_reference(sigma, side):
    gradient = np.random.default_rng(0).standard_t(2, size=(3, 3, 40, 56))  # heavy tails: the percentile clips
    result = AnomalyMapGenerator(sigma, side).double()(torch.from_numpy(gradient))
    assert result.shape == (3, 1, 40, 56)
    for index in range(3):
        expected = np.abs(gradient[index]).sum(0)
        expected = np.minimum(expected, np.percentile(expected, 99))
        if sigma:
            expected = gaussian_filter(expected, sigma, mode="mirror", truncate=4.0)
        if side:
            expected = grey_opening(expected, size=(side, side))
        # 2e-6: anomalib's Gaussian kernel is a float32 buffer
        np.testing.assert_allclose(result[index, 0].numpy(), expected, rtol=2e-6 if sigma else 1e-12)


def test_maps_of_different_images_are_comparable():
    """A gradient twice as large gives a map twice as large: no scaling of each map to [0, 1]."""
    gradient = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    maps = AnomalyMapGenerator(sigma=2.0, side=3).double()(torch.cat([gradient, 2 * gradient]))
    torch.testing.assert_close(maps[1], 2 * maps[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        ("small", [16, 16, 0, 16, 128, 0, 16, 16, 256, 0, 16, 16, 512, 0, 16, 16, 512, 0]),
        ("equal", [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]),
    ],
)
def test_cloner_equals_reference(size, widths):
    """Per block convolutions (normalised but for the last), each with a ReLU, and then a max-pooling (0)."""
    torch.manual_seed(0)
    cloner = build_cloner(size).double()
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    cloner.train()(images + 0.5)  # statistics that matter
    cloner.eval()
    parameters = iter(cloner.state_dict().values())
    x, channels, maps = images, 3, []
    for width, following in pairwise([*widths, None]):
        if width == 0:
            x = F.max_pool2d(x, 2)
            maps.append(x)
            continue
        weight = next(parameters)
        assert weight.shape == (width, channels, 3, 3)
        bound = np.sqrt(6 / (9 * channels + 9 * width))  # Xavier
        assert 0.95 * bound < weight.abs().max() <= bound
        x = F.conv2d(x, weight, padding=1)
        if following != 0:
            scale, shift, mean, variance, _ = (next(parameters) for _ in range(5))
            x = F.batch_norm(x, mean, variance, scale, shift)
        x, channels = x.relu(), width
    assert next(parameters, None) is None  # no biases, nothing behind pool5
    for result, expected in zip(cloner(images), maps[1:], strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-14)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = MkdModel(direction_weight=0.5)
    model.load_teachers("random")
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (64, 32), (33, 47)])
def test_any_size_from_32(model, size):
    images = torch.rand(2, 3, *size)
    teacher, student = model.features(images)
    sides = [(size[0] // stride, size[1] // stride) for stride in (4, 8, 16, 32)]
    expected = [(2, channels, *side) for channels, side in zip((128, 256, 512, 512), sides, strict=True)]
    assert [tuple(f.shape) for f in teacher["vgg"]] == expected
    assert [f.shape for f in teacher["vgg"]] == [f.shape for f in student["vgg"]]
    result = model(images)
    assert result.anomaly_map.shape == (2, 1, *size)
    assert torch.equal(result.pred_score, model.loss.score(teacher, student)[:, None])
    assert result.anomaly_map.isfinite().all()


def test_training_mode_returns_features_that_train_the_cloner_alone():
    torch.manual_seed(0)
    model = MkdModel(direction_weight=0.5).train()
    model.load_teachers("random")
    images = torch.rand(2, 3, 32, 48)
    model.loss(*model(images))["vgg"].backward()
    assert all(p.grad is not None for p in model.students.parameters())
    assert all(p.grad is None for p in model.teachers.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cloner": "tiny"}, "Unknown cloner 'tiny'; choose one of small, equal"),
        ({"localization": "grad"}, "Unknown localization 'grad'; choose one of gradient, smooth_grad, guided_backprop"),
        ({"opening": 4}, "opening must be 0 (none) or an odd number of pixels, not 4"),
        ({"opening": -3}, "opening must be 0 (none) or an odd number of pixels, not -3"),
        ({"sigma": -1.0}, "sigma must be 0 (no smoothing) or positive, not -1.0"),
        ({"smooth_samples": 0}, "smooth_samples must be 1 or more, not 0"),
        ({"direction_weight": 0}, "direction_weight must be 'auto' or a positive number, not 0"),
        ({"direction_weight": -0.5}, "direction_weight must be 'auto' or a positive number, not -0.5"),
        ({"direction_weight": "Auto"}, "direction_weight must be 'auto' or a positive number, not 'Auto'"),
        ({"direction_weight": float("nan")}, "direction_weight must be 'auto' or a positive number, not nan"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigurationError) as error:
        MkdModel(**arguments)
    assert str(error.value) == f"{message}."


def test_small_images_and_missing_weights(model):
    with pytest.raises(ConfigurationError, match="needs 32 or more a side: enlarge them"):
        model(torch.rand(1, 3, 31, 64))
    wide = MkdModel(sigma=8.0, direction_weight=1.0).eval()
    wide.teachers["vgg"] = model.teachers["vgg"]
    with pytest.raises(ConfigurationError, match="needs 33 or more a side with sigma=8.0"):
        wide(torch.rand(1, 3, 32, 64))
    assert wide(torch.rand(1, 3, 33, 64)).anomaly_map.shape == (1, 1, 33, 64)
    with pytest.raises(TeacherNotLoadedError, match="vgg16 teacher has no weights yet"):
        MkdModel().eval()(torch.rand(1, 3, 64, 64))
