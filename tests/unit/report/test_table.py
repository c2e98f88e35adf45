"""Means, spreads, marks and footnotes of the verdict tables, by hand."""

import json

import pytest

from anomalib_mixedteacher.report.columns import BY_NAME, COLUMNS
from anomalib_mixedteacher.report.data import read_run
from anomalib_mixedteacher.report.recall import Alarms, recall_table
from anomalib_mixedteacher.report.table import on_data_set, overall, ranked, tables
from anomalib_mixedteacher.report.verdict import verdict

from .fake_run import add, make_cell, make_folder, make_result, save

POSITION = {column.name: position for position, column in enumerate(COLUMNS)}
AUROC, LATENCY = BY_NAME["image_AUROC"], BY_NAME["latency_ms"]


@pytest.fixture
def read(tmp_path):
    """Read a run of AUROCs by (model, data, seed).

    A sentence stands for a missing one, None for a failure, and ... for a training that has not finished yet.
    """

    def read(values, speed=None, **changed):
        folder = make_folder(tmp_path / str(len(list(tmp_path.iterdir()))))
        for (model, data, seed), value in values.items():
            cell = make_cell(model, data, seed)
            if value is ...:
                add(folder, cell)
            elif value is None:
                add(folder, cell)
                folder.fail(cell, "It broke.")
            elif isinstance(value, str):
                save(folder, make_result(cell, missing={"image_AUROC": value}, **changed))
            else:
                save(folder, make_result(cell, metrics={"image_AUROC": value}, **changed))
        if speed is not None:
            folder.write(folder.speed, speed)
        return read_run(folder.path)

    return read


def entry(table, model, name):
    return table.rows[model][POSITION[name]]


def test_means_over_seeds_and_over_data_sets(read):
    run = read({("A", "x", 0): 0.90, ("A", "x", 1): 0.80, ("A", "y", 0): 0.70, ("A", "y", 1): 0.40})
    everything, of_x, of_y = tables(run)
    assert (entry(of_x, "A", "image_AUROC").text, entry(of_x, "A", "image_AUROC").spread) == ("0.850", "± 0.071")
    assert (entry(of_y, "A", "image_AUROC").text, entry(of_y, "A", "image_AUROC").spread) == ("0.550", "± 0.212")
    # the seeds' means are 0.8 and 0.6
    assert (entry(everything, "A", "image_AUROC").text, entry(everything, "A", "image_AUROC").spread) == (
        "0.700",
        "± 0.141",
    )


def test_one_data_set_has_one_table_and_one_seed_no_spread(read):
    (table,) = tables(read({("A", "x", 0): 0.9}))
    assert table.caption == "x"
    assert entry(table, "A", "image_AUROC").spread == ""


def test_a_missing_figure_has_its_reason_below_the_table(read):
    (table,) = tables(read({("A", "x", 0): "The test set has no defective images.", ("B", "x", 0): 0.9}))
    missing = entry(table, "A", "image_AUROC")
    assert (missing.text, missing.sort) == ("-", None)
    assert [table.footnotes[mark - 1] for mark in missing.marks] == ["The test set has no defective images."]
    assert entry(table, "B", "image_AUROC").marks == []


def test_a_model_that_lacks_a_data_set_is_not_averaged_over_the_others(read):
    run = read({("A", "x", 0): 0.9, ("A", "y", 0): None, ("B", "x", 0): 0.5, ("B", "y", 0): 0.7})
    assert overall(run, "A", AUROC).mean is None
    assert overall(run, "A", AUROC).notes == ("y: The training with seed 0 failed: see above.",)
    assert overall(run, "B", AUROC).mean == pytest.approx(0.6)
    assert ranked(run) == ["B", "A"]


def test_a_reason_that_holds_on_several_data_sets_is_given_once(read):
    run = read({("A", "x", 0): None, ("A", "y", 0): None, ("B", "x", 0): 0.5, ("B", "y", 0): 0.7})
    assert overall(run, "A", AUROC).notes == ("x, y: The training with seed 0 failed: see above.",)


def test_a_data_set_on_which_no_model_has_a_figure_is_left_out_with_a_remark(read):
    values = {("A", "x", 0): 0.9, ("A", "y", 0): "No.", ("B", "x", 0): 0.5, ("B", "y", 0): "No."}
    table = tables(read(values))[0]
    assert entry(table, "A", "image_AUROC").text == "0.900"
    assert "Images, AUROC: the mean leaves out y, where no model has it." in table.remarks


def test_seeds_without_every_data_set_do_not_count(read):
    run = read({("A", "x", 0): 0.9, ("A", "x", 1): 0.1, ("A", "y", 0): 0.7, ("A", "y", 1): None})
    value = overall(run, "A", AUROC)
    assert value.mean == pytest.approx(0.8)
    assert value.spread is None
    assert value.footnotes == ("From 1 of 2 seeds. y: The training with seed 1 failed: see above.",)
    alone = read({("B", "x", 0): 0.9, ("B", "y", 1): 0.7})
    assert overall(alone, "B", AUROC).mean is None
    assert overall(alone, "B", AUROC).notes[0] == "No seed finished on every data set."


