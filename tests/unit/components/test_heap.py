"""While a model is trained, freed memory is found again without a page fault; afterwards the system has it back."""

import os
import platform
import subprocess
import sys

import pytest

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
