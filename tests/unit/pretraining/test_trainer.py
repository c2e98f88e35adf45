"""Pre-training: repeatable, resumable, each backbone on its own."""

import errno
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from anomalib_mixedteacher.components.weights import load_teacher_weights
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.pretraining.__main__ import main
from anomalib_mixedteacher.pretraining.objectives import OBJECTIVES
from anomalib_mixedteacher.pretraining.recipe import Recipe
from anomalib_mixedteacher.pretraining.trainer import Pretrainer

TINY = {"steps": 4, "batch": 4, "size": 32, "canvas": 64, "bank": 6, "refresh": 2}


def recipe(**changes):
    return Recipe(**{**TINY, "backbones": ("resnet18",), **changes})


def trained(tmp_path, name, **changes):
    pretrainer = Pretrainer(recipe(**changes))
    pretrainer.fit(tmp_path / name)
    return pretrainer


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    weights = [trained(tmp_path, name, seed=seed).weights("resnet18") for name, seed in (("a", 7), ("b", 7), ("c", 8))]
    assert_same(weights[0], weights[1])
    assert not torch.equal(weights[0]["layer1.0.conv1.weight"], weights[2]["layer1.0.conv1.weight"])


def test_an_interrupted_run_ends_in_the_same_weights(tmp_path):
    whole = trained(tmp_path, "whole").weights("resnet18")
    first = Pretrainer(recipe())
    for _ in range(3):
        first.train_step()
    (tmp_path / "cut").mkdir()
    first.save(tmp_path / "cut" / "state.pt")
    assert_same(whole, trained(tmp_path, "cut").weights("resnet18"))


def test_a_backbone_does_not_depend_on_the_other(tmp_path):
    both = trained(tmp_path, "both", steps=1, backbones=("efficientnet_b0", "resnet18")).weights("resnet18")
    assert_same(both, trained(tmp_path, "alone", steps=1).weights("resnet18"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_moves_every_convolution(tmp_path, objective):
    start = Pretrainer(recipe(objectives={objective: 1.0})).weights("resnet18")
    end = trained(tmp_path, "run", objectives={objective: 1.0}).weights("resnet18")
    still = [key for key, value in end.items() if "num_batches" not in key and torch.equal(value, start[key])]
    assert not still


def test_the_images_of_a_step_do_not_depend_on_earlier_steps():
    straight, jumped = Pretrainer(recipe()), Pretrainer(recipe())
    for step in range(3):
        images = straight.scenes(step).images
    assert torch.equal(images, jumped.scenes(2).images)


def test_banks_come_back():
    pretrainer = Pretrainer(recipe(banks=1, steps=8))
    assert pretrainer.recipe.textures == 6
    assert pretrainer.scenes(0).identity.max() < 6
    assert pretrainer.scenes(7).identity.max() < 6
    assert Pretrainer(recipe(steps=8)).scenes(7).identity.min() >= 18


def test_schedule_rises_to_the_peak_and_falls_to_nothing():
    pretrainer = Pretrainer(recipe(steps=100, learning_rate=1.0))
    rates = [pretrainer.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == rates[5] == 1.0
    assert rates[52] == pytest.approx(0.5, abs=0.02)
    assert rates[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[5:]))


def test_a_state_of_another_recipe_is_refused(tmp_path):
    trained(tmp_path, "run", steps=1)
    with pytest.raises(ConfigurationError, match="of another recipe: give the same arguments"):
        trained(tmp_path, "run", steps=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"banks": 0}, "banks must be 1 or more, not 0"),
        ({"canvas": 63}, "canvas=63 at least twice"),
        ({"size": 16}, "size=16 must be 32 or more"),
        ({"seed": -1}, "seed must be 0 or more and below 2147483648, not -1"),
        ({"seed": 1 << 31}, "seed must be 0 or more and below 2147483648, not 2147483648"),
        ({"light": -0.5}, "light must be a finite number of 0 or more, not -0.5"),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite number of 0 or more, not inf"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number above 0, not -1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, not 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0, not nan"),
        ({"objectives": {"colour": 1.0}}, "colour=1.0 is no objective"),
        ({"objectives": {"defect": 0.0}}, "defect=0.0 is no objective"),
        ({"objectives": {}}, "one objective or more"),
        ({"backbones": ("vgg16",)}, "backbones from resnet18, efficientnet_b0"),
    ],
)
def test_bad_recipes(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        recipe(**changes)


def test_command_writes_weights_that_the_models_load(tmp_path, capsys):
    options = [f"--{key}={value}" for key, value in TINY.items()]
    arguments = ["--output", str(tmp_path / "out"), "--device=cpu", "--backbones", "resnet18", *options]
    assert main(arguments) == 0
    net = Pretrainer(recipe()).branches["resnet18"].extractor.net
    state = load_teacher_weights("resnet18", str(tmp_path / "out"), net)
    assert all(value.isfinite().all() for value in state.values())
    entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["teachers"]["resnet18"]
    assert entry["recipe"] == recipe().as_json()
    assert entry["layers"] == [1, 2]
    log = (tmp_path / "out" / "resnet18" / "log.jsonl").read_text()
    assert [json.loads(line)["step"] for line in log.splitlines()] == [4]
    # the same command again finds nothing to do, and another one is refused in a sentence
    assert main(arguments) == 0
    assert main([*arguments, "--seed=3"]) == 1
    assert "another recipe" in capsys.readouterr().err


def test_the_record_is_that_of_the_beginning(tmp_path, monkeypatch):
    options = [
        "--output",
        str(tmp_path),
        "--device=cpu",
        "--backbones=resnet18",
        *(f"--{k}={v}" for k, v in TINY.items()),
    ]
    monkeypatch.setattr("anomalib_mixedteacher.pretraining.__main__._commit", lambda: "begun")
    assert main(options) == 0
    monkeypatch.setattr("anomalib_mixedteacher.pretraining.__main__._commit", lambda: "later")
    assert main(options) == 0
    assert json.loads((tmp_path / "manifest.json").read_text())["teachers"]["resnet18"]["commit"] == "begun"


def test_another_generator_a_damaged_state_and_a_missing_device_are_refused(tmp_path, monkeypatch, capsys):
    trained(tmp_path, "run", steps=1)
    monkeypatch.setattr("anomalib_mixedteacher.pretraining.trainer.GENERATOR_VERSION", -1)
    with pytest.raises(ConfigurationError, match="begun with another version of the generator"):
        trained(tmp_path, "run", steps=1)
    (tmp_path / "run" / "state.pt").write_bytes(b"no")
    with pytest.raises(ConfigurationError, match=r"state.pt is damaged \(\w+\): remove it to start anew"):
        trained(tmp_path, "run", steps=1)
    assert main(["--output", str(tmp_path / "none"), "--device=nonsense"]) == 1
    assert "The device 'nonsense' cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("present", [True, False])
def test_half_precision_only_where_the_processor_computes_in_it(monkeypatch, present):
    # without the instructions bfloat16 is emulated, and a step takes ten times as long
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": present})
    pretrainer = Pretrainer(recipe(backbones=("resnet18", "efficientnet_b0")))
    seen = {}
    for name, branch in pretrainer.branches.items():
        convolution = next(m for m in branch.modules() if isinstance(m, torch.nn.Conv2d))
        convolution.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.dtype}))
    pretrainer.train_step()
    assert seen == {"resnet18": torch.bfloat16 if present else torch.float32, "efficientnet_b0": torch.float32}


