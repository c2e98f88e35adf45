"""MixedTeacher's networks, loss and map, against references written from the paper's description in float64."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional as F

from anomalib_mixedteacher import MixedTeacher
from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError
from anomalib_mixedteacher.models.mixed_teacher.anomaly_map import AnomalyMapGenerator
from anomalib_mixedteacher.models.mixed_teacher.loss import MixedTeacherLoss
from anomalib_mixedteacher.models.mixed_teacher.torch_model import MixedTeacherModel, ReducedResNet

SHAPES = [(64, 8, 12), (128, 4, 6), (112, 4, 6), (320, 2, 3)]  # at 64 x 96
IMAGE, COARSE, FINEST = (64, 96), (16, 24), (8, 12)
FUSIONS = ["product", "standardized_sum"]


def random_features(seed: int, batch: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


@pytest.fixture
def features() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return random_features(0), random_features(1)


def each(change, *features):
    """The same change to every map of the teachers and of the students."""
    return tuple([change(map_) for map_ in maps] for maps in features)


@pytest.fixture(scope="module")
def models() -> dict[str, MixedTeacherModel]:
    torch.manual_seed(0)
    built = {name: MixedTeacherModel(name).eval() for name in ("fast", "paper")}
    images = F.interpolate(torch.randn(4, 3, 16, 16), (96, 96), mode="bicubic") + torch.randn(4, 3, 96, 96) / 2
    for model in built.values():
        model.load_teachers("random", [images])
    return built


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


def reference_layers(teacher, student, size) -> list[np.ndarray]:
    """Each layer's distance map, (B, *size)."""
    distances = [reference_distance(t.numpy(), s.numpy()) for t, s in zip(teacher, student, strict=True)]
    return [reference_upsample(distance, size) for distance in distances]


def reference_whitened_layers(good, batches, size) -> list[np.ndarray]:
    """Each layer's Mahalanobis distances of all batches: of what features differ by, then of the teacher's."""

    def compared(pairs):
        for own in (1, 0):
            for layer in zip(*(zip(*pair, strict=True) for pair in pairs), strict=True):
                yield np.concatenate([unit(t.numpy()) - own * unit(s.numpy()) for t, s in layer])

    def unit(features):
        return features / np.sqrt((features**2).sum(1, keepdims=True))

    layers = []
    for fitted, layer in zip(compared(good), compared(batches), strict=True):
        vectors = fitted.transpose(1, 0, 2, 3).reshape(fitted.shape[1], -1)
        covariance = np.cov(vectors, bias=True)
        inverse = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
        centred = layer - vectors.mean(axis=1)[:, None, None]
        distance = 0.5 * np.einsum("bchw,cd,bdhw->bhw", centred, inverse, centred)
        layers.append(reference_upsample(distance, size))
    return layers


def reference_crossed_layers(batches, size) -> list[np.ndarray]:
    """Each layer's distance map of good images, either half of them whitened by the other."""
    images = [each(lambda maps, i=i: maps[i : i + 1], *batch) for batch in batches for i in range(len(batch[0][0]))]
    even, odd = images[0::2], images[1::2]
    crossed = zip(reference_whitened_layers(even, odd, size), reference_whitened_layers(odd, even, size), strict=True)
    return [np.concatenate(parts) for parts in crossed]


def reference_map(layers, fusion: str, sigma: float, mean, std) -> np.ndarray:
    """Layers fused and smoothed at a quarter of the image's sides; mean and std of good maps (layers, h, w)."""
    fused = np.zeros_like(layers[0])
    for b in range(len(fused)):  # image by image: the scope is the image's own
        if fusion == "product":
            parts = [layer[b] / (h * w) for layer, (_, h, w) in zip(layers, SHAPES, strict=True)]
            m1, m2 = parts[0] + parts[1], parts[2] + parts[3]
            norm = np.sqrt((m2**2).sum(axis=0, keepdims=True))  # along the height, column by column
            fused[b] = m1 * ((m2.max() - m2.min()) * m2 / norm)
        else:
            for index, layer in enumerate(layers):
                m, s = (reference_upsample(good[index : index + 1], COARSE)[0] for good in (mean, std))
                location, variance = np.log(m**2 / np.hypot(m, s)), np.log((m**2 + s**2) / m**2)
                fused[b] += np.maximum((np.log(layer[b]) - location) / np.sqrt(variance), 0) / len(layers)
    return gaussian_filter(fused, (0, sigma / 4, sigma / 4), mode="mirror", truncate=4.0)


