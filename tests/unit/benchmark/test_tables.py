"""Run folder and tables: mean and spread over seeds, what is missing, nothing half-written."""

import csv
import io
import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from anomalib_mixedteacher.benchmark import tables
from anomalib_mixedteacher.benchmark.result import Calibration, Cell, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.errors import ConfigurationError

CELL = Cell("Stfpm", "Stfpm", {}, "weave", "SyntheticTextures", {"category": "weave"}, 0, "random", 64, 2, 32, 0.05)


def result(auroc, model="Stfpm", data="weave", seed=0, **more):
    cell = replace(CELL, model=model, data=data, seed=seed)
    values = {
        "metrics": {"image_AUROC": auroc},
        "missing": {},
        "notes": [],
        "calibration": Calibration(0.5, 0.5, 20, 0.05),
        "alarms": {"good": (1, 10), "hole": (3, 4), "crack": (0, 2)},
        "curves": {"roc": [(0.0, 0.0), (1.0, 1.0)]},
        "costs": {"train_seconds": 3.0, "stored_numbers": 1_500_000},
    }
    return Result(cell=cell, **(values | more))


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def finish(folder, *results):
    folder.set_cells([one.cell for one in results])
    for one in results:
        with folder.finish(one.cell) as place:
            (place / "result.json").write_text(one.to_json())


def test_results_come_back_in_the_benchmarks_order(folder):
    results = [result(0.7, model="Z"), result(0.6, model="A"), result(0.5, seed=3)]
    finish(folder, *results)
    assert folder.results() == results
    folder.set_cells([results[1].cell])  # another plan: the others stay in the folder, but are not its cells
    assert folder.results() == [results[1]]


def test_a_cell_that_breaks_off_leaves_nothing(folder):
    def break_off():
        with folder.finish(CELL) as place:
            (place / "result.json").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert not folder.is_finished(CELL)
    assert list((folder.path / "cells").iterdir()) == []


def test_a_failure_is_kept_until_the_cell_succeeds(folder):
    folder.set_cells([CELL])
    folder.fail(CELL, "No luck.")
    assert [(f.cell, f.message) for f in folder.failures()] == [(CELL, "No luck.")]
    finish(folder, result(0.5))
    assert folder.failures() == []


def test_good_images_that_were_taken_for_defects_are_not_shown_and_trained_again(folder):
    counts = {"normal": (1, 10), "abnormal": (3, 4)}
    wrong = result(0.5, alarms=counts, metrics={"image_AUROC": 0.5, "false_alarm_rate": 0.1})
    no_good_images = result(0.5, seed=1, alarms={"abnormal": (3, 4)})
    finish(folder, wrong, no_good_images)
    assert [folder.is_finished(one.cell) for one in (wrong, no_good_images)] == [False, True]
    assert folder.results() == [no_good_images]
    (failure,) = folder.failures()
    assert (failure.cell, failure.message) == (
        wrong.cell,
        "An earlier version took its good images for defects: run the benchmark again, which trains it anew.",
    )
    assert f"seed 0, failed: {failure.message}" in tables.write_tables(folder, {})
    right = result(0.5)
    finish(folder, right, no_good_images)
    assert (folder.results(), folder.failures()) == ([right, no_good_images], [])


def test_a_cell_that_is_to_run_again_leaves_no_result_failure_or_speed(folder):
    finish(folder, result(0.5), result(0.6, seed=1))
    folder.fail(CELL, "No luck.")
    folder.write(folder.speed, {CELL.name: {"latency_ms": 3.0}})
    folder.clear(CELL)
    assert not folder.cell(CELL).exists()
    assert folder.failures() == []
    assert not folder.speed.exists()
    assert [one.cell.seed for one in folder.results()] == [1]


def test_speed_is_measured_anew_where_a_cell_was_removed_by_hand(folder):
    folder.write(folder.speed, {CELL.name: {"latency_ms": 3.0}})
    folder.clear(CELL)
    assert not folder.speed.exists()


def test_speed_is_kept_when_a_new_cell_is_run(folder):
    folder.write(folder.speed, {"another": {"latency_ms": 3.0}})
    folder.clear(CELL)
    assert folder.speed.exists()


def test_one_benchmark_at_a_time_writes_to_a_folder(folder):
    with folder.lock(), pytest.raises(ConfigurationError, match="Another benchmark writes to .*run: wait for it, or"):
        RunFolder(folder.path).lock().__enter__()
    with RunFolder(folder.path).lock():
        pass


def is_free(folder):
    try:
        with folder.lock():
            return True
    except ConfigurationError:
        return False


