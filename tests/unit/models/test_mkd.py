"""MKD's networks, loss and map, against references written from the paper's description."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError
from anomalib_mixedteacher.models.mkd.anomaly_map import AnomalyMapGenerator, percentile
from anomalib_mixedteacher.models.mkd.loss import MkdLoss
from anomalib_mixedteacher.models.mkd.torch_model import Cloner, MkdModel

SHAPES = [(128, 8, 12), (256, 4, 6), (512, 2, 3), (512, 1, 1)]  # pool2 to pool5 at 32 x 48
ALL, SCORED = slice(None), slice(1, None)


def random_features(seed: int, batch: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator, dtype=torch.float64).relu() for shape in SHAPES]


@pytest.fixture
def features() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return random_features(0), random_features(1)


def reference_terms(teacher, student, layers: slice) -> tuple[np.ndarray, np.ndarray]:
    """Value and direction term of each image, (B,)."""
    value = direction = 0
    for t, s in zip(teacher[layers], student[layers], strict=True):
        t, s = (x.numpy().reshape(len(x), -1) for x in (t, s))
        value = value + ((t - s) ** 2).mean(1)
        direction = direction + 1 - (t * s).sum(1) / np.sqrt((t**2).sum(1) * (s**2).sum(1))
    return value, direction


def test_loss_and_score_equal_reference(features):
    loss = MkdLoss(direction_weight=0.375)
    for layers, result in ((ALL, loss.per_image(*features)), (SCORED, loss.score(*features))):
        value, direction = reference_terms(*features, layers)
        np.testing.assert_allclose(result.numpy(), value + 0.375 * direction, rtol=1e-12)


def test_auto_weight_brings_both_terms_to_one_scale(features):
    loss = MkdLoss()
    with pytest.raises(ConfigurationError, match="direction_weight='auto' is found when training starts"):
        loss.score(*features)
    batches = [features, (random_features(2, 1), random_features(3, 1))]
    loss.set_direction_weight(iter(batches))
    value, direction = (
        np.concatenate(terms) for terms in zip(*(reference_terms(*b, ALL) for b in batches), strict=True)
    )
    assert value.mean() == pytest.approx(loss.direction_weight.item() * direction.mean(), rel=1e-6)  # a float32 buffer
    restored = MkdLoss()
    restored.load_state_dict(loss.state_dict())
    assert restored.score(*features).tolist() == loss.score(*features).tolist()


def test_gradient_of_the_score_with_respect_to_the_maps(features):
    loss = MkdLoss(direction_weight=0.375)
    teacher, student = ([maps.requires_grad_() for maps in side] for side in features)
    expected = torch.autograd.grad(loss.score(teacher, student).sum(), [*teacher[SCORED], *student[SCORED]])
    towards_teacher, towards_student = loss.score_gradients(teacher, student)
    for result, reference in zip([*towards_teacher, *towards_student], expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-9, atol=1e-15)


def test_dead_maps_have_finite_score_and_gradient(features):
    loss = MkdLoss(direction_weight=1.0)
    dead = [torch.zeros_like(maps) for maps in features[0]]
    for pair in ((features[0], dead), (dead, features[0]), (dead, dead)):
        assert loss.score(*pair).isfinite().all()
        assert all(gradient.isfinite().all() for side in loss.score_gradients(*pair) for gradient in side)


@pytest.mark.parametrize("size", [100, 101, 1537])
def test_percentile_equals_numpy(size):
    values = np.random.default_rng(size).exponential(size=(3, size))
    result = percentile(torch.from_numpy(values), 99)
    np.testing.assert_allclose(result.numpy(), np.percentile(values, 99, axis=1), rtol=1e-12)


@pytest.mark.parametrize("sigma", [4.0, 0.0])
def test_map_equals_reference(sigma):
    gradient = np.random.default_rng(0).standard_t(2, size=(3, 3, 40, 56))  # heavy tails: the percentile clips
    result = AnomalyMapGenerator(sigma).double()(torch.from_numpy(gradient))
    assert result.shape == (3, 1, 40, 56)
    for index in range(3):
        expected = np.abs(gradient[index]).sum(0)
        expected = np.minimum(expected, np.percentile(expected, 99))
        if sigma:
            expected = gaussian_filter(expected, sigma, mode="mirror", truncate=4.0)
        # 2e-6: anomalib's Gaussian kernel is a float32 buffer
        np.testing.assert_allclose(result[index, 0].numpy(), expected, rtol=2e-6 if sigma else 1e-12)


def test_cloner_equals_reference():
    """Per block convolutions (normalised but for the last), each with a ReLU, and then a max-pooling (0)."""
    torch.manual_seed(0)
    cloner = Cloner().double()
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    cloner.train()(images + 0.5)  # statistics that matter
    cloner.eval()
    parameters = iter(cloner.state_dict().values())
    x, channels, maps = images, 3, []
    for width, following in pairwise([16, 16, 0, 16, 128, 0, 16, 16, 256, 0, 16, 16, 512, 0, 16, 16, 512, 0, None]):
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
def model() -> MkdModel:
    torch.manual_seed(0)
    model = MkdModel(direction_weight=0.5)
    model.teachers["vgg"].load("random")
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 32), (33, 47)])
def test_any_size_from_32(model, size):
    images = torch.rand(2, 3, *size)
    teacher, student = model.teacher_features(images), model.student_features(images)
    sides = [(size[0] // stride, size[1] // stride) for stride in (4, 8, 16, 32)]
    expected = [(2, channels, *side) for channels, side in zip((128, 256, 512, 512), sides, strict=True)]
    assert [tuple(f.shape) for f in teacher] == [tuple(f.shape) for f in student] == expected
    result = model(images)
    assert result.anomaly_map.shape == (2, 1, *size)
    torch.testing.assert_close(result.pred_score, model.loss.score(teacher, student)[:, None], rtol=1e-5, atol=0)


def test_training_mode_returns_features_that_train_the_cloner_alone():
    torch.manual_seed(0)
    model = MkdModel(direction_weight=0.5).train()
    model.teachers["vgg"].load("random")
    model.loss(*model(torch.rand(2, 3, 32, 48))).backward()
    assert all(p.grad is not None for p in model.students.parameters())
    assert all(p.grad is None for teacher in model.teachers.values() for p in teacher.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": -1.0}, "sigma must be 0 (no smoothing) or positive, not -1.0"),
        ({"direction_weight": 0}, "direction_weight must be 'auto' or a positive number, not 0"),
        ({"direction_weight": "Auto"}, "direction_weight must be 'auto' or a positive number, not 'Auto'"),
        ({"direction_weight": float("nan")}, "direction_weight must be 'auto' or a positive number, not nan"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigurationError) as error:
        MkdModel(**arguments)
    assert str(error.value) == f"{message}."


def test_small_images_and_missing_weights(model):
    with pytest.raises(ConfigurationError, match="needs 32 or more a side: give a larger image_size"):
        model(torch.rand(1, 3, 31, 64))
    assert MkdModel(sigma=8.0).min_side == 33
    with pytest.raises(TeacherNotLoadedError, match="vgg16 teacher has no weights yet"):
        MkdModel().eval()(torch.rand(1, 3, 64, 64))