def test_pretraining_does_not_import_anomalib():
    code = "import sys, anomalib_mixedteacher.pretraining.__main__; print('anomalib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def command(output: Path, **changes) -> list[str]:
    options = [f"--{key.replace('_', '-')}={value}" for key, value in {**TINY, **changes}.items()]
    return ["--output", str(output), "--device=cpu", "--backbones", "resnet18", *options]


def test_a_training_that_went_astray_writes_nothing(tmp_path, capsys):
    assert main(command(tmp_path / "out", learning_rate=1e9, steps=3)) == 1
    error = capsys.readouterr().err
    assert "pretraining: Training went astray, " in error
    assert "at step 3: start anew with a lower learning_rate, in another output folder." in error
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert not list((tmp_path / "out").rglob("state.pt"))


def test_a_state_of_weights_that_are_not_finite_goes_no_further(tmp_path):
    pretrainer = Pretrainer(recipe())
    with torch.no_grad():
        pretrainer.branches["resnet18"].extractor.net.conv1.weight[0] = torch.nan
    with pytest.raises(ConfigurationError, match=r"went astray, resnet18\S*conv1.weight is not finite at step 0"):
        pretrainer.save(tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["recipe", "branches", "optimizer", "step"])
def test_a_state_that_lacks_something_is_damaged(tmp_path, missing):
    trained(tmp_path, "run", steps=1)
    path = tmp_path / "run" / "state.pt"
    state = torch.load(path, weights_only=True)
    del state[missing]
    torch.save(state, path)
    with pytest.raises(ConfigurationError, match=r"state.pt is damaged \(KeyError\): remove it to start anew"):
        trained(tmp_path, "run", steps=1)


@pytest.mark.parametrize("content", [[1], {"recipe": 3}, torch.zeros(1)])
def test_a_state_of_something_else(tmp_path, content):
    (tmp_path / "run").mkdir()
    torch.save(content, tmp_path / "run" / "state.pt")
    with pytest.raises(ConfigurationError, match=r"state.pt is (damaged|of another recipe)"):
        trained(tmp_path, "run", steps=1)


def test_a_full_disk_is_one_sentence_and_leaves_the_state_before(tmp_path, capsys, monkeypatch):
    assert main(command(tmp_path, steps=1)) == 0
    before = (tmp_path / "resnet18" / "state.pt").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    assert main(command(tmp_path, steps=1)) == 1
    error = capsys.readouterr().err
    assert "The state cannot be written to " in error
    assert "state.pt (No space left on device): make room there, and give the same arguments again to go on." in error
    assert (tmp_path / "resnet18" / "state.pt").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_output_that_is_a_file_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(command(tmp_path / "file", steps=1)) == 1
    assert "file (Not a directory): make room there or give another --output" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("failing", ["efficientnet_b0", "resnet18", "nothing"])
def test_make_tells_that_one_of_the_teachers_failed(tmp_path, failing):
    repository = Path(__file__).resolve().parents[3]
    (tmp_path / "bin").mkdir()
    (tmp_path / ".installed").touch()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{failing}*) exit 1;; esac\n')
    python.chmod(0o755)
    done = subprocess.run(["make", "teachers", f"VENV={tmp_path}"], cwd=repository, capture_output=True, text=True)
    assert (done.returncode == 0) == (failing == "nothing"), done.stderr
