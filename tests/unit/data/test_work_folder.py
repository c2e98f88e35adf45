"""Hidden work folders of the generated data sets: a killed process's goes after a day, a live one's never."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from anomalib_mixedteacher.data import SyntheticTextures
from anomalib_mixedteacher.data._one_class_files import extract_class
from anomalib_mixedteacher.data._work_folder import remove_leftovers, work_folder


def make_old(folder: Path, hours: float = 25) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - hours * 3600,) * 2)


def leave_behind(parent: Path, name: str = ".weave-123-0a1b2c3d", hours: float = 25) -> Path:
    folder = parent / name / "train" / "good"
    folder.mkdir(parents=True)
    (folder / "000.png").touch()
    make_old(parent / name, hours)
    return parent / name


def test_leftovers_go_after_a_day(tmp_path):
    old, recent = leave_behind(tmp_path), leave_behind(tmp_path, ".weave-124-0a1b2c3d", 23)
    growing = leave_behind(tmp_path, ".grid-125-0a1b2c3d")
    (growing / "train" / "good" / "001.png").touch()
    others = [leave_behind(tmp_path, name) for name in ("weave", ".cache", ".weave-old", ".weave-1-0a1b2c3d.mine")]
    remove_leftovers(tmp_path)
    assert not old.exists()
    assert all(folder.exists() for folder in (recent, growing, *others))
    remove_leftovers(tmp_path / "absent")


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks that end with their process")
def test_a_live_process_keeps_its_folder_whatever_its_age(tmp_path):
    code = (
        "import sys, time, pathlib, importlib.util as u\n"
        "spec = u.spec_from_file_location('work', sys.argv[1]); work = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(work)\n"
        "with work.work_folder(pathlib.Path(sys.argv[2])): print('ready', flush=True); time.sleep(600)\n"
    )
    module = sys.modules[work_folder.__module__].__file__
    # the file alone: importing the package takes many seconds
    command = [sys.executable, "-c", code, str(module), str(tmp_path / "weave")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        (work,) = tmp_path.iterdir()
        make_old(work)
        remove_leftovers(tmp_path)
        assert work.is_dir()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    remove_leftovers(tmp_path)
    assert not work.exists()


def test_a_work_folder_goes_unless_it_was_renamed(tmp_path):
    with work_folder(tmp_path / "kept") as work:
        (work / "file").touch()
        work.rename(tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt), work_folder(tmp_path / "lost") as work:
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_generating_removes_leftovers_of_other_settings_too(tmp_path):
    left = leave_behind(tmp_path / "v1-256px-train400-good1-defects1-seed0")
    small = {"image_size": 32, "num_train": 1, "num_test_good": 1, "num_defects_per_kind": 1}
    SyntheticTextures(root=tmp_path, **small).prepare_data()
    assert not left.exists()


def test_extracting_removes_leftovers(tmp_path):
    left = leave_behind(tmp_path, ".3-123-0a1b2c3d")
    extract_class(tmp_path / "3", np.zeros((1, 28, 28), np.uint8), np.array([0]))
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    assert not left.exists()
