"""A training that is killed and resumed, and one that finds no room on the disk."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_mixedteacher.cache_folder import CACHE_VARIABLE
from anomalib_mixedteacher.errors import MixedTeacherError

EPOCHS = 5
IN_MEMORY, IN_FILE = 100, 1  # MiB of a cache that needs 1.6
CHILD = "import json, runpy, sys; runpy.run_path(sys.argv[1])['train'](**json.loads(sys.argv[2]))"


def train(
    images: str, results: str, cache: int, kill_in: int | None = None, checkpoint: str | None = None, **trainer
) -> str:
    """Train on 21 images in batches of 6, shuffled, and validate on 3 every third epoch.

    A teacher's last bits depend on how many images it sees at once, and a resumed run sees them in other batches of 6
    or 3 for the first time; a checkpoint is there before validation has completed the cache's file.

    Returns:
        Path of the last checkpoint.
    """
    from anomalib.callbacks.checkpoint import ModelCheckpoint
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from lightning.pytorch.callbacks import Callback

    from anomalib_mixedteacher import MixedTeacher

    class Kill(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == kill_in and batch_idx == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    torch.manual_seed(0 if checkpoint is None else 99)
    datamodule = Folder(
        "tiny",
        root=images,
        normal_dir="good",
        train_batch_size=6,
        num_workers=0,
        seed=0,
        test_split_mode="none",
        val_split_mode="from_train",
        val_split_ratio=0.125,
    )
    model = MixedTeacher(
        teacher_weights="random",
        efficientnet_layers=(0, 1, 2, 3),
        feature_cache=cache,
        pre_processor=MixedTeacher.configure_pre_processor((64, 64)),
    )
    saver = ModelCheckpoint(Path(results) / "weights", "model", save_on_train_epoch_end=True)
    engine = Engine(
        callbacks=[Kill(), saver],
        max_epochs=EPOCHS,
        check_val_every_n_epoch=3,
        default_root_dir=results,
        accelerator="cpu",
        enable_progress_bar=False,
        **trainer,
    )
    engine.fit(model=model, datamodule=datamodule, ckpt_path=checkpoint)
    return saver.best_model_path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of 24 images of noise."""
    root = tmp_path_factory.mktemp("noise")
    (root / "good").mkdir()
    rng = np.random.default_rng(0)
    for index in range(24):
        values = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / "good" / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def killed(images, tmp_path_factory) -> dict[int, Path]:
    """Two processes, one for each place of the cache, that were killed in the second epoch; their folders."""
    folders = {cache: tmp_path_factory.mktemp("killed") for cache in (IN_MEMORY, IN_FILE)}
    processes = []
    for cache, folder in folders.items():
        arguments = {"images": str(images), "results": str(folder), "cache": cache, "kill_in": 1}
        command = [sys.executable, "-c", CHILD, __file__, json.dumps(arguments)]
        environment = {**os.environ, CACHE_VARIABLE: str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, error.decode()
    return folders


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights at the end of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(CACHE_VARIABLE, str(folder / "cache"))
        return torch.load(train(str(images), str(folder), IN_MEMORY))["state_dict"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that no process survives")
@pytest.mark.parametrize("cache", [IN_MEMORY, IN_FILE])
def test_a_killed_run_ends_in_the_same_weights(killed, expected, images, tmp_path, cache, monkeypatch):
    folder = killed[cache]
    features = folder / "cache" / "teacher_features"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder / "cache"))
    assert [path.suffix for path in features.glob("*")] == ([] if cache == IN_MEMORY else [".tmp"])
    (checkpoint,) = (folder / "weights").iterdir()
    path = train(str(images), str(tmp_path), cache, checkpoint=str(checkpoint))
    result = torch.load(path)
    assert result["global_step"] == 4 * EPOCHS
    assert result["state_dict"].keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(result["state_dict"][key], value, rtol=0, atol=0, equal_nan=True, msg=key)
    left = sorted(path.suffix for path in features.glob("*"))
    assert left == ([] if cache == IN_MEMORY else [".f16", ".json"])


def test_without_validation_the_file_is_complete_nevertheless(images, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    train(str(images), str(tmp_path), IN_FILE, limit_val_batches=0)
    assert sorted(path.suffix for path in (tmp_path / "cache" / "teacher_features").iterdir()) == [".f16", ".json"]


@pytest.mark.parametrize("failure", ["full", "unwritable"])
def test_without_room_for_the_cache_training_goes_on(images, tmp_path, failure, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    if failure == "full":
        monkeypatch.setattr("os.posix_fallocate", full, raising=False)
        reason = "No space left on device"
    else:
        cache.write_text("a file where the folder should be")
        reason = "Not a directory"
    with caplog.at_level(logging.WARNING):
        result = torch.load(train(str(images), str(tmp_path / "results"), IN_FILE))
    assert result["global_step"] == 4 * EPOCHS
    (warning,) = [record.message for record in caplog.records if "feature cache" in record.message]
    assert warning == (
        "Training without the cache of teachers' features: The feature cache of 2 MB cannot be written to "
        f"{cache / 'teacher_features'} ({reason}): free space there, give another folder, or switch the cache off."
    )
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_without_room_for_a_checkpoint_the_one_before_stays(images, tmp_path, monkeypatch):
    calls = []

    def full(_):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(MixedTeacherError, match=r"weights \(No space left on device\): make room there, and go on"):
        train(str(images), str(tmp_path), IN_MEMORY)
    (checkpoint,) = (tmp_path / "weights").iterdir()
    assert torch.load(checkpoint)["epoch"] == 1
