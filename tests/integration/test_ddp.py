"""Two CPU processes with half the batch each, against one process with the whole batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_mixedteacher.cache_folder import CACHE_VARIABLE

EPOCHS, IMAGES, HELD_OUT, BATCH = 3, 16, 4, 8
CHILD = "import json, runpy, sys; runpy.run_path(sys.argv[1])['train'](**json.loads(sys.argv[2]))"


def train(images: str, results: str) -> None:
    """Train by two processes, then by one, and note each process's losses and weights in a file of its own.

    Each is done twice: once as it is, and once with the students' batch normalisation in evaluation mode. In training
    mode it sees a process's own four images, not all eight, and torch can exchange its statistics between GPUs only.
    """
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from lightning.pytorch.callbacks import Callback
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler

    from anomalib_mixedteacher import MixedTeacher
    from anomalib_mixedteacher.components.weights import fingerprint

    class Note(Callback):
        def __init__(self, name: str, frozen: bool) -> None:
            self.name = name
            self.frozen = frozen
            self.losses: dict[str, list[float]] = {}

        def on_train_epoch_start(self, trainer, pl_module):
            for module in pl_module.model.students.modules():
                if self.frozen and isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()

        def on_train_epoch_end(self, trainer, pl_module):
            for key in ("train_loss_epoch", "train_loss_resnet", "train_loss_efficientnet", "val_loss"):
                self.losses.setdefault(key, []).append(trainer.callback_metrics[key].item())

        def on_train_end(self, trainer, pl_module):
            record = {
                "losses": self.losses,
                "steps": trainer.global_step,
                "scheduled": trainer.lr_scheduler_configs[0].scheduler.total_steps,
                "teachers": fingerprint(pl_module.model.teachers.state_dict()),
                "students": fingerprint(dict(pl_module.model.students.named_parameters())),
                "training_data": pl_module.provenance["training_data"],
                "world": trainer.world_size,
            }
            Path(results, f"{self.name}{trainer.global_rank}.json").write_text(json.dumps(record))

    torch.set_num_threads(1)
    # two first: a process that has computed gradients cannot be forked
    for processes, frozen in ((2, True), (2, False), (1, True), (1, False)):
        torch.manual_seed(0)
        datamodule = Folder(
            "tiny", root=images, normal_dir="good", seed=0, test_split_mode="none", val_split_mode="from_train",
            val_split_ratio=HELD_OUT / (IMAGES + HELD_OUT),
        )  # fmt: skip
        datamodule.setup()
        good, held_out = datamodule.train_data, datamodule.val_data
        # how Lightning shuffles for several processes, which deal the images out in turns
        order = {"sampler": DistributedSampler(good, num_replicas=1, rank=0)} if processes == 1 else {"shuffle": True}
        loaders = [
            DataLoader(good, BATCH // processes, collate_fn=good.collate_fn, **order),
            DataLoader(held_out, BATCH, collate_fn=held_out.collate_fn),
        ]
        model = MixedTeacher(
            teacher_weights="random",
            resnet_layers=(1,),
            efficientnet_layers=(1, 2),
            pre_processor=MixedTeacher.configure_pre_processor((64, 64)),
        )
        engine = Engine(
            callbacks=[Note(f"{frozen}-{processes}-", frozen)],
            max_epochs=EPOCHS,
            default_root_dir=f"{results}/{frozen}-{processes}",
            accelerator="cpu",
            devices=processes,
            strategy="auto" if processes == 1 else "ddp_fork",
            enable_progress_bar=False,
        )
        engine.fit(model, *loaders)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> dict[str, dict]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        pytest.skip(f"processes cannot reach each other here: {error}")
    root = tmp_path_factory.mktemp("ddp")
    (root / "good").mkdir()
    rng = np.random.default_rng(0)
    for index in range(IMAGES + HELD_OUT):
        values = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / "good" / f"{index:02}.png")
    arguments = {"images": str(root), "results": str(root)}
    environment = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}  # 0 without it
    environment |= {CACHE_VARIABLE: str(root / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, __file__, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {path.stem: json.loads(path.read_text()) for path in root.glob("*.json")}


def by_rank(records, frozen: bool) -> tuple[dict, dict, dict]:
    """The records of the one process, and of the two."""
    return records[f"{frozen}-1-0"], records[f"{frozen}-2-0"], records[f"{frozen}-2-1"]


@pytest.mark.parametrize(("frozen", "tolerance"), [(True, 1e-5), (False, 1e-2)])
def test_loss_curve_is_that_of_one_process(records, frozen, tolerance):
    one, *two = by_rank(records, frozen)
    for record in two:
        assert record["world"] == 2
        assert record["steps"] == record["scheduled"] == one["steps"] == one["scheduled"] == EPOCHS * IMAGES // BATCH
        for name, losses in one["losses"].items():
            assert len(losses) == EPOCHS
            assert record["losses"][name] == pytest.approx(losses, rel=tolerance), name
    assert one["losses"]["train_loss_epoch"][-1] < 0.95 * one["losses"]["train_loss_epoch"][0]


@pytest.mark.parametrize("frozen", [True, False])
def test_processes_have_the_same_teachers_students_and_record(records, frozen):
    one, *two = by_rank(records, frozen)
    for record in two:
        assert record["teachers"] == one["teachers"]
        assert record["training_data"] == one["training_data"]
    assert two[0]["students"] == two[1]["students"]
