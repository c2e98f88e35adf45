"""MSFD's loss, map and networks, against references written from the paper's description in float64."""

import numpy as np
import pytest
import torch

from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError
from anomalib_mixedteacher.models.msfd.anomaly_map import AnomalyMapGenerator
from anomalib_mixedteacher.models.msfd.loss import MsfdLoss
from anomalib_mixedteacher.models.msfd.torch_model import MsfdModel
from anomalib_mixedteacher.models.msfd.upsampling import ReceptiveField

SIZE = (64, 96)
SHAPES = [(5, 16, 24), (7, 8, 12), (3, 4, 6)]
FIELDS = [ReceptiveField(43, 4, 0.0), ReceptiveField(99, 8, 0.0), ReceptiveField(211, 16, 0.0)]


@pytest.fixture
def features() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (
        [torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES] for _ in range(2)
    )
    return teacher, student


@pytest.fixture
def model(images) -> MsfdModel:
    torch.manual_seed(0)
    model = MsfdModel()
    model.load_teachers("random", [images])
    return model.eval()


def reference_distance(t: np.ndarray, s: np.ndarray, w: float) -> np.ndarray:
    """Euclidean and cosine distance, position by position, (B, H, W)."""
    distance = np.empty((t.shape[0], *t.shape[2:]))
    for b, i, j in np.ndindex(*distance.shape):
        a, c = t[b, :, i, j], s[b, :, i, j]
        cosine = a @ c / (np.linalg.norm(a) * np.linalg.norm(c))
        distance[b, i, j] = (1 - w) * np.linalg.norm(a - c) ** 2 / len(a) + w * (1 - cosine)
    return distance


def reference_gaussian(layer: np.ndarray, field: ReceptiveField, sigma: float) -> np.ndarray:
    """Each pixel's weighted mean over the positions that see it, (B, h, w) -> (B, *SIZE)."""
    offsets = [
        np.arange(side)[:, None] - (field.start + field.stride * np.arange(count)[None, :])
        for side, count in zip(SIZE, layer.shape[1:], strict=True)
    ]
    dy, dx = offsets[0][:, None, :, None], offsets[1][None, :, None, :]
    weights = np.exp(-(dy**2 + dx**2) / (2 * sigma**2))
    weights = weights * (np.maximum(abs(dy), abs(dx)) <= (field.size - 1) / 2)
    return np.einsum("yxij,bij->byx", weights, layer) / weights.sum(axis=(2, 3))


def reference_matrix(source: int, target: int) -> np.ndarray:
    """Bilinear interpolation, pixel centres aligned at half-integers, borders repeated, (target, source)."""
    positions = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    return (1 - abs(positions[:, None] - np.arange(source))).clip(min=0)


@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_loss_equals_reference(features, weight):
    expected = np.zeros(3)
    for t, s in zip(*features, strict=True):
        expected += reference_distance(t.numpy(), s.numpy(), weight).mean(axis=(1, 2)) / 3
    np.testing.assert_allclose(MsfdLoss(weight).per_image(*features).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_product_equals_reference(features, weight):
    teacher, student = features
    expected = np.ones((3, *SIZE))
    for t, s, field in zip(teacher, student, FIELDS, strict=True):
        distance = reference_distance(t.numpy(), s.numpy(), weight)
        expected *= reference_gaussian(distance, field, field.size / 24)
    result = AnomalyMapGenerator(FIELDS, weight, "product")(teacher, student, SIZE)
    assert result.shape == (3, 1, *SIZE)
    np.testing.assert_allclose(result[:, 0].numpy(), expected, rtol=1e-10)


def test_standardized_sum_equals_reference(features):
    """At a quarter of the image, where the finest level lies; against statistics that are the same everywhere."""
    teacher, student = features
    mean, std = np.array([[0.8, 0.9, 1.1], [0.2, 0.3, 0.1]])[..., None, None]
    generator = AnomalyMapGenerator(FIELDS, 0.3, sigma=0)
    generator.good_mean, generator.good_std = torch.from_numpy(mean), torch.from_numpy(std)
    expected = np.zeros((3, 16, 24))
    for level, (t, s) in enumerate(zip(teacher, student, strict=True)):
        distance = reference_distance(t.numpy(), s.numpy(), 0.3)
        rows, columns = (reference_matrix(*sides) for sides in zip(distance.shape[1:], (16, 24), strict=True))
        variance = np.log(1 + (std[level] / mean[level]) ** 2)
        logarithm = np.log(rows @ distance @ columns.T) - np.log(mean[level]) + variance / 2
        expected += (logarithm / np.sqrt(variance)).clip(min=0) / 3
    np.testing.assert_allclose(generator(teacher, student, SIZE)[:, 0].numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fusion", ["standardized_sum", "product"])
def test_mixed_precision_does_not_round_the_map(features, fusion):
    generator = AnomalyMapGenerator(FIELDS, fusion=fusion)
    single = [[f.float() for f in side] for side in features]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = generator(*single, SIZE)
    assert torch.equal(mixed, generator(*single, SIZE))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (75, 100), (33, 62)])
def test_any_size_and_the_score_is_the_maximum(model, size):
    images = torch.randn(2, 3, *size)
    features = model.teacher_features(images), model.student_features(images)
    for model.anomaly_map_generator.fusion in ("standardized_sum", "product"):
        result = model(images)
        assert result.anomaly_map.shape == (2, 1, *size)
        assert torch.equal(result.pred_score, model.anomaly_map_generator(*features, size).amax(dim=(-2, -1)))
        assert 0 <= result.anomaly_map.min() < result.anomaly_map.max() < torch.inf


@torch.no_grad()
def test_batch_gives_what_its_images_give_one_by_one(model, images):
    together = model(images)
    for index in range(len(images)):
        alone = model(images[index : index + 1])
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[index], rtol=1e-4, atol=0)


@torch.no_grad()
def test_a_student_equal_to_its_teacher_finds_nothing(model, images):
    model.anomaly_map_generator.good_mean *= 0.01
    assert model(images).pred_score.min() > 0
    model.students["resnet"].load_state_dict(model.teachers["resnet"].state_dict())
    assert model(images).pred_score.max() == 0


def test_only_the_student_learns(model, images):
    model.train()
    MsfdLoss()(*model(images)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.students.parameters())
    assert all(p.grad is None for p in model.teachers["resnet"].parameters())


def test_wide_resnet():
    model = MsfdModel("wide_resnet50_2", layers=(2, 1))
    assert model.students["resnet"].channels == [256, 512]
    assert [field.size for field in model.anomaly_map_generator.fields] == [35, 91]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [5]}, "resnet18 has no layer layer5"),
        ({"sigma": -1.0}, "sigma must be 0 .no smoothing. or positive, not -1.0"),
        ({"fusion": "sum"}, "Unknown fusion 'sum': choose one of standardized_sum, product"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        MsfdModel(**arguments)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_wrong_weight_of_the_loss(weight):
    with pytest.raises(ConfigurationError, match=f"cosine_weight must lie between 0 .* not {weight}"):
        MsfdLoss(weight)


def test_small_images_and_missing_weights(model):
    with pytest.raises(ConfigurationError, match="needs 32 or more a side: give a larger image_size"):
        model(torch.rand(1, 3, 31, 64))
    with pytest.raises(TeacherNotLoadedError):
        MsfdModel().eval()(torch.rand(1, 3, 64, 64))
