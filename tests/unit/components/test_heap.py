"""While a model is trained, freed memory is found again without a page fault; afterwards the system has it back."""

import os
import platform
import signal
import subprocess
import sys

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringModel

from anomalib_mixedteacher.components import heap

PROGRAM = """
import resource, types
import torch
from anomalib_mixedteacher.components.heap import KeptHeap

torch.set_num_threads(1)
module = types.SimpleNamespace(device=torch.device({device!r}))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000)  # 48 MB, above the largest threshold that glibc takes by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6

heap = KeptHeap()
faults()
before = faults()
heap.on_fit_start(None, module)
faults()
kept, held = faults(), resident()
heap.teardown(None, module, "fit")
print(before, kept, held - resident())
"""


def run(device="cpu", **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(device=device)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=clean | environment)
    return [float(value) for value in result.stdout.split()]


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's allocator")


def test_freed_memory_is_kept_during_the_training_and_given_back_after_it():
    before, kept, returned = run()
    assert before > 1000
    assert kept < before / 100
    assert returned > 40


@pytest.mark.parametrize(("device", "environment"), [("meta", {}), ("cpu", {"MALLOC_TOP_PAD_": "131072"})])
def test_it_stays_away_from_other_devices_and_from_what_the_user_has_set(device, environment):
    before, during, _ = run(device, **environment)
    assert during > before / 2


@pytest.fixture
def interruptible():
    """Lightning switches Ctrl-C off while it shuts down."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("raised", "seen"), [(None, None), (RuntimeError("on purpose"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_memory_is_given_back_however_training_ends(raised, seen, monkeypatch, tmp_path):
    class End(Callback):
        def on_train_batch_end(self, *_):
            if raised is not None:
                raise raised

    for name in heap._USERS:
        monkeypatch.delenv(name, raising=False)
    settings = []
    monkeypatch.setattr(heap, "_set", lambda _, values: settings.append(values))
    trainer = Trainer(
        accelerator="cpu", max_steps=1, limit_val_batches=0, callbacks=[heap.KeptHeap(), End()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    if seen is None:
        trainer.fit(BoringModel())
    else:
        with pytest.raises(seen):
            trainer.fit(BoringModel())
    assert settings == [heap._KEEP, heap._USUAL]
