"""Teacher weights: sources, strictness, messages."""

import socket

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import efficientnet_b0, resnet18, resnet34, vgg16

from anomalib_mixedteacher.components import FeatureExtractor
from anomalib_mixedteacher.components.torchvision_naming import from_torchvision
from anomalib_mixedteacher.components.weights import load_teacher_weights
from anomalib_mixedteacher.errors import WeightsError


@pytest.fixture(scope="module")
def net():
    return FeatureExtractor("resnet18", (1, 2)).net


@pytest.fixture(scope="module")
def state():
    return resnet18(weights=None).state_dict()


def load(source, net):
    return load_teacher_weights("resnet18", str(source), net)


@pytest.mark.parametrize("name", ["resnet18.safetensors", "resnet18.pth", "anything.pt"])
def test_file_of_the_whole_network_is_cut_to_what_is_needed(tmp_path, net, state, name):
    path = tmp_path / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    loaded = load(path, net)
    assert loaded.keys() == net.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_half_precision_file_becomes_single(tmp_path, net, state):
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        tmp_path / "w.safetensors",
    )
    assert load(tmp_path / "w.safetensors", net)["conv1.weight"].dtype == torch.float32


def test_one_file_for_two_backbones_by_prefix(tmp_path, net, state):
    other = efficientnet_b0(weights=None).state_dict()
    both = {f"resnet18.{k}": v for k, v in state.items()} | {
        f"efficientnet_b0.{k}": v for k, v in from_torchvision(other).items()
    }
    torch.save(both, tmp_path / "teachers.pth")
    assert torch.equal(load(tmp_path / "teachers.pth", net)["conv1.weight"], state["conv1.weight"])
    efficient = FeatureExtractor("efficientnet_b0", (3, 4)).net
    loaded = load_teacher_weights("efficientnet_b0", str(tmp_path / "teachers.pth"), efficient)
    assert torch.equal(loaded["conv_stem.weight"], other["features.0.0.weight"])


def test_random_is_seeded(net):
    first, second = load("random", net), load("random", net)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_unknown_name(net):
    with pytest.raises(
        WeightsError, match=r"'imagnet' is neither one of imagenet, texture, random nor an existing file"
    ):
        load("imagnet", net)


def test_missing_key_is_named(tmp_path, net, state):
    torch.save({k: v for k, v in state.items() if k != "layer1.0.conv1.weight"}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth does not fit resnet18: key 'layer1.0.conv1.weight' is missing"):
        load(tmp_path / "w.pth", net)


def test_unknown_key_is_named(tmp_path, net, state):
    torch.save(state | {"layer1.0.conv9.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"unknown key 'layer1.0.conv9.weight'"):
        load(tmp_path / "w.pth", net)


def test_wrong_shape_is_named(tmp_path, net, state):
    torch.save(state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"'conv1.weight' has shape \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)"):
        load(tmp_path / "w.pth", net)


@pytest.mark.parametrize("other", [resnet34, efficientnet_b0])
def test_weights_of_another_backbone(tmp_path, net, other):
    torch.save(other(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="does not fit resnet18: unknown key .*give the weights of a resnet18"):
        load(tmp_path / "w.pth", net)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_file(tmp_path, net, state, suffix):
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(WeightsError, match=r"w\.\w+ cannot be read .* copy it again"):
        load(path, net)


def test_file_that_is_no_weights_file(tmp_path, net):
    (tmp_path / "w.pth").write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(WeightsError, match=r"w\.pth is no PyTorch file, or a truncated one: copy it again"):
        load(tmp_path / "w.pth", net)


def test_file_that_holds_code_is_refused(tmp_path, net):
    torch.save(resnet18(weights=None), tmp_path / "w.pth")  # a pickled module, not tensors
    with pytest.raises(WeightsError, match="state_dict"):
        load(tmp_path / "w.pth", net)


def test_folder_without_the_backbone(tmp_path, net):
    with pytest.raises(WeightsError, match=r"has no resnet18.safetensors or resnet18.pth"):
        load(tmp_path, net)


def test_unreachable_hub_names_the_remedies(tmp_path, net, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def refuse(*args, **kwargs):
        raise OSError("network is down")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(WeightsError, match=r"resnet18\.tv_in1k .*cache.*path.*teacher_weights='texture'"):
        load("imagenet", net)


@pytest.fixture(scope="module")
def vgg():
    return FeatureExtractor("vgg16", (1, 2, 3, 4)).net


def vgg_file(path, create):
    """Write a file with the keys and shapes of a whole VGG, head included, that stores one number a key."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in create().state_dict().items()}
    state = {key: torch.tensor(float(index)).expand(shape) for index, (key, shape) in enumerate(shapes.items())}
    torch.save(state, path)
    return state


@pytest.mark.parametrize("create", [lambda: timm.create_model("vgg16"), vgg16])
def test_whole_vgg_file_of_timm_and_of_torchvision(tmp_path, vgg, create):
    state = vgg_file(tmp_path / "vgg16.pth", create)
    loaded = load_teacher_weights("vgg16", str(tmp_path), vgg)
    assert loaded.keys() == vgg.state_dict().keys()
    assert len(loaded) < len(state)  # the head was left aside
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("other", ["vgg11", "vgg13", "vgg19", "vgg16_bn"])
def test_weights_of_another_vgg(tmp_path, vgg, other):
    vgg_file(tmp_path / "w.pth", lambda: timm.create_model(other))
    with pytest.raises(WeightsError) as error:
        load_teacher_weights("vgg16", str(tmp_path / "w.pth"), vgg)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'w.pth'} does not fit vgg16: with 'features.")
    assert message.endswith(
        "' it is for another network, of another depth or with batch normalisation; give the weights of a vgg16."
    )


def test_resnet_weights_for_a_vgg_and_the_reverse(tmp_path, vgg, net, state):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="does not fit vgg16: unknown key .*give the weights of a vgg16"):
        load_teacher_weights("vgg16", str(tmp_path / "w.pth"), vgg)
    vgg_file(tmp_path / "w.pth", vgg16)
    with pytest.raises(WeightsError, match="does not fit resnet18: unknown key .*give the weights of a resnet18"):
        load(tmp_path / "w.pth", net)


def test_vgg_has_no_texture_teacher(vgg):
    with pytest.raises(WeightsError, match="There is no texture teacher for vgg16, only for"):
        load_teacher_weights("vgg16", "texture", vgg)


def test_random_vgg_is_seeded(vgg):
    first, second = (load_teacher_weights("vgg16", "random", vgg) for _ in range(2))
    assert first.keys() == vgg.state_dict().keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite(tmp_path, state, net, value):
    broken = {**state, "layer1.0.conv1.weight": state["layer1.0.conv1.weight"].clone()}
    broken["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(broken, tmp_path / "resnet18.safetensors")
    with pytest.raises(WeightsError, match=r"resnet18\.safetensors has NaN .* in 'layer1.0.conv1.weight': copy"):
        load(tmp_path, net)


def test_a_tilde_is_the_home_directory(tmp_path, state, net, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "teachers").mkdir()
    save_file(state, tmp_path / "teachers" / "resnet18.safetensors")
    assert load("~/teachers", net)["conv1.weight"].equal(state["conv1.weight"])
    with pytest.raises(WeightsError, match="teacher_weights='~/others' is neither"):
        load("~/others", net)
