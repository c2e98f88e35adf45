import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

SCRIPTS = Path(__file__).resolve().parents[2] / "teachers"


@pytest.fixture(scope="module")
def distill():
    sys.path.insert(0, str(SCRIPTS))
    import distill

    yield distill
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def photographs(distill):
    import photographs

    return photographs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of photographs and a file of weights to follow."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    for number in range(9):
        grey = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (folder / "photographs" / "below").mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(folder / "photographs" / "below" / f"{number}.png")
    torch.manual_seed(1)
    net = timm.create_model("resnet18", features_only=True, out_indices=(1,))
    save_file({key: value.half() for key, value in net.state_dict().items()}, folder / "weights.safetensors")
    return folder


@pytest.fixture
def command(distill, photographs, inputs, monkeypatch):
    """The command at a tiny size: six steps of four images, a chapter of two steps."""
    monkeypatch.setattr(photographs, "CHAPTER", 2)
    fixed = f"--photographs {inputs}/photographs --weights {inputs}/weights.safetensors --layers 1 --device cpu"

    def run(output, *options, steps=6, stopped=lambda _: False):
        tiny = ["--steps", str(steps), "--batch", "4", "--size", "32", "--output", str(output), *options]
        return distill.main([*fixed.split(), *tiny], stopped=stopped)

    return run


def test_the_same_seed_gives_the_same_weights_also_after_an_interruption(command, tmp_path):
    assert command(tmp_path / "whole") == 0
    assert command(tmp_path / "resumed", stopped=lambda step: step == 3) == 3
    assert not (tmp_path / "resumed" / "resnet18.safetensors").exists()
    assert command(tmp_path / "resumed") == 0
    assert command(tmp_path / "other", "--seed", "1") == 0
    whole, resumed, other = (
        (tmp_path / name / "resnet18.safetensors").read_bytes() for name in ("whole", "resumed", "other")
    )
    assert whole == resumed
    assert whole != other
    assert sorted(path.name for path in (tmp_path / "resumed").iterdir()) == ["manifest.json", "resnet18.safetensors"]


def test_a_student_comes_closer_to_its_teacher(command, tmp_path, distill, monkeypatch):
    monkeypatch.setattr(distill, "WARM_UP", 1)
    fidelities = []
    for steps in (1, 30):
        command(tmp_path / str(steps), steps=steps)
        manifest = json.loads((tmp_path / str(steps) / "manifest.json").read_text())
        fidelities.append(manifest["teachers"]["resnet18"]["fidelity"]["layer1"])
    assert fidelities[1] > fidelities[0] + 0.05


def test_the_manifest_describes_the_file_and_keeps_other_teachers(command, tmp_path, inputs, capsys):
    (tmp_path / "manifest.json").write_text('{"teachers": {"other": {"file": "other.safetensors"}}}')
    command(tmp_path)
    teachers = json.loads((tmp_path / "manifest.json").read_text())["teachers"]
    entry = teachers["resnet18"]
    content = (tmp_path / entry["file"]).read_bytes()
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["layers"] == ["layer1"]
    assert entry["images"] == 24
    assert entry["photographs"] == {"number": 9, "from": "photographs", "kept_out": 1}
    assert teachers["other"] == {"file": "other.safetensors"}

    # what the file is said to be worth is what it is worth
    capsys.readouterr()
    command(tmp_path, "--judge", str(tmp_path / entry["file"]))
    assert json.loads(capsys.readouterr().out)["layer1"] == pytest.approx(entry["fidelity"]["layer1"], abs=1e-4)


def test_the_file_is_half_precision_in_timms_names(command, tmp_path):
    command(tmp_path)
    state = load_file(tmp_path / "resnet18.safetensors")
    names = timm.create_model("resnet18", features_only=True, out_indices=(1,)).state_dict().keys()
    assert state.keys() == {name for name in names if not name.endswith("num_batches_tracked")}
    assert {value.dtype for key, value in state.items() if "running" not in key} == {torch.float16}
    assert {value.dtype for key, value in state.items() if "running" in key} == {torch.float32}


def test_the_blocks_are_those_of_timm(distill):
    torch.manual_seed(0)
    blocks = distill.Blocks(3).eval()
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        for ours, timms in zip(blocks(images)[1::2], blocks.net(images), strict=True):
            torch.testing.assert_close(ours.relu(), timms)