def test_a_training_that_has_not_finished_is_no_data_set_left_out(read):
    run = read({("A", "x", 0): 0.9, ("A", "y", 0): 0.7, ("B", "x", 0): 0.5, ("B", "y", 0): ..., ("C", "x", 0): ...})
    assert overall(run, "B", AUROC).notes == ("y: This training has not finished yet.",)
    everything, of_x, _ = tables(run)
    assert list(everything.rows) == ["A", "B", "C"]
    assert "This training has not finished yet." in of_x.footnotes
    assert recall_table(run, "y", ["B", "C"]).missing == [
        "B: this training has not finished yet.",
        "C: it was not trained on this data set.",
    ]
    said = verdict(run)
    assert said["Unfinished"].startswith("3 of 5 trainings have finished; 2 are still to come: all figures are of")
    assert (
        said["Accuracy"]
        == "A, the only model that has one on every data set so far: image AUROC 0.800 over 2 data sets."
    )


def test_planned_seeds_count_before_they_have_finished(read):
    run = read({("A", "x", 0): 0.9, ("A", "x", 1): ..., ("A", "y", 0): 0.7, ("A", "y", 1): ...})
    assert (run.seeds, run.data_sets, len(run.waiting)) == ([0, 1], ["x", "y"], 2)
    waits = "The training with seed 1 has not finished yet."
    assert on_data_set(run, "A", "x", AUROC).footnotes == (f"From 1 of 2 seeds. {waits}",)
    assert overall(run, "A", AUROC).footnotes == (f"From 1 of 2 seeds. x, y: {waits}",)


def test_what_is_unfinished_counts_failures_apart(read):
    values = {("A", "x", 0): 0.9, ("A", "x", 1): None, ("A", "x", 2): ...}
    assert verdict(read(values))["Unfinished"].startswith(
        "1 of 3 trainings has finished and 1 failed; 1 is still to come:"
    )
    assert list(verdict(read({("A", "x", 0): None, ("A", "x", 1): ...}))) == ["Unfinished", "No result"]
    assert "Unfinished" not in verdict(read({("A", "x", 0): 0.9, ("A", "x", 1): None}))


def test_an_index_of_an_earlier_version_names_its_cells_only(read):
    folder = read({("A", "x", 0): 0.9, ("A", "x", 1): ...}).folder
    index = folder.path / "cells.json"
    index.write_text(json.dumps({"cells": list(json.loads(index.read_text())["cells"])}))
    run = read_run(folder.path)
    assert [result.cell.seed for result in run.results] == [0]
    assert verdict(run)["Unfinished"].startswith("1 of 2 trainings has finished")


def test_equal_texts_are_equally_best(read):
    (table,) = tables(read({("A", "x", 0): 0.90001, ("B", "x", 0): 0.90002, ("C", "x", 0): 0.8}))
    assert [entry(table, model, "image_AUROC").best for model in "ABC"] == [True, True, False]


def test_no_false_alarm_is_no_merit_and_one_model_has_no_rival(tmp_path):
    folder = make_folder(tmp_path)
    for model, rate in (("A", 0.0), ("B", 0.1)):
        alarms = {"good": (int(10 * rate), 10), "hole": (3, 4), "crack": (1, 4)}
        save(folder, make_result(make_cell(model), metrics={"false_alarm_rate": rate}, alarms=alarms))
    run = read_run(tmp_path)
    (table,) = tables(run)
    assert not any(entry(table, model, "false_alarm_rate").best for model in "AB")
    assert entry(table, "A", "found_rate").text == "50.0"
    assert entry(table, "B", "false_alarm_rate").text == "10.0"


def test_speed_is_that_of_the_seeds_it_was_measured_on(read):
    cells = [make_cell("A", "x", seed) for seed in (0, 1)]
    speed = {cells[0].name: {"latency_ms": 12.34, "images_per_second": "broken"}, "date": "today"}
    run = read({("A", "x", 0): 0.9, ("A", "x", 1): 0.8}, speed)
    assert (overall(run, "A", LATENCY).mean, overall(run, "A", LATENCY).notes) == (12.34, ())
    (table,) = tables(run)
    assert table.footnotes[entry(table, "A", "images_per_second").marks[0] - 1].startswith("The speed of this model")


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_speed_that_is_absent_or_broken_is_a_reason(read, content):
    folder = read({("A", "x", 0): 0.9}).folder
    if content is not None:
        folder.speed.write_text(content)
    note = overall(read_run(folder.path), "A", LATENCY).notes
    assert note == (
        "Speed was not measured: the run folder has no speed.json."
        if content is None
        else "The run folder's speed.json cannot be read.",
    )