def test_the_lock_ends_with_its_process(folder):
    hold = (
        "import sys, time; from pathlib import Path; from anomalib_mixedteacher.benchmark.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock(): print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(folder.path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            with pytest.raises(ConfigurationError, match="Another benchmark"), folder.lock():
                pass
        finally:
            process.kill()
    # on a busy machine the kernel may close a killed process's files after it was waited for
    assert any(is_free(folder) or time.sleep(0.1) for _ in range(100))


def test_another_folder_is_refused(folder):
    with pytest.raises(ConfigurationError, match="is not the folder of a benchmark"):
        folder.results()


def test_summary_is_the_mean_over_data_with_the_spread_over_seeds():
    results = [
        result(auroc, data=data, seed=seed)
        for (data, seed), auroc in {("a", 0): 0.5, ("b", 0): 0.7, ("a", 1): 0.6, ("b", 1): 1.0}.items()
    ]
    mean, spread = tables.summarize(results, {})["image_AUROC"]
    assert mean == pytest.approx(0.7)
    assert spread == pytest.approx(((0.6 - 0.7) ** 2 + (0.8 - 0.7) ** 2) ** 0.5)
    assert tables.summarize(results[:2], {})["image_AUROC"] == (pytest.approx(0.6), None)


def test_a_mean_over_data_sets_needs_all_of_them():
    results = [result(0.5, data="a"), result(0.9, data="b"), result(0.8, model="Msfd", data="a")]
    found = json.loads(tables.to_json(results, [], {}))["all"]
    assert found["Stfpm"]["image_AUROC"] == [pytest.approx(0.7), None]
    assert "image_AUROC" not in found["Msfd"]


def test_found_defects_leave_the_good_ones_out():
    assert tables.values_of(result(0.5), {})["found_rate"] == pytest.approx(3 / 6)
    assert "found_rate" not in tables.values_of(result(0.5, alarms={"good": (0, 3)}), {})


def test_markdown_has_a_table_for_each_data_set_and_says_what_is_missing(folder):
    lacking = {"pixel_AUROC": "The test set has no masks.", "PRO": "The test set has no masks."}
    results = [
        result(0.5, missing=lacking),
        result(0.7, seed=1, missing=lacking),
        result(0.9, model="Msfd", missing=lacking, notes=["Few images."]),
        result(0.8, data="grain"),
    ]
    finish(folder, *results)
    failed = replace(CELL, model="Mkd")
    folder.set_cells([*[one.cell for one in results], failed])
    folder.fail(failed, "No luck.")
    speed = {results[0].cell.name: {"latency_ms": 12.34, "latency_ratio": 1.0, "gmacs": 0.92}}
    text = tables.write_tables(folder, speed)
    assert text == (folder.path / "table.md").read_text()
    assert text.splitlines()[:6] == [
        "### weave",
        "",
        "| model | image AUROC | defects found |",
        "| --- | --- | --- |",
        "| Stfpm | 0.600 ± 0.141 | 0.500 ± 0.000 |",
        "| Msfd | 0.900 | 0.500 |",
    ]
    assert "### Mean over 2 data sets" in text
    start = text.splitlines().index("### Costs, mean over 2 data sets")
    assert text.splitlines()[start + 2 : start + 6] == [
        "| model | training s | numbers stored M | multiply-adds G | latency ms | latency / Stfpm |",
        "| --- | --- | --- | --- | --- | --- |",
        "| Stfpm | 3 | 1.50 | 0.92 | 12.3 | 1.00 |",
        "| Msfd | - | - | - | - | - |",
    ]
    assert text.splitlines()[-3:] == [
        "- weave (pixel_AUROC, PRO): The test set has no masks.",
        "- weave (Msfd): Few images.",
        "- Mkd on weave, seed 0, failed: No luck.",
    ]
    rows = list(csv.DictReader(io.StringIO((folder.path / "table.csv").read_text())))
    assert [row["image_AUROC"] for row in rows] == ["0.5", "0.7", "0.9", "0.8"]
    values = json.loads((folder.path / "table.json").read_text())
    assert values["data"]["weave"]["Stfpm"]["image_AUROC"] == [pytest.approx(0.6), pytest.approx(0.02**0.5)]
    assert values["failures"] == {failed.name: "No luck."}


def test_several_versions_are_told_apart():
    old, new = {"version": "0.1.0"}, {"version": "0.2.0"}
    results = [result(0.5, made=old), result(0.6, seed=1, made=old), result(0.7, model="Msfd", made=new)]
    remarks = tables.to_markdown(results, [], {}).splitlines()[-2:]
    assert remarks == ["- Trained with version 0.1.0: Stfpm on weave.", "- Trained with version 0.2.0: Msfd on weave."]
    assert "version" not in tables.to_markdown(results[:2], [], {})


def test_a_reason_that_holds_for_some_models_names_them():
    lacking = dict.fromkeys(("pixel_AUROC", "PRO"), "The model gives no anomaly maps.")
    text = tables.to_markdown([result(0.5), result(0.6, model="Ganomaly", missing=lacking)], [], {})
    assert "- weave (Ganomaly pixel_AUROC, Ganomaly PRO): The model gives no anomaly maps." in text


def test_a_mean_over_fewer_data_sets_says_which_it_leaves_out():
    pixels = {"image_AUROC": 0.5, "PRO": 0.4}
    results = [
        result(0.5, data="a", metrics=pixels),
        result(0.5, data="b"),
        result(0.5, data="c", metrics={}, alarms={}),
        result(0.5, model="Msfd", data="b", metrics=pixels),
    ]
    remarks = [line for line in tables.to_markdown(results, [], {}).splitlines() if line.startswith("- ")]
    assert remarks == [
        "- image AUROC: the mean leaves out c, where no model has it.",
        "- PRO: the mean leaves out c, where no model has it.",
        "- defects found: the mean leaves out c, where no model has it.",
    ]


def test_a_data_set_without_any_figure_has_a_whole_table():
    text = tables.to_markdown([result(0.5, metrics={}, alarms={}, costs={})], [], {})
    assert text.splitlines() == ["### weave", "", "| model |", "| --- |", "| Stfpm |"]
