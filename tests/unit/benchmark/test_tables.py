"""The run folder and its tables: means over seeds, categories and data sets, and what is said of gaps."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from anomalib_mixedteacher.benchmark.result import Calibration, Cell, KeptPredictions, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.benchmark.tables import write_tables
from anomalib_mixedteacher.errors import ConfigurationError

KEPT = KeptPredictions([], [], np.empty(0, np.float32), np.empty((0, 0, 0), np.float32), np.empty((0, 0, 0), bool))


def cell(model, data, seed=0):
    group = data.split("/")[0]
    return Cell(model, model, {}, data, group, {}, seed, "random", (64, 96), 1, 8, 0.05, group=group)


def result(of, missing=None, notes=(), **metrics):
    calibration = Calibration(0.5, None, 10, 0.1)
    costs = {"train_seconds": 60.0, "wall_seconds": 70.0}
    return Result(of, metrics, missing or {}, list(notes), calibration, {"good": (1, 4)}, {"roc": [(0.0, 1.0)]}, costs)


def folder_of(path, results, means=None, more=()):
    folder = RunFolder(path)
    folder.set_cells([*(r.cell for r in results), *more], means)
    for one in results:
        folder.save(one, KEPT)
    return folder


def rows(markdown, title):
    """The cells of the table under a title, by model."""
    lines = markdown.split(f"### {title}\n\n")[1].split("\n\n")[0].splitlines()
    return {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines if "---" not in line}


def test_a_result_comes_back_as_it_was(tmp_path):
    one = result(cell("A", "paper/x"), missing={"PRO": "No masks."}, notes=["Few."], image_AUROC=0.5)
    assert folder_of(tmp_path, [one]).results() == [one]


def test_categories_are_pooled_before_data_sets_and_seeds_spread(tmp_path):
    values = {("paper/x", 0): 0.2, ("paper/y", 0): 0.6, ("tiles", 0): 0.8}
    values |= {("paper/x", 1): 0.4, ("paper/y", 1): 0.8, ("tiles", 1): 1.0}
    results = [result(cell("A", data, seed), image_AUROC=value) for (data, seed), value in values.items()]
    markdown = write_tables(folder_of(tmp_path, results))
    spread = np.std([0.4, 0.6], ddof=1)
    assert rows(markdown, "paper (mean of 2)")["A"][0] == f"0.500 ± {spread:.3f}"
    assert rows(markdown, "tiles")["A"][0] == f"0.900 ± {spread:.3f}"
    assert rows(markdown, "Mean over 2 data sets")["A"][0] == f"0.700 ± {spread:.3f}"  # not .633, of three
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table.image_AUROC) == list(values.values())
    assert list(table.group) == ["paper", "paper", "tiles"] * 2


def test_named_means_take_the_place_of_the_one_over_all(tmp_path):
    results = [result(cell("A", data), image_AUROC=value) for data, value in {"a": 0.1, "b": 0.3, "c": 0.9}.items()]
    markdown = write_tables(folder_of(tmp_path, results, {"Mean of two": ["a", "b"]}))
    assert rows(markdown, "Mean of two")["A"][0] == "0.200"
    assert "Mean over" not in markdown


def test_a_mean_over_fewer_sets_is_not_shown_beside_one_over_all(tmp_path):
    results = [result(cell(model, "a"), image_AUROC=0.5) for model in "AB"]
    results.append(result(cell("A", "b"), missing={"PRO": "No masks."}, notes=["Few."], image_AUROC=0.7))
    folder = folder_of(tmp_path, results, more=[cell("B", "b")])
    folder.fail(cell("B", "b"), "It broke: mend it.", "Traceback")
    markdown = write_tables(folder)
    assert rows(markdown, "Mean over 2 data sets")["A"][0] == "0.600"
    assert rows(markdown, "Mean over 2 data sets")["B"][0] == "-"
    assert "- b (PRO): No masks." in markdown
    assert "- b (A): Few." in markdown
    assert "- B on b, seed 0, failed: It broke: mend it." in markdown


def test_a_column_that_one_data_set_lacks_says_so(tmp_path):
    results = [result(cell("A", "a"), image_AUROC=0.5, PRO=0.25), result(cell("A", "b"), image_AUROC=0.7)]
    markdown = write_tables(folder_of(tmp_path, results))
    assert "0.250" in rows(markdown, "Mean over 2 data sets")["A"]
    assert "- Mean over 2 data sets, PRO: leaves out b, where no model has it." in markdown


def test_latencies_fill_columns_of_their_own(tmp_path):
    folder = folder_of(tmp_path, [result(cell("A", "a"), image_AUROC=0.5)])
    assert "latency" not in write_tables(folder)
    folder.write(folder.speed, {cell("A", "a").name: {"latency_ms": 12.34, "int8_ratio": 0.2}})
    table = rows(write_tables(folder), "a")
    assert dict(zip(table["model"], table["A"], strict=True))["latency ms"] == "12.3"
    assert dict(zip(table["model"], table["A"], strict=True))["INT8 latency / Stfpm"] == "0.20"


def test_a_folder_tells_finished_failed_and_waiting_cells(tmp_path):
    done, broken, waiting = cell("A", "a"), cell("B", "a"), cell("C", "a")
    folder = folder_of(tmp_path, [result(done)], more=[broken, waiting])
    folder.fail(broken, "It broke.", "Traceback")
    assert [r.cell for r in folder.results()] == [done]
    assert [(f.cell, f.message) for f in folder.failures()] == [(broken, "It broke.")]
    assert folder.unfinished() == {waiting.name: waiting}
    assert "Traceback" in folder.log(broken).read_text()


def test_every_value_and_the_version_make_the_key():
    one, other = cell("A", "a"), {"batch": 9, "map_args": {"sigma": 2.0}, "version": "9.9", "image_size": 64}
    assert {name: replace(one, **{name: value}).key == one.key for name, value in other.items()} == dict.fromkeys(
        other, False
    )
    assert Cell.from_values(asdict(one) | {"image_size": [64, 96]}) == one


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="is not the folder of a benchmark"):
        RunFolder(tmp_path).results()