def test_loss_equals_reference(features):
    loss = MixedTeacherLoss()
    pairs = list(zip(*features, strict=True))
    for b in range(3):
        expected = np.mean([reference_distance(t.numpy(), s.numpy())[b].mean() for t, s in pairs])
        assert loss.per_image(*features)[b].item() == pytest.approx(expected, rel=1e-12)
    assert loss(*features).item() == pytest.approx(loss.per_image(*features).numpy().mean(), rel=1e-12)
    assert loss(features[0], features[0]) == 0


@pytest.mark.parametrize("sigma", [4.0, 0.0])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_map_equals_reference(features, fusion, sigma):
    generator = AnomalyMapGenerator(fusion, sigma).double()
    good = (random_features(2, 2), random_features(3, 2))
    generator.set_good_statistics([good])
    mean, std = np.random.default_rng(5).uniform(30, 70, (2, 8, 4, 6))
    generator.good_mean, generator.good_std = torch.from_numpy(mean), torch.from_numpy(std)
    result = generator(*features, IMAGE)
    assert result.shape == (3, 1, *COARSE)
    paper = fusion == "product"
    layers = reference_layers(*features, COARSE) if paper else reference_whitened_layers([good], [features], COARSE)
    # 2e-6: anomalib's Gaussian kernel is a float32 buffer
    np.testing.assert_allclose(result[:, 0].numpy(), reference_map(layers, fusion, sigma, mean, std), rtol=2e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_mixed_precision_does_not_round_the_map(features, fusion):
    features = each(torch.Tensor.float, *features)
    generator = AnomalyMapGenerator(fusion)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = generator(*features, IMAGE)
    assert torch.equal(rounded, generator(*features, IMAGE))


def test_good_statistics_are_those_of_each_position(features):
    generator = AnomalyMapGenerator(sigma=0).double()
    batches = [features, (random_features(2, 1), random_features(3, 1))]
    generator.set_good_statistics(iter(batches))
    maps = np.stack(reference_crossed_layers(batches, FINEST))
    mean = maps.mean(axis=1)
    spread = maps.std(axis=1) / mean
    assert (spread < 0.5 * spread.mean(axis=(1, 2), keepdims=True)).any()  # the least spread plays its part
    expected = mean * np.maximum(spread, 0.5 * spread.mean(axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(generator.good_mean.numpy(), mean, rtol=1e-9)
    np.testing.assert_allclose(generator.good_std.numpy(), expected, rtol=1e-9)


def test_statistics_of_tiles_are_those_of_all_positions_but_the_border(features):
    """A tile may lie anywhere, so its positions see the same surface; only the padding belongs to one of them."""
    teacher, student = each(lambda map_: F.interpolate(map_, size=(16, 24)), *features)
    generator = AnomalyMapGenerator(sigma=0).double()
    generator.set_good_statistics([(teacher, student)], tile_size=256)
    maps = np.stack(reference_crossed_layers([(teacher, student)], (16, 24)))
    for found, moment in ((generator.good_mean, np.mean), (generator.good_std, np.std)):
        of_all = moment(maps[..., 2:-2, 3:-3], axis=(1, 2, 3))  # 32 of 256 pixels are an eighth of a side
        np.testing.assert_allclose(found[:, 2:-2, 3:-3], np.broadcast_to(of_all[:, None, None], (8, 12, 18)), rtol=1e-9)
    border = np.ones((16, 24), bool)
    border[2:-2, 3:-3] = False
    np.testing.assert_allclose(generator.good_mean.numpy()[:, border], maps.mean(axis=1)[:, border], rtol=1e-9)


def test_a_tile_that_is_all_border_keeps_its_positions(features):
    tiles, images = AnomalyMapGenerator().double(), AnomalyMapGenerator().double()
    tiles.set_good_statistics([features], tile_size=64)
    images.set_good_statistics([features])
    assert torch.equal(tiles.good_mean, images.good_mean)
    assert torch.equal(tiles.good_std, images.good_std)


def test_distances_are_whitened_by_what_good_features_differ_by(features):
    """What varies least between teacher and student on good images counts as much as what varies most."""
    generator = AnomalyMapGenerator().double()
    good, other = [features], [(random_features(2, 2), random_features(3, 2))]
    generator.set_good_statistics(good)
    expected = np.stack(reference_whitened_layers(good, other, FINEST), axis=1)
    np.testing.assert_allclose(generator.distance_maps(*other[0], FINEST).numpy(), expected, rtol=1e-9)
    product = AnomalyMapGenerator("product").double()  # the paper's
    plain = np.stack(reference_layers(*other[0], FINEST), axis=1)
    np.testing.assert_allclose(product.distance_maps(*other[0], FINEST).numpy(), plain, rtol=1e-9)


def test_a_few_good_images_do_not_make_another_anomalous():
    """Moments of fewer positions than channels fit these images and no other: the other half is judged by them."""
    generator = AnomalyMapGenerator().double()
    good, new = ((random_features(seed, 4), random_features(seed + 1, 4)) for seed in (0, 2))
    generator.set_good_statistics([good])
    assert generator(*new, IMAGE).mean() < 1  # standard deviations of good images


def test_only_random_teachers_look_at_images():
    def images():
        yield pytest.fail("looked at")

    model = MixedTeacherModel()
    model.load_teachers("packaged", images())
    assert model.loaded


def test_standardized_sum_is_of_the_logarithms_of_good_images():
    """For log-normal distances the moments' mean and spread are those of the logarithms."""
    generator = AnomalyMapGenerator(sigma=0, channels=[[1], [1]]).double()
    location, spread = -3.0, 0.6
    generator.good_mean = torch.full((2, 1, 1), math.exp(location + spread**2 / 2), dtype=torch.float64)
    generator.good_std = generator.good_mean * math.sqrt(math.exp(spread**2) - 1)
    logarithms = location + spread * torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(1, 1, 3, 4)
    fused = generator.standardized_sum(logarithms.exp().repeat(1, 2, 1, 1))
    torch.testing.assert_close(fused, ((logarithms - location) / spread).clamp(min=0), rtol=1e-9, atol=1e-12)


def test_what_is_hard_to_imitate_everywhere_is_no_anomaly(features):
    """A border that no student imitates raises the product, and not the standardized sum."""
    teacher = [map_[:2] for map_ in features[0]]
    student = [t + 0.1 * s[:2] for t, s in zip(teacher, features[1], strict=True)]
    for map_ in student:
        map_[..., 0, :] *= -1
    image = each(lambda map_: map_[:1].clone(), teacher, student)
    image[1][1][:, :, -1, -1] *= -1  # a defect in one layer of one teacher
    rows = {}
    for fusion in FUSIONS:
        generator = AnomalyMapGenerator(fusion, sigma=0).double()
        if generator.needs_good_statistics:
            generator.set_good_statistics([(teacher, student)])
        rows[fusion] = int(generator(*image, IMAGE)[0, 0].argmax()) // 24
    assert rows["product"] < 4
    assert rows["standardized_sum"] > 12


def test_statistics_of_equal_or_single_images_give_finite_maps(features):
    teacher, student = features
    equal = [s.clone() for s in student]
    for s, t in zip(equal, teacher, strict=True):
        s[..., -1] = t[..., -1]  # distance 0 on every good image
    for good in ((teacher, equal), each(lambda map_: map_[:1], *features)):
        generator = AnomalyMapGenerator().double()
        generator.set_good_statistics([good])
        assert generator.good_std.min() > 0
        assert generator(teacher, student, IMAGE).isfinite().all()


def test_statistics_of_several_sizes_and_from_a_checkpoint(features):
    generator, restored = AnomalyMapGenerator().double(), AnomalyMapGenerator().double()
    larger = each(lambda map_: F.interpolate(map_, scale_factor=2), *features)
    generator.set_good_statistics([features, larger])
    assert generator.good_mean.shape == generator.good_std.shape == (8, *FINEST)
    restored.load_state_dict(generator.state_dict())
    assert torch.equal(restored(*larger, (128, 192)), generator(*larger, (128, 192)))


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_reduced_student_equals_reference(images, width):
    """Stem of a ResNet, one basic block of stride 2 a stage, a 1 x 1 head where channels differ."""
    maps = [(0, 64), (1, 64), (2, 128), (2, 112), (3, 320)]
    student = ReducedResNet(maps, width).double().eval()
    p = student.state_dict()

    def norm(x, key):
        return F.batch_norm(x, p[f"{key}.running_mean"], p[f"{key}.running_var"], p[f"{key}.weight"], p[f"{key}.bias"])

    def block(x, key):
        y = F.relu(norm(F.conv2d(x, p[f"{key}.conv1.weight"], stride=2, padding=1), f"{key}.bn1"))
        y = norm(F.conv2d(y, p[f"{key}.conv2.weight"], padding=1), f"{key}.bn2")
        return F.relu(y + norm(F.conv2d(x, p[f"{key}.downsample.0.weight"], stride=2), f"{key}.downsample.1"))

    x = F.relu(norm(F.conv2d(images.double(), p["stem.0.weight"], stride=2, padding=3), "stem.1"))
    stages = [F.max_pool2d(x, 3, 2, 1)]
    for index in range(3):
        stages.append(block(stages[-1], f"stages.{index}"))
    assert [stage.shape[1] for stage in stages] == [64 * width, 64 * width, 128 * width, 256 * width]
    for index, (stage, channels) in enumerate(maps):
        expected = stages[stage]
        if expected.shape[1] != channels:
            expected = F.conv2d(expected, p[f"heads.{index}.weight"], p[f"heads.{index}.bias"])
        torch.testing.assert_close(student(images.double())[index], expected, rtol=1e-10, atol=1e-12)
    assert sum(isinstance(head, nn.Conv2d) for head in student.heads) == (2 if width == 1 else 5)


def test_students_start_at_kaimings_scale():
    weight = ReducedResNet([(2, 128)]).stages[1].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)  # fan out
    assert weight.mean().abs() < 1e-3


@pytest.mark.parametrize(
    ("arguments", "strides"),
    [
        ({}, [4, 8, 32]),
        ({"architecture": "paper"}, [8, 16, 16, 32]),
        ({"resnet_layers": [3, 1], "efficientnet_blocks": [2]}, [4, 16, 8]),
        ({"architecture": "paper", "resnet_layers": [2], "efficientnet_blocks": [3, 5]}, [16, 16, 32]),
        ({"efficientnet": "tf_efficientnet_b0", "efficientnet_blocks": [4, 5]}, [4, 8, 16, 32]),
    ],
)
def test_every_teacher_map_has_a_students_map_of_its_shape(arguments, strides):
    model = MixedTeacherModel(**arguments)
    model.load_teachers("random", [torch.rand(2, 3, 64, 96)])
    with torch.no_grad():
        teacher, student = model.train()(torch.rand(2, 3, 64, 96))
    assert [map_.shape for map_ in teacher] == [map_.shape for map_ in student]
    assert [64 // map_.shape[-2] for map_ in teacher] == strides
    assert sum(model.anomaly_map_generator.layers) == len(teacher)
    assert not any(parameter.requires_grad for parameter in model.teachers.parameters())


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["fast", "paper"])
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (75, 100), (33, 64)])
def test_any_size_from_32(models, architecture, size):
    model = models[architecture]
    images = torch.rand(2, 3, *size)
    teacher, student = model.teacher_features(images), model.student_features(images)
    assert [map_.shape for map_ in teacher] == [map_.shape for map_ in student]
    result = model(images)
    assert result.anomaly_map.shape == (2, 1, *size)
    coarse = model.anomaly_map_generator(teacher, student, size)
    assert coarse.shape == (2, 1, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    np.testing.assert_allclose(
        result.anomaly_map[:, 0], reference_upsample(coarse[:, 0].numpy(), size), rtol=1e-4, atol=1e-6
    )
    assert torch.equal(result.pred_score, coarse.amax(dim=(-2, -1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "slow"}, "Unknown architecture 'slow': choose one of fast, paper."),
        ({"fusion": "mean"}, "Unknown fusion 'mean': choose one of standardized_sum, product."),
        ({"resnet_layers": [4]}, r"resnet_layers=\[4\] must be one or more of 1, 2, 3\."),
        ({"efficientnet_blocks": []}, r"efficientnet_blocks=\[\] must be one or more of 2, 3, 4, 5, 6\."),
        ({"efficientnet": "efficientnet_c0"}, "Unknown backbone 'efficientnet_c0': choose one that timm"),
        ({"efficientnet": "resnet34"}, r"resnet34 has no layer blocks\.5: choose of conv1, .*layer4"),
        ({"sigma": -1}, r"sigma must be 0 \(no smoothing\) or positive, not -1\."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        MixedTeacherModel(**arguments)


@torch.no_grad()
def test_images_too_small_and_teachers_without_weights(models, images):
    with pytest.raises(ConfigurationError, match="Images of 31 x 64 pixels .* needs 32 or more a side: give a larger"):
        models["fast"](torch.rand(1, 3, 31, 64))
    with pytest.raises(TeacherNotLoadedError):
        MixedTeacherModel().eval()(images)


@torch.no_grad()
def test_the_smoothing_has_to_fit():
    """At a quarter of the image's size it reaches 8 pixels for sigma 8, and as many are reflected at the border."""
    wide = MixedTeacherModel(sigma=8.0, resnet_layers=[1], efficientnet_blocks=[2])
    wide.load_teachers("random", [torch.rand(1, 3, 64, 64)])
    for training, size in ((True, (32, 64)), (False, (64, 32))):  # in the first step, not when it is validated
        with pytest.raises(ConfigurationError, match="which needs 33 or more a side"):
            wide.train(training)(torch.rand(1, 3, *size))
    assert wide.eval()(torch.rand(1, 3, 33, 64)).anomaly_map.shape == (1, 1, 33, 64)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({}, ()),
        ({"architecture": "paper"}, ("efficientnet",)),
        ({"efficientnet": "efficientnet_b0"}, ("efficientnet",)),
        ({"architecture": "paper", "efficientnet": "tf_efficientnet_lite0"}, ()),
    ],
)
def test_int8_spares_the_efficientnet_whose_activations_have_no_bound(arguments, kept):
    assert MixedTeacher(**arguments).float_networks == kept
