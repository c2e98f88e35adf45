"""Every command and every Python block of the README runs as it stands there, on tiny data.

They run in the README's order, in one process and one folder: training writes the checkpoint for what comes after it.
Small are the defaults of data and models, and the arguments that are put behind the README's own.
"""

import inspect
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from anomalib_mixedteacher.components.distillation_module import DistillationModule
from PIL import Image

from anomalib_mixedteacher import SyntheticTextures, cli

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()

NOT_RUN = {
    "make demo": "makes an environment of its own and trains for minutes",
    "mixedteacher benchmark configs/benchmark/line.yaml --output runs/line": "takes hours; another benchmark is run",
    "mixedteacher benchmark configs/benchmark/texture_teachers.yaml --output runs/line_texture": "takes half an hour",
    "pip install -c constraints.txt .": "installs, from a package index; the tests run in such an installation",
}
TINY_DATA = {"image_size": 64, "num_train": 4, "num_test_good": 4, "num_defects_per_kind": 1, "train_batch_size": 4}
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
FOLDER = ["--data.train_batch_size=4", "--data.num_workers=0"]


def commands(block: str) -> list[str]:
    """The commands of a shell block, one a line, continued lines joined."""
    return [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Each shell command and each Python block, in their order, as (language, source)."""
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language == "python":
            yield language, block
        else:
            yield from ((language, command) for command in commands(block) if command not in NOT_RUN)


def refuse(*args, **kwargs):
    raise OSError("no network in tests")


@pytest.fixture(scope="module", autouse=True)
def workspace(tmp_path_factory, image_folder):
    """A folder with everything that the README's commands name."""
    root = tmp_path_factory.mktemp("readme")
    (root / "configs").symlink_to(REPOSITORY / "configs")
    (root / "fabric").symlink_to(image_folder)
    (root / "new_images").symlink_to(image_folder / "bad")
    (root / "path" / "to").mkdir(parents=True)
    (root / "path/to/image.png").symlink_to(image_folder / "bad" / "0.png")
    (root / "path/to/image_or_folder").symlink_to(image_folder / "good_test")
    trained = root / "results/MixedTeacher/SyntheticTextures/weave/latest/weights/lightning/model.ckpt"
    (root / "path/to/model.ckpt").symlink_to(trained)
    (root / "new_good_images").mkdir()
    pixels = np.asarray(Image.open(image_folder / "good" / "0.png"))
    for index in range(99):  # what the README's budget of 0.01 takes
        Image.fromarray(np.roll(pixels, index, axis=0)).save(root / "new_good_images" / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("ANOMALIB_MIXEDTEACHER_CACHE", str(root / "cache"))
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(DistillationModule, "image_size", (64, 64))
        # not a partial in its place: the command line looks for classes
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(SyntheticTextures.__init__).parameters.items()
            if parameter.default is not parameter.empty
        }
        assert defaults.keys() >= TINY_DATA.keys()
        patch.setattr(SyntheticTextures.__init__, "__defaults__", tuple((defaults | TINY_DATA).values()))
        yield root


def small(words: list[str], teachers: Path) -> list[str]:
    """What makes a command small and keeps it off the network."""
    if words[1] == "benchmark":
        return ["--models", "Stfpm", "--epochs", "1", "--image-size", "64"]
    if "train" not in words:
        return QUIET if words[1] == "test" or "--data" in words else []
    extra = [*QUIET, *(FOLDER if "Folder" in words else [])]
    if "--trainer.max_epochs" not in words:
        extra.append("--trainer.max_epochs=2")
    if "--model.teacher_weights" not in words:
        extra.append(f"--model.teacher_weights={teachers}")
    return extra


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command in this process; its exit status."""
    if words[0] == "mixedteacher":
        return cli.main(words[1:])
    assert words[0] == "anomalib", f"{words[0]} is neither run here nor listed in NOT_RUN with the reason"
    from anomalib.cli.cli import main

    monkeypatch.setattr(sys, "argv", words)
    main()  # raises, or exits with a status above 0, where something is wrong
    return 0


STEPS = list(blocks(README))


@pytest.mark.parametrize(("language", "source"), STEPS, ids=[" ".join(source.split()[:3]) for _, source in STEPS])
def test_block_runs(language, source, teacher_folder, monkeypatch):
    if language == "python":
        exec(compile(source, "README.md", "exec"), {})
        return
    words = shlex.split(source, comments=True)
    status = run([*words, *small(words, teacher_folder)], monkeypatch)
    found = {0, 3} if "--fail-on-defect" in words else {0}
    assert status in found


def test_commands_left_what_they_promise(workspace):
    assert (workspace / "results/weights/openvino/model.xml").is_file()
    assert (workspace / "exported/weights/openvino/metadata.json").is_file()
    assert (workspace / "path/to/model-calibrated.ckpt").is_file()
    names = {path.name for path in (workspace / "new_images").iterdir()}
    assert {path.name for path in (workspace / "overlays").iterdir()} == names


def test_the_list_of_what_is_not_run_has_nothing_else():
    shell = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert {command for block in shell for command in commands(block)} >= NOT_RUN.keys()


def test_fences_are_of_known_languages():
    """A command in a block of another name would not be run."""
    fences = re.findall(r"^```(\w*)$", README, flags=re.MULTILINE)
    opened = fences[::2]
    assert set(opened) <= {"bash", "python", ""}
    assert not re.search(r"^```\n[^`]*(mixedteacher|anomalib) (train|test|predict|export)", README, re.MULTILINE)
