"""Every command and every Python block of the README runs as it stands there, on tiny data.

They run in the README's order, in one process and one folder: training writes the checkpoint for what comes after it.
What makes them small is put behind the README's own arguments.
"""

import re
import shlex
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_mixedteacher import cli

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
NOT_RUN = {"pip install -c constraints.txt ./packaging/edge ."}  # the tests run in such an installation
TRAINER = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
TRAINING = ["--model.image_size=[64,64]", "--trainer.max_epochs=2"]
SMALL = {
    "Folder": ["--data.train_batch_size=4", "--data.num_workers=0"],
    "SyntheticTextures": [
        *("--data.image_size=64", "--data.num_train=4", "--data.num_test_good=4"),
        *("--data.num_defects_per_kind=1", "--data.num_workers=0"),
    ],
    "benchmark": ["--max_epochs=1", "--image_size=64"],
}


def steps() -> list[tuple[str, str]]:
    """Each shell command and each Python block, in their order, as (language, source)."""
    found = []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE):
        lines = [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
        found += [(language, block)] if language == "python" else [(language, line) for line in lines]
    return [step for step in found if step[1] not in NOT_RUN]


@pytest.fixture(scope="module", autouse=True)
def workspace(tmp_path_factory, image_folder):
    """A folder with everything that the README's commands name, on a machine without a network."""
    root = tmp_path_factory.mktemp("readme")
    (root / "fabric").symlink_to(image_folder)
    (root / "new_images").symlink_to(image_folder / "bad")
    (root / "path/to").mkdir(parents=True)
    (root / "path/to/image.png").symlink_to(image_folder / "bad" / "0.png")
    (root / "path/to/model.ckpt").symlink_to(root / "results/MixedTeacher/fabric/latest/weights/lightning/model.ckpt")
    (root / "new_good_images").mkdir()
    pixels = np.asarray(Image.open(image_folder / "good" / "0.png"))
    for index in range(99):  # what the README's budget of 0.01 takes
        Image.fromarray(np.roll(pixels, index, axis=0)).save(root / "new_good_images" / f"{index}.png")
    resolve = socket.getaddrinfo

    def local_only(host, *args, **kwargs):
        if host not in {None, "", "localhost", "127.0.0.1", socket.gethostname()}:
            raise OSError(f"no network in tests: {host}")
        return resolve(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("ANOMALIB_MIXEDTEACHER_CACHE", str(root / "cache"))
        patch.setattr(socket, "getaddrinfo", local_only)
        yield root


@pytest.mark.parametrize(("language", "source"), steps(), ids=[" ".join(text.split()[:3]) for _, text in steps()])
def test_block_runs(language, source, monkeypatch):
    if language == "python":
        exec(compile(source, "README.md", "exec"), {})
        return
    words = shlex.split(source)
    small = [option for word in words for option in SMALL.get(word, [])]
    small += TRAINER if {"train", "test"} & set(words) else []
    words += small + (TRAINING if "train" in words else [])
    if words[0] == "anomalib":
        from anomalib.cli.cli import main

        monkeypatch.setattr(sys, "argv", words)
        main()  # raises, or exits with a status above 0, where something is wrong
    else:
        assert words[0] == "mixedteacher", f"{words[0]} is neither run here nor listed in NOT_RUN"
        assert cli.main(words[1:]) in ({0, 3} if "--fail-on-defect" in words else {0})


def test_commands_left_what_they_promise(workspace):
    assert (workspace / "exported/weights/openvino/metadata.json").is_file()
    assert (workspace / "path/to/model-calibrated.ckpt").is_file()
    assert {path.name for path in (workspace / "overlays").iterdir()} == {f"{index}.png" for index in range(6)}
    assert "MixedTeacher" in (workspace / "runs/fabric/report.html").read_text()
    assert not list((workspace / "runs/fabric").glob("failures/*"))


def test_fences_are_of_known_languages():
    """A command in a block of another name would not be run."""
    assert set(re.findall(r"^```(\w*)$", README, flags=re.MULTILINE)) <= {"bash", "python", ""}
    assert not re.search(r"^```\n[^`]*(mixedteacher|anomalib) (train|test|predict|export)", README, re.MULTILINE)
