"""What is run and what is kept: finished cells, changed images and weights, old failures, jobs at a time."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from anomalib.pipelines.components.runners import ParallelRunner, parallel
from anomalib_mixedteacher.benchmark.inputs import digests

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark import command, runner
from anomalib_mixedteacher.benchmark.plan import parse_plan
from anomalib_mixedteacher.benchmark.result import Calibration, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.errors import ConfigurationError

KINDS = ("good", "bad")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def products(tmp_path):
    """Two products, each with an image of each kind."""
    for product in ("fabric", "leather"):
        for kind in KINDS:
            write(tmp_path / product / kind / "0.png", b"image")
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """Replace trainings by their results; gives the names of the data sets that were trained on."""
    names = []

    def train(folder, cell, device, jobs):
        del device, jobs
        names.append(cell.data)
        finish(folder, cell, digests(cell))
        return 0

    monkeypatch.setattr(runner, "_run_apart", train)
    return names


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def finish(folder, cell, inputs):
    calibration = Calibration(0.5, 0.5, 20, 0.05)
    with folder.finish(cell) as place:
        made = {"version": __version__}
        result = Result(cell, {}, {}, [], calibration, {}, {}, {"train_seconds": 1.0}, made, inputs)
        (place / "result.json").write_text(result.to_json())


def cells_of(root, weights="random", names=("fabric", "leather")):
    arguments = {name: {"root": str(root / name), "normal_dir": "good", "abnormal_dir": "bad"} for name in names}
    data = [{"class_path": "Folder", "init_args": given, "name": name} for name, given in arguments.items()]
    plan = {"models": ["Stfpm"], "data": data, "teacher_weights": weights}
    return parse_plan(plan, "here").cells()


def again(folder, cells, trained):
    """Run once more; give what was trained."""
    trained.clear()
    runner.run_cells(folder, cells)
    return list(trained)


class TestFinishedCells:
    def test_only_those_whose_images_changed_are_run_again(self, folder, products, trained, capsys):
        cells = cells_of(products)
        assert again(folder, cells, trained) == ["fabric", "leather"]
        assert again(folder, cells, trained) == []
        assert "2 of 2 cells are finished and are not run again." in capsys.readouterr().out
        write(products / "leather" / "bad" / "1.png", b"another")
        assert again(folder, cells, trained) == ["leather"]
        printed = capsys.readouterr().out
        assert "1 of 2 cells are run again, since their images or weights changed: leather." in printed
        assert "1 of 2 cells are finished" in printed
        assert again(folder, cells, trained) == []

    def test_those_of_another_version_are_named(self, folder, products, trained, capsys, monkeypatch):
        cells = cells_of(products)
        again(folder, cells, trained)
        assert "version" not in capsys.readouterr().out
        monkeypatch.setattr(runner, "__version__", "99.0")
        assert again(folder, cells, trained) == []
        assert f"are of version {__version__}, not 99.0: remove their folders" in capsys.readouterr().out

    @pytest.mark.parametrize("change", ["content", "time", "gone"])
    def test_any_change_of_an_image_counts(self, folder, products, trained, change):
        cells, image = cells_of(products), products / "fabric" / "good" / "0.png"
        write(image.with_name("1.png"), b"image")
        again(folder, cells, trained)
        if change == "content":
            write(image, b"another")
        elif change == "time":
            os.utime(image, ns=(0, 0))
        else:
            image.unlink()
        assert again(folder, cells, trained) == ["fabric"]

    def test_a_result_of_an_earlier_version_counts_as_finished(self, folder, products, trained):
        cells = cells_of(products)
        for cell in cells:
            finish(folder, cell, {})
        assert again(folder, cells, trained) == []

    def test_images_out_of_reach_do_not_take_the_results_away(self, folder, products, trained):
        cells = cells_of(products)
        again(folder, cells, trained)
        (products / "fabric").rename(products / "elsewhere")
        (products / "leather").rename(products / "other")
        (products / "leather" / "good").mkdir(parents=True)  # an empty place to mount at
        assert again(folder, cells, trained) == []

    def test_what_is_no_image_of_the_data_set_does_not_count(self, folder, products, trained):
        cells = cells_of(products)
        again(folder, cells, trained)
        for name in ("notes.png", "good/.hidden.png", "good/Thumbs.db", "good/.trash/0.png"):
            write(products / "fabric" / name, b"")
        assert again(folder, cells, trained) == []

    def test_relative_roots_are_those_of_the_working_folder(self, folder, products, trained, monkeypatch):
        monkeypatch.chdir(products)
        cells = cells_of(products.relative_to(products))
        again(folder, cells, trained)
        assert folder.result(cells[0]).inputs.keys() == {"normal_dir", "abnormal_dir"}
        monkeypatch.chdir(products / "fabric")
        assert again(folder, cells, trained) == []

    @pytest.mark.parametrize("name", ["teacher.pth", "teachers"])
    def test_other_weights_are_another_training(self, folder, products, trained, name):
        place = products / name
        file = place if place.suffix else place / "resnet18.safetensors"
        write(file, b"weights")
        cells = cells_of(products, str(place))
        again(folder, cells, trained)
        write(file, b"other weights")
        assert again(folder, cells, trained) == ["fabric", "leather"]

    def test_a_category_is_compared_alone_and_a_root_as_a_whole(self, tmp_path, folder, trained):
        tiles, carpet = tmp_path / "tiles" / "MT_Free" / "0.jpg", tmp_path / "mvtec" / "carpet" / "0.png"
        for path in (tiles, carpet):
            write(path, b"image")
        data = [
            {"class_path": "MagneticTile", "init_args": {"root": str(tmp_path / "tiles")}},
            {"class_path": "MVTecAD", "init_args": {"root": str(tmp_path / "mvtec")}, "categories": ["carpet"]},
            {"class_path": "SyntheticTextures", "init_args": {"root": str(tmp_path / "tiles")}},
        ]
        cells = parse_plan({"models": ["Stfpm"], "data": data}, "here").cells()
        again(folder, cells, trained)
        write(tmp_path / "mvtec" / "wood" / "0.png", b"image")
        assert again(folder, cells, trained) == []
        for path in (tiles, carpet):
            write(path, b"another")
        assert again(folder, cells, trained) == ["MagneticTile", "MVTecAD/carpet"]

    def test_a_failed_repetition_does_not_show_the_old_result(self, folder, products, trained, monkeypatch, capsys):
        cells = cells_of(products)
        again(folder, cells, trained)
        write(products / "fabric" / "good" / "0.png", b"broken")
        monkeypatch.setattr(runner, "_run_apart", lambda *_: -9)
        runner.run_cells(folder, cells)
        folder.set_cells(cells)
        assert [result.cell.data for result in folder.results()] == ["leather"]
        assert [failure.cell.data for failure in folder.failures()] == ["fabric"]
        assert "fabric, seed 0: failed." in capsys.readouterr().out


def test_a_new_failure_is_not_hidden_by_an_old_one(folder, products, monkeypatch, capsys):
    (cell,) = cells_of(products, names=["fabric"])
    folder.set_cells([cell])
    folder.fail(cell, "There are no teacher weights.")
    monkeypatch.setattr(runner, "_run_apart", lambda *_: -9)
    runner.run_cells(folder, [cell])
    (failure,) = folder.failures()
    assert failure.message.startswith("The process was killed (signal 9)")
    assert "There are no teacher weights." not in capsys.readouterr().out


class TestJobs:
    def accelerators(self, monkeypatch, number):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: number)

    def test_more_than_there_are_accelerators_are_refused_before_anything_is_written(self, folder, monkeypatch):
        self.accelerators(monkeypatch, 1)
        plan = parse_plan({"models": ["Stfpm"], "data": ["SyntheticTextures"]}, "here")
        with pytest.raises(ConfigurationError, match="--jobs is 2, .* give 1, as many as there are"):
            command.run(plan, folder, 2)
        assert not folder.path.exists()

    @pytest.mark.parametrize(("accelerators", "jobs"), [(0, 8), (2, 2), (2, 1)])
    def test_others_are_not(self, monkeypatch, accelerators, jobs):
        self.accelerators(monkeypatch, accelerators)
        runner.check_jobs(jobs)

    def test_waiting_for_a_free_place_asks_once_for_each_job(self, folder, products, monkeypatch):
        names = [f"product {number}" for number in range(5)]
        lock, running, most, asked = threading.Lock(), set(), [], []

        def train(folder, cell, device, jobs):
            del jobs
            with lock:
                assert device not in running
                running.add(device)
                most.append(len(running))
            threading.Event().wait(0.05)
            with lock:
                running.remove(device)
            finish(folder, cell, {})
            return 0

        theirs = ParallelRunner._await_cleanup_processes
        monkeypatch.setattr(
            ParallelRunner, "_await_cleanup_processes", lambda *given: (asked.append(1), theirs(*given))
        )
        # threads for processes: the replaced training would not reach another process
        monkeypatch.setattr(parallel, "ProcessPoolExecutor", lambda max_workers, **_: ThreadPoolExecutor(max_workers))
        monkeypatch.setattr(runner, "_run_apart", train)
        cells = cells_of(products, names=names)
        runner.run_cells(folder, cells, jobs=2)
        assert all(folder.is_finished(cell) for cell in cells)
        assert max(most) == 2
        assert len(asked) <= len(cells)


def test_a_folder_in_use_is_refused_and_left_as_it_is(folder):
    plan = parse_plan({"models": ["Stfpm"], "data": ["SyntheticTextures"]}, "here")
    with folder.lock(), pytest.raises(ConfigurationError, match="Another benchmark writes to"):
        command.run(plan, folder)
    assert not folder.plan.exists()
