"""The shipped teachers: checksum, messages, size, and what was written comes back."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from anomalib_mixedteacher.components import FeatureExtractor
from anomalib_mixedteacher.components.texture_weights import (
    FOLDER,
    load_texture_teacher,
    read_manifest,
    write_texture_teachers,
)
from anomalib_mixedteacher.components.weights import load_teacher_weights
from anomalib_mixedteacher.errors import WeightsError

LAYERS = {"resnet18": (1, 2), "efficientnet_b0": (3, 4)}


@pytest.fixture(scope="module")
def net():
    return FeatureExtractor("resnet18", (1, 2)).net


@pytest.fixture
def folder(tmp_path, net):
    state = {key: value + 0.1 for key, value in net.state_dict().items()}
    write_texture_teachers(tmp_path / "teachers", {"resnet18": state}, {"resnet18": {"version": "x", "layers": [1, 2]}})
    return tmp_path / "teachers"


@pytest.mark.parametrize("backbone", LAYERS)
class TestShipped:
    def test_loads_without_network(self, backbone, monkeypatch):
        monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was tried"))
        extractor = FeatureExtractor(backbone, LAYERS[backbone])
        extractor.net.load_state_dict(load_teacher_weights(backbone, "texture", extractor.net))
        with torch.no_grad():
            maps = extractor.eval()(torch.randn(2, 3, 64, 64))
        assert all(m.isfinite().all() for m in maps)
        assert all(m.std(dim=(0, 2, 3)).median() > 1e-3 for m in maps)

    def test_manifest_tells_what_made_it(self, backbone):
        entry = read_manifest()[backbone]
        assert tuple(entry["layers"]) == LAYERS[backbone]
        assert entry["bytes"] == (FOLDER / entry["file"]).stat().st_size
        assert entry["recipe"]["backbones"] == [backbone]
        assert {"generator", "commit", "version", "torch", "device"} <= entry.keys()
        assert {"seed", "steps", "objectives"} <= entry["recipe"].keys()


def test_shipped_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000


def test_what_was_written_comes_back(folder, net):
    origin, state = load_texture_teacher("resnet18", net, folder)
    assert origin == "texture, version x"
    original = net.state_dict()
    assert state["conv1.weight"].dtype == torch.float16
    torch.testing.assert_close(state["conv1.weight"].float(), original["conv1.weight"] + 0.1, atol=1e-3, rtol=1e-3)
    # variances may be too small for float16
    assert torch.equal(state["bn1.running_var"], original["bn1.running_var"] + 0.1)


def test_writing_one_backbone_keeps_the_other(folder):
    write_texture_teachers(folder, {"other": {"weight": torch.ones(1, 1)}}, {"other": {"version": "y", "layers": [0]}})
    assert sorted(read_manifest(folder)) == ["other", "resnet18"]
    assert not list(folder.glob(".*.tmp"))


def test_a_tampered_file_is_refused(folder, net):
    path = folder / "resnet18.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"was changed \(its SHA-256 differs\): install .* again"):
        load_texture_teacher("resnet18", net, folder)


def test_a_missing_file(folder, net):
    (folder / "resnet18.safetensors").unlink()
    with pytest.raises(WeightsError, match="cannot be read: install anomalib-mixedteacher again"):
        load_texture_teacher("resnet18", net, folder)


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"teachers": 3})])
def test_a_damaged_manifest(folder, net, content):
    if content is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(WeightsError, match="manifest.json is missing or damaged: install"):
        load_texture_teacher("resnet18", net, folder)


def test_layers_beyond_the_teacher(folder):
    deeper = FeatureExtractor("resnet18", (1, 3)).net
    with pytest.raises(WeightsError, match="resnet18 ends at layer 2, but layer 3 is asked for: use layers up to"):
        load_texture_teacher("resnet18", deeper, folder)


def test_shallower_layers_are_fine(folder):
    shallow = FeatureExtractor("resnet18", (1,)).net
    _, state = load_texture_teacher("resnet18", shallow, folder)
    assert shallow.state_dict().keys() - state.keys() <= {k for k in shallow.state_dict() if "num_batches" in k}


def test_another_backbone(folder, net):
    with pytest.raises(WeightsError, match="no texture teacher for resnet34, only for resnet18: use teacher_weights"):
        load_texture_teacher("resnet34", net, folder)


def test_a_folder_of_teachers_is_a_source_of_weights(folder, net, tmp_path):
    shutil.copytree(folder, tmp_path / "mine")
    state = load_teacher_weights("resnet18", str(tmp_path / "mine"), net)
    assert state.keys() == net.state_dict().keys()


def test_two_processes_write_one_manifest(folder):
    code = """
import sys, time
from pathlib import Path
import torch
from anomalib_mixedteacher.components import texture_weights
read = texture_weights.read_manifest
def slow(folder):
    entries = read(folder)
    time.sleep(1.5)
    return entries
texture_weights.read_manifest = slow
name = sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
texture_weights.write_texture_teachers(Path(sys.argv[1]), {name: {"weight": torch.ones(1, 1)}}, {name: {"layers": [0]}})
"""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("first", "second")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0]
    assert sorted(read_manifest(folder)) == ["first", "resnet18", "second"]
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("value", [torch.nan, 1e6])
def test_weights_that_are_not_finite_are_not_written(folder, value):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(WeightsError, match="of resnet18 are not written, 'conv.weight' is not finite in float16"):
        write_texture_teachers(folder, {"resnet18": {"conv.weight": torch.full((1, 1), value)}}, {"resnet18": {}})
    assert (folder / "manifest.json").read_bytes() == before
    load_texture_teacher("resnet18", FeatureExtractor("resnet18", (1, 2)).net, folder)


def test_a_full_disk_is_one_sentence(folder, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WeightsError, match=r"cannot be written to .*teachers \(No space left on device\): make room"):
        write_texture_teachers(folder, {"other": {"weight": torch.ones(1, 1)}}, {"other": {"layers": [0]}})
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["manifest.json", "resnet18.safetensors"]
    assert not list(folder.glob(".*.tmp"))