def test_fidelity_is_the_mean_cosine_of_timms_features_in_the_middle(distill, photographs):
    torch.manual_seed(0)
    teacher, student = (distill.Blocks(2).eval() for _ in range(2))
    images = torch.randint(256, (9, 3, 288, 288), dtype=torch.uint8)
    normal = (images[..., 16:272, 16:272].double() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / (
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    )
    found = distill.fidelity(teacher, student, images)
    with torch.no_grad():
        pairs = zip(teacher.double().net(normal), student.double().net(normal), strict=True)
        expected = [float(F.cosine_similarity(t, s).mean()) for t, s in pairs]
    assert list(found.values()) == pytest.approx(expected, abs=1e-4)


def test_the_loss_is_the_equation(distill):
    generator = np.random.default_rng(0)
    teacher, student = ([generator.normal(size=(2, 3, 4, 4)) for _ in range(4)] for _ in range(2))
    spreads = [generator.uniform(0.5, 2, (3, 1, 1)) for _ in range(4)]
    squares = np.mean([((t - s) ** 2 / v).mean() for t, s, v in zip(teacher, student, spreads, strict=True)])
    angles = []
    for t, s in ((teacher[1], student[1]), (teacher[3], student[3])):
        t, s = t.clip(0), s.clip(0)
        lengths = np.sqrt((t**2).sum(1)) * np.sqrt((s**2).sum(1))
        angles.append(1 - ((t * s).sum(1) / lengths.clip(1e-16)).mean())
    found = distill.matching_loss(*([torch.tensor(x).float() for x in xs] for xs in (teacher, student, spreads)))
    assert float(found) == pytest.approx(squares + 4 * np.mean(angles), rel=1e-5)


def test_a_step_has_images_of_its_own_and_grey_ones_stay_grey(photographs):
    source = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    images = photographs.TrainingImages(source, batch=16, size=32, seed=0)
    first, second = images.views(0), images.views(1)
    torch.testing.assert_close(photographs.TrainingImages(source, 16, 32, 0).views(1), second, rtol=0, atol=0)
    assert first.shape == (16, 3, 32, 32)
    assert not torch.equal(first, second)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    shown = torch.cat([first, second]) * std + mean
    assert shown.min() >= -1e-6
    assert shown.max() <= 1 + 1e-6
    grey = ((shown.amax(1) - shown.amin(1)).amax((1, 2)) < 1e-5).float().mean()
    assert 0.2 < grey < 0.8


def test_photographs_of_an_archive_come_with_their_licences(photographs, tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    parts = []
    for colour in colours:
        file = io.BytesIO()
        Image.new("RGB", (300, 288), colour).save(file, "JPEG")
        parts.append(np.frombuffer(file.getvalue(), np.uint8))
    offsets = np.cumsum([0] + [len(part) for part in parts])
    np.savez(tmp_path / "photos.npz", jpeg=np.concatenate(parts), offsets=offsets)
    items = [{"package": "a", "file": str(n), "licence": licence} for n, licence in enumerate(("CC0", "MIT", "CC0"))]
    (tmp_path / "photos.json").write_text(json.dumps(items))
    images, origin = photographs.load_photographs(tmp_path / "photos.npz")
    assert images.shape == (3, 3, 288, 288)
    assert images.float().mean((2, 3)).argmax(1).tolist() == [0, 1, 2]
    assert origin == {"number": 3, "from": {"a": {"CC0": 2, "MIT": 1}}}


def test_photographs_that_judge_do_not_train(photographs):
    images = torch.arange(50).view(50, 1, 1, 1)
    training, held_out = photographs.hold_out(images, seed=0)
    assert len(held_out) == 6
    assert sorted(torch.cat([training, held_out]).flatten().tolist()) == list(range(50))


def test_errors_are_one_sentence(command, tmp_path, inputs):
    command(tmp_path, stopped=lambda step: step == 1)
    with pytest.raises(SystemExit, match="is of another recipe"):
        command(tmp_path, "--seed", "1")
    with pytest.raises(SystemExit, match=r"has no layer2\..*give the weights of a resnet18 up to layer 2"):
        command(tmp_path / "deep", "--layers", "2")
    with pytest.raises(SystemExit, match="There are no photographs below"):
        command(tmp_path / "none", "--photographs", str(tmp_path))
