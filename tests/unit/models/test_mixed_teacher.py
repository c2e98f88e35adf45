"""MixedTeacher's networks, loss and map, against references written from the paper's description."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError
from anomalib_mixedteacher.models.mixed_teacher.anomaly_map import AnomalyMapGenerator
from anomalib_mixedteacher.models.mixed_teacher.loss import MixedTeacherLoss
from anomalib_mixedteacher.models.mixed_teacher.torch_model import MixedTeacherModel, ReducedResNet

SHAPES = {"resnet": [(64, 8, 12), (128, 4, 6)], "efficientnet": [(112, 4, 6), (320, 2, 3)]}  # at 64 x 96


FINEST = (8, 12)
FUSIONS = ["product", "sum", "normalized_product", "standardized_sum"]


def random_features(seed: int, batch: int = 3) -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(batch, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return {name: [draw(shape) for shape in shapes] for name, shapes in SHAPES.items()}


@pytest.fixture
def features():
    return random_features(0), random_features(1)


@pytest.fixture
def model(images):
    torch.manual_seed(0)
    model = MixedTeacherModel()
    model.load_teachers("random")
    for teacher in model.teachers.values():
        teacher.set_normalization_statistics(images)
    return model.eval()


def reference_distance(t: np.ndarray, s: np.ndarray) -> np.ndarray:
    """0.5 * squared L2 distance of features normalised over channels, (B, H, W)."""
    t = t / np.sqrt((t**2).sum(1, keepdims=True))
    s = s / np.sqrt((s**2).sum(1, keepdims=True))
    return 0.5 * ((t - s) ** 2).sum(1)


def reference_upsample(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, pixel centres aligned at half-integers, borders repeated; (B, h, w) -> (B, H, W)."""

    def matrix(source: int, target: int) -> np.ndarray:
        weights = np.zeros((target, source))
        for i in range(target):
            position = min(max((i + 0.5) * source / target - 0.5, 0), source - 1)
            low = math.floor(position)
            weights[i, low] += 1 - (position - low)
            weights[i, min(low + 1, source - 1)] += position - low
        return weights

    return matrix(layer.shape[1], size[0]) @ layer @ matrix(layer.shape[2], size[1]).T


def reference_layers(teacher, student, size) -> dict[str, list[np.ndarray]]:
    """Each layer's distance map, (B, *size)."""
    return {
        name: [
            reference_upsample(reference_distance(t.numpy(), s.numpy()), size)
            for t, s in zip(teacher[name], student[name], strict=True)
        ]
        for name in ("resnet", "efficientnet")
    }


def reference_coarse(teacher, student, image_size, fusion: str, sigma: float, mean=None, std=None) -> np.ndarray:
    """Fused and smoothed at a quarter of the image's sides, (B, H / 4, W / 4); mean and std of good maps (4, h, w)."""
    size = (math.ceil(image_size[0] / 4), math.ceil(image_size[1] / 4))
    layers = reference_layers(teacher, student, size)
    if fusion == "product":
        layers = {n: [d / t[0, 0].numel() for d, t in zip(layers[n], teacher[n], strict=True)] for n in layers}
    m1, m2 = (sum(maps) for maps in layers.values())
    fused = np.zeros_like(m1)
    for b in range(len(m1)):  # image by image: the scope is the image's own
        if fusion == "product":
            norm = np.sqrt((m2[b] ** 2).sum(axis=0, keepdims=True))  # along the height, column by column
            fused[b] = m1[b] * ((m2[b].max() - m2[b].min()) * m2[b] / norm)
        elif fusion == "sum":
            fused[b] = m1[b] + m2[b]
        elif fusion == "normalized_product":
            fused[b] = m1[b] / (mean[0].mean() + mean[1].mean()) * m2[b] / (mean[2].mean() + mean[3].mean())
        else:
            for index, layer in enumerate(layers["resnet"] + layers["efficientnet"]):
                m, s = (reference_upsample(good[index : index + 1], size)[0] for good in (mean, std))
                location, variance = np.log(m**2 / np.hypot(m, s)), np.log((m**2 + s**2) / m**2)
                fused[b] += np.maximum((np.log(layer[b]) - location) / np.sqrt(variance), 0) / 4
    return gaussian_filter(fused, (0, sigma / 4, sigma / 4), mode="mirror", truncate=4.0)


def test_loss_equals_reference(features):
    teacher, student = features
    losses = MixedTeacherLoss()(teacher, student)
    for name in SHAPES:
        pairs = zip(teacher[name], student[name], strict=True)
        expected = np.mean([reference_distance(t.numpy(), s.numpy()).mean() for t, s in pairs])
        assert losses[name].item() == pytest.approx(expected, rel=1e-12)


