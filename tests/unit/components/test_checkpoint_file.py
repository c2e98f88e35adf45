"""Checkpoints as a whole or not at all."""

import errno
import os

import pytest
import torch

from anomalib_mixedteacher.components.checkpoint_file import WholeCheckpointIO
from anomalib_mixedteacher.errors import CheckpointError, MixedTeacherError

OLD, NEW = {"state_dict": {"weight": torch.ones(3)}}, {"state_dict": {"weight": torch.zeros(50_000)}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights" / "model.ckpt"
    WholeCheckpointIO().save_checkpoint(OLD, path)
    return path


def files(path) -> list[str]:
    return [file.name for file in path.parent.iterdir()]


def test_saves_in_a_new_folder_and_over_an_old_file(path):
    assert torch.equal(WholeCheckpointIO().load_checkpoint(path)["state_dict"]["weight"], torch.ones(3))
    path.with_name("model.ckpt.tmp").write_text("what a killed process left")
    WholeCheckpointIO().save_checkpoint(NEW, str(path))
    assert WholeCheckpointIO().load_checkpoint(path)["state_dict"]["weight"].shape == (50_000,)
    assert files(path) == ["model.ckpt"]


def test_is_on_the_disk_before_it_takes_the_old_ones_place(path, monkeypatch):
    seen = []

    def synchronize(descriptor):
        seen.append((os.fstat(descriptor).st_size, torch.load(path)["state_dict"]["weight"].numel()))

    monkeypatch.setattr("os.fsync", synchronize)
    WholeCheckpointIO().save_checkpoint(NEW, path)
    assert seen == [(path.stat().st_size, 3)]


def test_a_full_disk_leaves_the_old_one_and_no_other(path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the system fails as on a full disk
    try:
        with pytest.raises(CheckpointError) as raised:
            WholeCheckpointIO().save_checkpoint(NEW, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(raised.value, MixedTeacherError)
    assert str(raised.value) == (
        f"The checkpoint cannot be written to {path.parent} (File too large): make room there, and go on from the last "
        "checkpoint with ckpt_path."
    )
    assert files(path) == ["model.ckpt"]
    assert torch.load(path)["state_dict"]["weight"].numel() == 3


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=os.strerror(errno.EEXIST)):
        WholeCheckpointIO().save_checkpoint(NEW, tmp_path / "file" / "model.ckpt")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_no_local_path_is_left_to_lightning():
    import fsspec

    WholeCheckpointIO().save_checkpoint(NEW, "memory://folder/model.ckpt")
    with fsspec.open("memory://folder/model.ckpt") as file:
        assert torch.load(file)["state_dict"]["weight"].shape == (50_000,)
