"""Two CPU processes with half the batch each, against one process with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EPOCHS, IMAGES, HELD_OUT, BATCH = 2, 6, 2, 2
CHILD = "import runpy, sys; runpy.run_path(sys.argv[1])['train'](*sys.argv[2:])"


def train(images: str, results: str) -> None:
    """Train by two processes, then by one, and note what each process has in a file of its own.

    The students' batch normalisation stays in evaluation mode: in training mode it sees a process's own images only.
    """
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from lightning.pytorch.callbacks import Callback
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler

    from anomalib_mixedteacher import MixedTeacher
    from anomalib_mixedteacher.components.weights import fingerprint

    class Note(Callback):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_epoch_start(self, trainer, pl_module):
            for module in pl_module.model.students.modules():
                module.training = module.training and not isinstance(module, torch.nn.BatchNorm2d)

        def on_train_epoch_end(self, trainer, pl_module):
            self.losses += [trainer.callback_metrics[key].item() for key in ("train_loss_epoch", "val_loss")]

        def on_train_end(self, trainer, pl_module):
            total = trainer.lr_scheduler_configs[0].scheduler.total_steps
            record = {
                "world": trainer.world_size,
                "losses": self.losses,
                "steps": [trainer.global_step, total],
                "networks": fingerprint(pl_module.model.state_dict()),
                "provenance": pl_module.provenance,
            }
            Path(results, f"{trainer.world_size}-{trainer.global_rank}.json").write_text(json.dumps(record))

    torch.set_num_threads(1)
    for processes in (2, 1):  # two first: a process that has computed gradients cannot be forked
        torch.manual_seed(0)
        split = {"test_split_mode": "none", "val_split_mode": "from_train", "val_split_ratio": HELD_OUT / 8}
        data = Folder("tiny", root=images, normal_dir="good", seed=0, **split)
        data.setup()
        good, held_out = data.train_data, data.val_data
        # how Lightning shuffles for several processes, which deal the images out in turns
        order = {"sampler": DistributedSampler(good, num_replicas=1, rank=0)} if processes == 1 else {"shuffle": True}
        loaders = [
            DataLoader(good, BATCH // processes, collate_fn=good.collate_fn, **order),
            DataLoader(held_out, BATCH, collate_fn=held_out.collate_fn),
        ]
        where = {"accelerator": "cpu", "devices": processes, "default_root_dir": f"{results}/{processes}"}
        strategy, quiet = "auto" if processes == 1 else "ddp_fork", {"enable_progress_bar": False, "logger": False}
        engine = Engine([Note()], max_epochs=EPOCHS, strategy=strategy, **where, **quiet)
        engine.fit(MixedTeacher(image_size=(64, 64)), *loaders)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_train_as_one(image_folder, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}  # 0 without it
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", CHILD, __file__, str(image_folder), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert [record["world"] for record in (one, first, second)] == [1, 2, 2]
    assert one["steps"] == first["steps"] == second["steps"] == 2 * [EPOCHS * IMAGES // BATCH]
    assert one["losses"][2] < 0.95 * one["losses"][0]
    for record in (first, second):
        assert record["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert record["provenance"] == one["provenance"]
    assert first["networks"] == second["networks"]