def test_a_value_that_is_not_finite_is_missing(read):
    (table,) = tables(read({("A", "x", 0): float("nan")}))
    assert entry(table, "A", "image_AUROC").text == "-"


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345, "12,345")]
)
def test_quantities_have_three_digits(value, text):
    assert LATENCY.text(value) == text


def test_alarms_of_all_seeds_are_counted_and_the_hardest_kind_comes_first(tmp_path):
    folder = make_folder(tmp_path)
    for seed, found in enumerate((1, 4)):
        alarms = {"good": (seed, 10), "hole": (5, 5), "crack": (found, 5)}
        save(folder, make_result(make_cell("A", "x", seed), alarms=alarms))
    save(folder, make_result(make_cell("B", "x"), missing={"false_alarm_rate": "No threshold."}))
    table = recall_table(read_run(tmp_path), "x", ["A", "B"])
    assert table.models == ["A"]
    assert list(table.defects) == ["crack", "hole"]
    assert table.defects["crack"] == [Alarms(5, 10)]
    assert (table.good, table.total) == ([Alarms(1, 20)], [Alarms(15, 20)])
    assert table.missing == ["B: No threshold."]


def test_the_verdict_names_the_best_and_doubts_a_small_lead(read):
    clear = {("A", "x", 0): 0.90, ("A", "x", 1): 0.92, ("B", "x", 0): 0.70, ("B", "x", 1): 0.72}
    said = verdict(read(clear))["Accuracy"]
    assert said.startswith("A tells defective images from good ones best: image AUROC 0.910 ± 0.014 over 2 seeds")
    assert "luck" not in said
    close = {("A", "x", 0): 0.80, ("A", "x", 1): 0.90, ("B", "x", 0): 0.79, ("B", "x", 1): 0.89}
    assert "within the spread over seeds, so the order may be luck" in verdict(read(close))["Accuracy"]
    assert "no telling" in verdict(read({("A", "x", 0): 0.9, ("B", "x", 0): 0.8}))["Accuracy"]
    assert verdict(read({("A", "x", 0): 0.9}))["Accuracy"] == "A: image AUROC 0.900."


def test_the_verdict_counts_alarms_of_the_best_model(read):
    alarms = {"good": (1, 20), "hole": (3, 4)}
    said = verdict(read({("A", "x", 0): 0.9, ("B", "x", 0): 0.8}, alarms=alarms))["At the threshold"]
    assert said.replace("\N{NO-BREAK SPACE}", " ") == (
        "With thresholds set for a budget of 5 % false alarms, A found 3 of 4 (75 %) defective images and raised a "
        "false alarm on 1 of 20 (5 %) good ones."
    )


def test_the_verdict_of_nothing(read):
    assert list(verdict(read({("A", "x", 0): None}))) == ["No result"]
    assert "No figure ranks the models" in verdict(read({("A", "x", 0): "No defects."}))["Accuracy"]


def test_the_verdict_counts_the_data_sets_and_seeds_that_were_averaged(read):
    none = "The test set has no defective images."
    values = {("A", "x", 0): 0.9, ("B", "x", 0): 0.5, ("A", "y", 0): none, ("B", "y", 0): none}
    assert verdict(read(values))["Accuracy"].startswith(
        "A tells defective images from good ones best: image AUROC 0.900, against 0.500 of B."
    )
    values |= {("A", "z", 0): 0.7, ("B", "z", 0): 0.5}
    assert "image AUROC 0.800 over 2 data sets, against" in verdict(read(values))["Accuracy"]
    seeds = {("A", "x", seed): value for seed, value in enumerate((0.8, 0.9, None))}
    assert verdict(read(seeds))["Accuracy"] == "A: image AUROC 0.850 ± 0.071 over 2 seeds."


def test_good_images_that_were_taken_for_defects_are_no_result(tmp_path):
    folder = make_folder(tmp_path)
    counts = {"normal": (1, 10), "abnormal": (4, 4)}
    metrics = {"image_AUROC": 0.9, "false_alarm_rate": 0.1}
    save(folder, make_result(make_cell("A", "fabric"), metrics=metrics, alarms=counts))
    save(folder, make_result(make_cell("A", "x"), metrics=metrics, alarms={"good": (1, 10), "hole": (3, 4)}))
    run = read_run(tmp_path)
    assert [result.cell.data for result in run.results] == ["x"]
    assert (
        verdict(run)["At the threshold"]
        .replace("\N{NO-BREAK SPACE}", " ")
        .endswith("A found 3 of 4 (75 %) defective images and raised a false alarm on 1 of 10 (10 %) good ones.")
    )
    assert verdict(run)["Incomplete"] == "One training failed: the reasons are below."
    (failure,) = run.failures
    assert "run the benchmark again" in failure.message