def test_loss_properties(features):
    loss = MixedTeacherLoss()
    teacher, student = features
    assert all(value == 0 for value in loss(teacher, teacher).values())
    scaled = {name: [f * 7.0 for f in maps] for name, maps in student.items()}
    flipped = [{n: [f.flip(0) for f in maps] for n, maps in x.items()} for x in features]
    for name, value in loss(teacher, student).items():
        assert value.item() == pytest.approx(loss(teacher, scaled)[name].item(), rel=1e-12)
        assert value.item() == pytest.approx(loss(*flipped)[name].item(), rel=1e-12)
        assert value.item() == pytest.approx(loss.per_image(teacher, student)[name].mean().item(), rel=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_map_equals_reference(features, fusion):
    generator = AnomalyMapGenerator(fusion, sigma=4.0).double()
    mean, std = np.random.default_rng(5).uniform(0.3, 0.7, (2, 4, 4, 6))
    generator.good_mean, generator.good_std = torch.from_numpy(mean), torch.from_numpy(std)
    result = generator(*features, (64, 96))
    coarse = reference_coarse(*features, (64, 96), fusion, 4.0, mean, std)
    assert result.shape == (3, 1, 64, 96)
    # 1e-6: anomalib's Gaussian kernel is a float32 buffer
    np.testing.assert_allclose(result[:, 0].numpy(), reference_upsample(coarse, (64, 96)), rtol=2e-6)
    np.testing.assert_allclose(generator.coarse(*features, (64, 96))[:, 0].numpy(), coarse, rtol=2e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_map_properties(features, fusion):
    generator = AnomalyMapGenerator(fusion).double()
    teacher, student = features
    result = generator(teacher, student, (64, 96))
    assert generator(teacher, teacher, (64, 96)).abs().max() == 0
    scaled = {name: [f * 7.0 for f in maps] for name, maps in student.items()}
    torch.testing.assert_close(generator(teacher, scaled, (64, 96)), result, rtol=1e-9, atol=0)
    permuted = [{n: [f[[2, 0, 1]] for f in maps] for n, maps in x.items()} for x in features]
    torch.testing.assert_close(generator(*permuted, (64, 96)), result[[2, 0, 1]], rtol=1e-12, atol=0)
    for index in range(3):  # one by one
        single = [{n: [f[index : index + 1] for f in maps] for n, maps in x.items()} for x in features]
        torch.testing.assert_close(generator(*single, (64, 96))[0], result[index], rtol=1e-12, atol=0)


@pytest.mark.parametrize("fusion", ["product", "normalized_product", "standardized_sum"])
def test_mixed_precision_does_not_round_the_map(features, fusion):
    features = [{name: [f.float() for f in maps] for name, maps in x.items()} for x in features]
    generator = AnomalyMapGenerator(fusion)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = generator(*features, (64, 96))
    assert torch.equal(rounded, generator(*features, (64, 96)))


def test_good_statistics_are_those_of_each_position(features):
    generator = AnomalyMapGenerator("standardized_sum", sigma=0).double()
    batches = [features, (random_features(2, 1), random_features(3, 1))]
    generator.set_good_statistics(iter(batches))
    parts = [reference_layers(*batch, FINEST) for batch in batches]
    maps = np.stack(
        [np.concatenate([part[name][i] for part in parts]) for name in ("resnet", "efficientnet") for i in (0, 1)]
    )
    np.testing.assert_allclose(generator.good_mean.numpy(), maps.mean(axis=1), rtol=1e-9)
    spread = maps.std(axis=1) / maps.mean(axis=1)
    expected = maps.mean(axis=1) * np.maximum(spread, 0.5 * spread.mean(axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(generator.good_std.numpy(), expected, rtol=1e-9)


def test_normalized_product_brings_good_maps_to_one(features):
    generator = AnomalyMapGenerator("normalized_product", sigma=0).double()
    generator.set_good_statistics([features])
    for one, maps in zip(generator.good_mean.split(2), generator.layer_maps(*features, FINEST), strict=True):
        assert (sum(maps).mean() / one.mean(dim=(1, 2)).sum()).item() == pytest.approx(1, rel=1e-9)


def test_standardized_sum_is_of_the_logarithms_of_good_images():
    """For log-normal distances the moments' mean and spread are those of the logarithms."""
    generator = AnomalyMapGenerator("standardized_sum", sigma=0, layers=(1, 1)).double()
    location, spread = -3.0, 0.6
    mean = math.exp(location + spread**2 / 2)
    generator.good_mean = torch.full((2, 1, 1), mean, dtype=torch.float64)
    generator.good_std = generator.good_mean * math.sqrt(math.exp(spread**2) - 1)
    logarithms = location + spread * torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(1, 1, 3, 4)
    fused = generator.fuse([[logarithms.exp()], [logarithms.exp()]], [[12], [12]])
    torch.testing.assert_close(fused, ((logarithms - location) / spread).clamp(min=0), rtol=1e-9, atol=1e-12)


def test_what_is_hard_to_imitate_everywhere_is_no_anomaly(features):
    """A border that no student imitates raises the plain map, and not the standardized one."""
    teacher = {name: [f[:2] for f in maps] for name, maps in features[0].items()}
    student = {
        name: [t + 0.1 * s[:2] for t, s in zip(teacher[name], features[1][name], strict=True)] for name in SHAPES
    }
    for maps in student.values():
        for part in maps:
            part[..., 0, :] *= -1
    image = tuple({name: [f[:1].clone() for f in maps] for name, maps in x.items()} for x in (teacher, student))
    image[1]["resnet"][1][:, :, -1, -1] *= -1  # a defect in one layer of one teacher
    tops = {}
    for fusion in ("sum", "standardized_sum"):
        generator = AnomalyMapGenerator(fusion, sigma=0).double()
        generator.set_good_statistics([(teacher, student)])
        coarse = generator.coarse(*image, (64, 96))[0, 0]
        tops[fusion] = divmod(int(coarse.argmax()), coarse.shape[1])
    assert tops["sum"][0] < 4
    assert tops["standardized_sum"][0] > 12


def test_positions_where_good_images_are_equal_do_not_divide_by_zero(features):
    teacher, student = features
    generator = AnomalyMapGenerator("standardized_sum").double()
    equal = {name: [s.clone() for s in maps] for name, maps in student.items()}
    for maps, like in zip(equal.values(), teacher.values(), strict=True):
        for part, other in zip(maps, like, strict=True):
            part[..., -1] = other[..., -1]
    generator.set_good_statistics([(teacher, equal)])
    assert generator.good_std.min() > 0
    assert generator(teacher, student, (64, 96)).isfinite().all()


def test_a_single_good_image_gives_finite_maps(features):
    one = [{name: [f[:1] for f in maps] for name, maps in x.items()} for x in features]
    generator = AnomalyMapGenerator("standardized_sum").double()
    generator.set_good_statistics([one])
    assert generator(*features, (64, 96)).isfinite().all()


def test_good_statistics_of_images_of_several_sizes(features):
    generator = AnomalyMapGenerator("standardized_sum").double()
    larger = tuple({n: [F.interpolate(f, scale_factor=2) for f in maps] for n, maps in x.items()} for x in features)
    generator.set_good_statistics([features, larger])
    assert generator.good_mean.shape == generator.good_std.shape == (4, *FINEST)
    assert generator(*larger, (128, 192)).shape == (3, 1, 128, 192)


def test_checkpoints_bring_their_statistics(features):
    generator, other = (AnomalyMapGenerator("standardized_sum").double() for _ in range(2))
    generator.set_good_statistics([features])
    other.load_state_dict(generator.state_dict())
    assert torch.equal(other(*features, (64, 96)), generator(*features, (64, 96)))


def test_checkpoints_of_version_0_1(features):
    """They hold one mean for each teacher."""
    old = AnomalyMapGenerator("normalized_product").double()
    ones = old(*features, (64, 96))  # each teacher's mean is 2, that of two layers
    state = {k: v for k, v in old.state_dict().items() if k != "good_std"}
    old.load_state_dict(state | {"good_mean": torch.tensor([0.3, 0.7], dtype=torch.float64)})
    torch.testing.assert_close(old(*features, (64, 96)), ones * 4 / (0.3 * 0.7), rtol=1e-9, atol=0)


def test_reduced_student_equals_reference(images):
    """Stem of a ResNet, then one basic block a stage, each with stride 2."""
    student = ReducedResNet((1, 2)).double().eval()
    p = student.state_dict()

    def norm(x, key):
        return F.batch_norm(x, p[f"{key}.running_mean"], p[f"{key}.running_var"], p[f"{key}.weight"], p[f"{key}.bias"])

    def block(x, key):
        y = F.relu(norm(F.conv2d(x, p[f"{key}.conv1.weight"], stride=2, padding=1), f"{key}.bn1"))
        y = norm(F.conv2d(y, p[f"{key}.conv2.weight"], padding=1), f"{key}.bn2")
        return F.relu(y + norm(F.conv2d(x, p[f"{key}.downsample.0.weight"], stride=2), f"{key}.downsample.1"))

    x = F.relu(norm(F.conv2d(images.double(), p["stem.0.weight"], stride=2, padding=3), "stem.1"))
    x = F.max_pool2d(x, 3, 2, 1)
    first = block(x, "stages.0")
    second = block(first, "stages.1")
    assert first.shape == (4, 64, 8, 8)
    assert second.shape == (4, 128, 4, 4)
    for result, expected in zip(student(images.double()), (first, second), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def test_students_start_as_stated():
    model = MixedTeacherModel(student_init="scratch")
    # Kaiming normal, fan out: std = sqrt(2 / (9 * 128)) for a 3 x 3 convolution to 128 channels
    weight = model.students["resnet"].stages[1].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    model = MixedTeacherModel(student_init="teacher")
    model.load_teachers("random")
    teacher, student = model.teachers["efficientnet"].extractor, model.students["efficientnet"]
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in teacher.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 32), (75, 100), (33, 64)])
def test_any_size_from_32(model, size):
    images = torch.rand(2, 3, *size)
    teacher, student = model.features(images)
    for name in teacher:
        assert [f.shape for f in teacher[name]] == [f.shape for f in student[name]]
    result = model(images)
    assert result.anomaly_map.shape == (2, 1, *size)
    coarse = model.anomaly_map_generator.coarse(teacher, student, size)
    assert coarse.shape == (2, 1, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert torch.equal(result.pred_score, coarse.amax(dim=(-2, -1)))
    assert result.anomaly_map.isfinite().all()


@torch.no_grad()
def test_batch_gives_what_its_images_give_one_by_one(model, images):
    together = model(images)
    for index in range(len(images)):
        alone = model(images[index : index + 1])
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[index], rtol=1e-4, atol=1e-12)
        torch.testing.assert_close(alone.pred_score[0], together.pred_score[index], rtol=1e-4, atol=1e-12)


def test_one_pass_trains_each_student_on_its_own_loss(model, images):
    model.train()
    losses = MixedTeacherLoss()(*model(images))
    losses["resnet"].backward()
    assert all(p.grad is None for p in model.students["efficientnet"].parameters())
    assert all(p.grad is not None for p in model.students["resnet"].parameters())
    assert all(p.grad is None for p in model.teachers.parameters())


@pytest.mark.parametrize("layers", [{"resnet_layers": [2, 3], "efficientnet_layers": [4]}, {"resnet_layers": [3, 1]}])
@torch.no_grad()
def test_other_layers(layers):
    model = MixedTeacherModel(**layers)
    model.load_teachers("random")
    teacher, student = model.features(torch.rand(1, 3, 64, 64))
    for name in teacher:
        assert [f.shape for f in teacher[name]] == [f.shape for f in student[name]]
    assert len(teacher["resnet"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fusion": "mean"}, "Unknown fusion 'mean'; choose one of product, sum, normalized_product"),
        ({"student_init": "imagenet"}, "Unknown student_init 'imagenet'; choose one of scratch, teacher"),
        ({"resnet_layers": [5]}, r"resnet_layers=\[5\] must be one or more of 1, 2, 3, 4"),
        ({"efficientnet_layers": []}, r"efficientnet_layers=\[\] must be one or more of 0, 1, 2, 3, 4"),
        ({"sigma": -1}, "sigma must be 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        MixedTeacherModel(**arguments)


def test_small_images_and_missing_weights(model):
    with pytest.raises(ConfigurationError, match="needs 32 or more a side: enlarge them in the pre-processor"):
        model(torch.rand(1, 3, 31, 64))
    with pytest.raises(TeacherNotLoadedError):
        MixedTeacherModel().eval()(torch.rand(1, 3, 64, 64))


@torch.no_grad()
def test_the_smoothing_has_to_fit():
    """At a quarter of the image's size it reaches 8 pixels for sigma 8, and as many are reflected at the border."""
    wide = MixedTeacherModel(sigma=8.0, resnet_layers=[1], efficientnet_layers=[1]).eval()
    wide.load_teachers("random")
    for size in ((32, 64), (64, 32)):
        with pytest.raises(ConfigurationError, match="which needs 33 or more a side with sigma=8.0: enlarge them"):
            wide(torch.rand(1, 3, *size))
        with pytest.raises(ConfigurationError, match="which needs 33 or more a side with sigma=8.0: enlarge them"):
            wide.train()(torch.rand(1, 3, *size))  # not at the end of the first epoch
        wide.eval()
    assert wide(torch.rand(1, 3, 33, 64)).anomaly_map.shape == (1, 1, 33, 64)
