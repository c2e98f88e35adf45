"""MSFD's loss, map and networks, against references written from the paper's description."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from anomalib_mixedteacher.components.receptive_field import ReceptiveField
from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError
from anomalib_mixedteacher.models.msfd.anomaly_map import AnomalyMapGenerator
from anomalib_mixedteacher.models.msfd.loss import MsfdLoss
from anomalib_mixedteacher.models.msfd.torch_model import MsfdModel

SIZE = (64, 96)
SHAPES = [(5, 16, 24), (7, 8, 12), (3, 4, 6)]
FIELDS = [ReceptiveField(43, 4, 0.0), ReceptiveField(99, 8, 0.0), ReceptiveField(211, 16, 0.0)]


@pytest.fixture
def features():
    def draw(seed: int) -> dict[str, list[torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return {"resnet": [torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]}

    return draw(0), draw(1)


@pytest.fixture
def model(images):
    torch.manual_seed(0)
    model = MsfdModel()
    model.load_teachers("random")
    model.teachers["resnet"].set_normalization_statistics(images)
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


def reference_bilinear(layer: np.ndarray) -> np.ndarray:
    """Pixel centres aligned at half-integers, borders repeated."""
    sides = zip(SIZE, layer.shape[1:], strict=True)
    grid = np.meshgrid(*[(np.arange(side) + 0.5) * count / side - 0.5 for side, count in sides], indexing="ij")
    return np.stack([map_coordinates(m, grid, order=1, mode="nearest") for m in layer])


@pytest.mark.parametrize("weight", [0, 0.3, 0.5, 1])
def test_loss_equals_reference(features, weight):
    teacher, student = features
    expected = np.zeros(3)
    for t, s in zip(teacher["resnet"], student["resnet"], strict=True):
        expected += reference_distance(t.numpy(), s.numpy(), weight).mean(axis=(1, 2)) / 3
    loss = MsfdLoss(weight)
    np.testing.assert_allclose(loss.per_image(teacher, student)["resnet"].numpy(), expected, rtol=1e-12)
    assert loss(teacher, student)["resnet"].item() == pytest.approx(expected.mean(), rel=1e-12)
    assert loss(teacher, teacher)["resnet"] == 0


def test_each_distance_sees_what_the_other_does_not(features):
    teacher, _ = features
    longer = {"resnet": [3 * f for f in teacher["resnet"]]}
    assert MsfdLoss(1)(teacher, longer)["resnet"] < 1e-12
    assert MsfdLoss(0)(teacher, longer)["resnet"] > 1
    # of length 1e-3, whatever the direction: hardly apart by value
    short = [{"resnet": [1e-3 * f for f in x["resnet"]]} for x in features]
    assert MsfdLoss(1)(*short)["resnet"] > 0.5
    assert MsfdLoss(0)(*short)["resnet"] < 1e-5


@pytest.mark.parametrize("weight", [0, 0.3, 1])
@pytest.mark.parametrize("combination", ["sum", "product"])
@pytest.mark.parametrize("upsampling", ["gaussian", "bilinear"])
def test_map_equals_reference(features, weight, combination, upsampling):
    teacher, student = features
    levels = []
    for t, s, field in zip(teacher["resnet"], student["resnet"], FIELDS, strict=True):
        distance = reference_distance(t.numpy(), s.numpy(), weight)
        gaussian = upsampling == "gaussian"
        levels.append(
            reference_gaussian(distance, field, 0.2 * field.size / 2) if gaussian else reference_bilinear(distance)
        )
    expected = sum(levels) if combination == "sum" else levels[0] * levels[1] * levels[2]
    result = AnomalyMapGenerator(FIELDS, weight, combination, upsampling, sigma_ratio=0.2)(teacher, student, SIZE)
    assert result.shape == (3, 1, *SIZE)
    np.testing.assert_allclose(result[:, 0].numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("combination", ["sum", "product"])
def test_map_properties(features, combination):
    generator = AnomalyMapGenerator(FIELDS, combination=combination)
    teacher, student = features
    result = generator(teacher, student, SIZE)
    assert generator(teacher, teacher, SIZE).abs().max() == 0
    for index in range(3):  # one by one
        single = [{"resnet": [f[index : index + 1] for f in x["resnet"]]} for x in features]
        torch.testing.assert_close(generator(*single, SIZE)[0], result[index], rtol=1e-12, atol=0)
    single_precision = [{"resnet": [f.float() for f in x["resnet"]]} for x in features]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = generator(*single_precision, SIZE)
    torch.testing.assert_close(mixed, result.float(), rtol=1e-5, atol=0)


def test_levels_use_their_own_receptive_fields(model):
    assert model.anomaly_map_generator.fields == tuple(FIELDS)
    assert MsfdModel(layers=(4, 2)).anomaly_map_generator.fields == (FIELDS[1], ReceptiveField(435, 32, 0.0))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 32), (75, 100), (33, 64)])
def test_any_size_from_32(model, size):
    images = torch.rand(2, 3, *size)
    teacher, student = model.features(images)
    assert [f.shape for f in teacher["resnet"]] == [f.shape for f in student["resnet"]]
    assert [f.shape[1] for f in teacher["resnet"]] == [64, 128, 256]
    result = model(images)
    assert result.anomaly_map.shape == (2, 1, *size)
    assert torch.equal(result.pred_score, result.anomaly_map.amax(dim=(-2, -1)))
    assert result.pred_score.shape == (2, 1)
    assert torch.equal(result.anomaly_map, model.anomaly_map_generator(teacher, student, size))
    assert result.anomaly_map.isfinite().all()
    assert result.anomaly_map.min() > 0


@torch.no_grad()
def test_batch_gives_what_its_images_give_one_by_one(model, images):
    together = model(images)
    for index in range(len(images)):
        alone = model(images[index : index + 1])
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[index], rtol=1e-4, atol=0)
        torch.testing.assert_close(alone.pred_score[0], together.pred_score[index], rtol=1e-4, atol=0)


@torch.no_grad()
def test_a_student_equal_to_its_teacher_finds_nothing(model, images):
    assert model(images).pred_score.min() > 0
    model.students["resnet"].load_state_dict(model.teachers["resnet"].extractor.state_dict())
    assert model(images).pred_score.max() == 0


def test_only_the_student_learns(model, images):
    model.train()
    losses = MsfdLoss()(*model(images))
    losses["resnet"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.students.parameters())
    assert all(p.grad is None for p in model.teachers.parameters())


def test_the_student_starts_at_random_and_apart_from_a_random_teacher(model):
    teacher, student = model.teachers["resnet"].extractor.state_dict(), model.students["resnet"].state_dict()
    assert teacher.keys() == student.keys()
    weights = [key for key, value in student.items() if value.ndim == 4]
    assert not any(torch.equal(teacher[key], student[key]) for key in weights)


def test_wide_resnet():
    model = MsfdModel("wide_resnet50_2", layers=(2, 1))
    assert model.teachers["resnet"].backbone == "wide_resnet50_2"
    assert model.students["resnet"].channels == [256, 512]
    assert [field.size for field in model.anomaly_map_generator.fields] == [35, 91]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone": "efficientnet_b0"},
            "Unknown backbone 'efficientnet_b0'; choose one of resnet18, wide_resnet50_2",
        ),
        ({"layers": [5]}, r"layers=\[5\] must be one or more of 1, 2, 3, 4"),
        ({"layers": []}, r"layers=\[\] must be one or more of 1, 2, 3, 4"),
        ({"combination": "mean"}, "Unknown combination 'mean'; choose one of sum, product"),
        ({"upsampling": "nearest"}, "Unknown upsampling 'nearest'; choose one of gaussian, bilinear"),
        ({"sigma_ratio": 0}, "sigma_ratio must be positive, not 0"),
        ({"sigma_ratio": float("nan")}, "sigma_ratio must be positive, not nan"),
        ({"cosine_weight": 1.1}, "cosine_weight must lie between 0 .* and 1 .*, not 1.1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        MsfdModel(layers=arguments.pop("layers", (1,)), **arguments)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_wrong_weight_of_the_loss(weight):
    with pytest.raises(ConfigurationError, match=f"cosine_weight must lie between 0 .* not {weight}"):
        MsfdLoss(weight)


def test_small_images_and_missing_weights(model):
    with pytest.raises(ConfigurationError, match="needs 32 or more a side: enlarge them in the pre-processor"):
        model(torch.rand(1, 3, 31, 64))
    with pytest.raises(TeacherNotLoadedError):
        MsfdModel().eval()(torch.rand(1, 3, 64, 64))
