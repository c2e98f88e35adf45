"""Teachers, against torchvision's networks as independent implementations."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import efficientnet_b0, resnet18
from torchvision.models.vgg import cfgs, make_layers

from anomalib_mixedteacher.components import FeatureExtractor, Teacher
from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError


def randomize_norms(net: torch.nn.Module) -> torch.nn.Module:
    """Give batch normalisation statistics and affine values that matter."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            module.running_var.mul_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return net.eval().double()


@torch.no_grad()
def test_resnet_features_equal_torchvision_layer_by_layer(tmp_path, images):
    reference = randomize_norms(resnet18(weights=None))
    torch.save(reference.float().state_dict(), tmp_path / "resnet18.pth")
    teacher = Teacher("resnet18", (1, 2), pool=True)
    teacher.load(str(tmp_path / "resnet18.pth"))

    x = images.double()
    reference.double()
    x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
    layer1 = reference.layer1(x)
    layer2 = reference.layer2(layer1)
    result = teacher.double()(images.double())
    assert [f.shape for f in result] == [(4, 64, 8, 8), (4, 128, 4, 4)]  # strides 8 and 16
    for feature, expected in zip(result, (layer1, layer2), strict=True):
        torch.testing.assert_close(feature, F.avg_pool2d(expected, 2), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_efficientnet_features_equal_torchvision_layer_by_layer(tmp_path, images):
    reference = randomize_norms(efficientnet_b0(weights=None))
    torch.save(reference.float().state_dict(), tmp_path / "efficientnet_b0.pth")
    teacher = Teacher("efficientnet_b0", (3, 4))
    teacher.load(str(tmp_path))  # a folder, torchvision's naming

    reference.double()
    stride16 = reference.features[:6](images.double())
    stride32 = reference.features[6:8](stride16)
    result = teacher.double()(images.double())
    assert [f.shape for f in result] == [(4, 112, 4, 4), (4, 320, 2, 2)]
    for feature, expected in zip(result, (stride16, stride32), strict=True):
        torch.testing.assert_close(feature, expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_vgg_features_equal_torchvision_behind_each_pooling(tmp_path, images):
    reference = make_layers(cfgs["D"])
    torch.save({f"features.{key}": value for key, value in reference.state_dict().items()}, tmp_path / "vgg16.pth")
    teacher = Teacher("vgg16", (1, 2, 3, 4))
    teacher.load(str(tmp_path))

    images = F.interpolate(images.double(), (50, 75))  # odd sides are rounded down
    reference.double()
    expected, x = [], images
    for start, end in ((0, 10), (10, 17), (17, 24), (24, 31)):
        x = reference[start:end](x)
        expected.append(x.clone())  # torchvision's ReLUs work in place
    result = teacher.double()(images)
    assert [f.shape for f in result] == [(4, 128, 12, 18), (4, 256, 6, 9), (4, 512, 3, 4), (4, 512, 1, 2)]
    for feature, map_ in zip(result, expected, strict=True):
        torch.testing.assert_close(feature, map_, rtol=1e-10, atol=1e-14)


def test_vgg_tells_its_maps_and_keeps_what_goes_into_its_activations():
    extractor = FeatureExtractor("vgg16", (1, 3))
    assert extractor.channels == [128, 512]
    assert extractor.reduction == [4, 16]
    assert extractor.out_indices == (1, 3)
    layers = list(extractor.net.features)
    assert len(layers) == 24  # up to pool4
    assert not any(layer.inplace for layer in layers if isinstance(layer, torch.nn.ReLU))
    assert list(extractor.net.state_dict())[:3] == ["features.0.weight", "features.0.bias", "features.2.weight"]
    assert not any(p.is_meta for p in extractor.parameters())
    with pytest.raises(ConfigurationError, match=r"vgg16 has no stages \[5\]"):
        FeatureExtractor("vgg16", (5,))


@torch.no_grad()
def test_random_vgg_keeps_the_scale(images):
    teacher = Teacher("vgg16", (1, 2, 3, 4))
    teacher.load("random")
    for feature in teacher(images):
        assert 0.02 < feature.square().mean().sqrt() < 2
        assert 0.2 < (feature > 0).float().mean() < 0.9


def test_nothing_behind_the_last_layer_is_kept():
    def count(*modules: torch.nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    resnet, efficientnet = resnet18(weights=None), efficientnet_b0(weights=None).features
    assert count(FeatureExtractor("resnet18", (1, 2))) == count(resnet.conv1, resnet.bn1, resnet.layer1, resnet.layer2)
    assert count(FeatureExtractor("efficientnet_b0", (3, 4))) == count(efficientnet[:8])
    assert count(FeatureExtractor("efficientnet_b0", (3,))) == count(efficientnet[:6])
    assert not any(p.is_meta for p in FeatureExtractor("efficientnet_b0", (3,)).parameters())


def test_unloaded_teacher_refuses_and_cannot_pass_for_a_loaded_one(images):
    teacher = Teacher("resnet18", (1,))
    with pytest.raises(TeacherNotLoadedError, match="train the model first, or give a trained checkpoint"):
        teacher(images)
    twin = Teacher("resnet18", (1,))
    twin.load_state_dict(teacher.state_dict())  # a checkpoint of a model that was never trained
    with pytest.raises(TeacherNotLoadedError):
        twin(images)


def test_restored_teacher_is_loaded_and_stays_frozen(images):
    source, teacher = Teacher("resnet18", (1,)), Teacher("resnet18", (1,))
    source.load("random")
    teacher.load_state_dict(source.state_dict())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    teacher.train()
    assert torch.equal(teacher(images)[0], source(images)[0])
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_normalization_statistics_make_random_features_standardised(images):
    teacher = Teacher("efficientnet_b0", (3, 4))
    teacher.load("random")
    images = F.interpolate(images, (256, 256))
    before = [feature.std() for feature in teacher(images)]
    teacher.set_normalization_statistics(images)
    for feature, std in zip(teacher(images), before, strict=True):
        flat = feature.transpose(0, 1).flatten(1)
        assert flat.mean(dim=1).abs().mean() < 0.3
        assert 0.5 < flat.std(dim=1).median() < 2
        assert not 0.5 < std < 2  # it was needed
    assert not any(module.training for module in teacher.modules())


def test_unknown_backbone_and_stage():
    with pytest.raises(ConfigurationError, match="Unknown backbone 'resnet19'"):
        FeatureExtractor("resnet19", (1,))
    with pytest.raises(ConfigurationError, match="no stages"):
        FeatureExtractor("resnet18", (1, 9))
