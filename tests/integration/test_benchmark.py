"""``mixedteacher benchmark`` with real trainings: a killed worker, a cluster's scheduler, and maps of one training."""

import os
import signal
import threading
import time
from dataclasses import asdict, replace

import dask
import distributed
import pytest

from anomalib_mixedteacher.benchmark.command import main, parse, run
from anomalib_mixedteacher.benchmark.result import Cell
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.benchmark.training import run_training

SIZES = "{image_size: 64, num_train: 10, num_test_good: 4, num_defects_per_kind: 1}"
TEXTURES = f"{{class_path: SyntheticTextures, init_args: {SIZES}"
STFPM = "{class_path: Stfpm, init_args: {layers: [layer1]}"
TINY = ["--teacher_weights", "random", "--image_size", "64", "--max_epochs", "1"]


def benchmark(folder, models, *options, categories="weave"):
    return [
        *TINY,
        "--models",
        f"[{models}]",
        "--data",
        f"[{TEXTURES}, categories: [{categories}]}}]",
        "--output",
        str(folder),
        *options,
    ]


@pytest.fixture(scope="module")
def scheduler():
    """A cluster whose one worker is a thread of this process, which has torch and anomalib already."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def kill_a_worker_within_its_cell(killed):
    """Wait until two workers train, and kill one of them."""
    while True:
        time.sleep(0.2)
        try:
            client = distributed.default_client()
        except ValueError:  # not there yet
            continue
        training = {worker: keys for worker, keys in client.processing().items() if keys}
        if len(training) == 2:
            time.sleep(1)
            worker, (key,) = next(iter(training.items()))
            os.kill(client.run(os.getpid)[worker], signal.SIGKILL)
            killed.append(key)
            return


def test_the_cell_of_a_killed_worker_is_run_again(tmp_path, capsys):
    killed = []
    threading.Thread(target=kill_a_worker_within_its_cell, args=[killed], daemon=True).start()
    plan, options = parse(
        benchmark(tmp_path, f"{STFPM}}}", "--workers", "2", "--threads", "1", categories="weave, grid")
    )
    assert run(plan, options) == 0
    folder = RunFolder(tmp_path)
    assert killed[0] in [result.cell.name for result in folder.results()]
    assert [result.cell.data for result in folder.results()] == ["SyntheticTextures/weave", "SyntheticTextures/grid"]
    assert (folder.failures(), folder.unfinished()) == ([], {})
    assert "### SyntheticTextures (mean of 2)" in (tmp_path / "table.md").read_text()
    assert "[2/2] " in capsys.readouterr().out


def test_a_scheduler_trains_what_is_missing_and_names_what_fails(tmp_path, scheduler, capsys):
    folder = RunFolder(tmp_path / "run")
    assert main(benchmark(folder.path, f"{STFPM}}}", "--scheduler", scheduler)) == 0
    (first,) = folder.results()
    assert set(first.metrics) == {"image_AUROC", "image_AP", "pixel_AUROC", "PRO", "false_alarm_rate", "found_rate"}
    assert first.costs["wall_seconds"] > first.costs["train_seconds"] > 0
    kept = folder.predictions(first.cell)
    assert (len(kept.paths), kept.maps.shape, kept.good_scores.shape) == (10, (10, 64, 64), (2,))

    broken = f"{STFPM}, label: broken, teacher_weights: {tmp_path}}}"
    assert main(benchmark(folder.path, f"{STFPM}}}, {broken}", "--scheduler", scheduler)) == 1
    assert "1 of 2 results are there already." in capsys.readouterr().out
    assert folder.results() == [first]  # its date too: it was not trained again
    (failure,) = folder.failures()
    assert (failure.cell.model, "resnet18" in failure.message) == ("broken", True)
    assert "Traceback" in folder.log(failure.cell).read_text()
    assert (
        f"- broken on SyntheticTextures/weave, seed 0, failed: {failure.message}"
        in (folder.path / "table.md").read_text()
    )


def test_a_scheduler_that_cannot_be_used_is_named(tmp_path, capsys):
    from anomalib_mixedteacher.cli import main as command

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        arguments = benchmark(tmp_path, f"{STFPM}}}", "--scheduler", "tcp://127.0.0.1:9")
        assert command(["benchmark", *arguments]) == 1
    assert "No dask scheduler answers at tcp://127.0.0.1:9: start one" in capsys.readouterr().err


def test_a_map_of_a_shared_training_is_that_of_a_training_of_its_own(tmp_path):
    data = {"root": str(tmp_path), "image_size": 64, "num_train": 10, "num_test_good": 4, "num_defects_per_kind": 1}
    usual = Cell("usual", "MixedTeacher", {}, "d", "SyntheticTextures", data, 0, "random", (64, 96), 1, 4, 0.05)
    of_map = {"fusion": "product", "sigma": 2.0}
    product = replace(usual, model="product", map_args=of_map)
    shared = {result.cell.model: result for result, _ in run_training([product, usual]).results}
    for name, alone in {"product": replace(usual, init_args=of_map), "usual": usual}.items():
        ((result, _),) = run_training([alone]).results
        found = shared[name]
        assert found.metrics == pytest.approx(result.metrics, rel=1e-3)
        assert asdict(found.calibration) == pytest.approx(asdict(result.calibration), rel=1e-3)
        assert found.alarms == result.alarms
    assert shared["product"].calibration != shared["usual"].calibration


def test_a_worker_of_another_version_says_so():
    cell = Cell("m", "Stfpm", {}, "d", "SyntheticTextures", {}, 0, "random", 64, 1, 4, 0.05, version="0.0.1")
    outcome = run_training([cell])
    assert outcome.results == ()
    assert "and the benchmark 0.0.1: install the same on all machines." in outcome.message
