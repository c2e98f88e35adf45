"""Means, intervals, reasons and the verdict, by hand."""

import pytest

from anomalib_mixedteacher.report.page import counted, verdict
from anomalib_mixedteacher.report.run import Alarms, read_run

from .fake_run import add, make_cell, make_folder, make_result, save


@pytest.fixture
def read(tmp_path):
    """Read a run of AUROCs by (model, data, seed).

    A sentence stands for a missing one, None for a failure, and ... for a training that has not finished yet.
    """

    def read(values, speed=None, **changed):
        folder = make_folder(tmp_path / str(len(list(tmp_path.iterdir()))))
        for (model, data, seed), value in values.items():
            cell = make_cell(model, data, seed)
            if value is ... or value is None:
                add(folder, cell)
                if value is None:
                    folder.fail(cell, "It broke.")
            elif isinstance(value, str):
                save(folder, make_result(cell, missing={"image_AUROC": value}, **changed))
            else:
                save(folder, make_result(cell, metrics={"image_AUROC": value}, **changed))
        if speed is not None:
            folder.write(folder.speed, speed)
        return read_run(folder.path)

    return read


def test_the_first_table_is_the_mean_over_data_sets(read):
    run = read({("A", "x", 0): 0.90, ("A", "x", 1): 0.80, ("A", "y", 0): 0.70, ("A", "y", 1): 0.40})
    means = {table.title: table.rows["A"]["image_AUROC"] for table in run.tables}
    assert list(means) == ["Mean over 2 data sets", "x", "y"]
    # the seeds' means are 0.8 and 0.6
    assert [*means.values()] == [pytest.approx(m, abs=1e-4) for m in ((0.7, 0.1414), (0.85, 0.0707), (0.55, 0.2121))]
    (alone,) = read({("A", "x", 0): 0.9}).tables
    assert (alone.title, alone.rows["A"]["image_AUROC"]) == ("x", (0.9, None))


def test_models_are_ranked_and_those_without_a_rank_come_last(read):
    run = read({("A", "x", 0): 0.5, ("B", "x", 0): None, ("C", "x", 0): 0.9, ("D", "x", 0): ...})
    assert run.models == ["C", "A", "B", "D"]
    assert list(run.tables[0].rows) == run.models


def test_what_is_missing_has_its_reason(read):
    none = "The test set has no defective images."
    run = read({("A", "x", 0): none, ("B", "x", 0): 0.9, ("C", "x", 0): None, ("C", "x", 1): ...})
    (table,) = run.tables
    assert f"A, image AUROC: {none}" in table.reasons
    assert "C, all figures: The training on x with seed 0 failed." in table.reasons
    assert "C, all figures: The training on x with seed 1 is to come." in table.reasons
    assert "B, A, latency ms: The speed of exports was not measured." in table.reasons


def test_speed_is_that_of_the_seeds_it_was_measured_on(read):
    speed = {make_cell("A", "x", 0).name: {"latency_ms": 12.34}}
    run = read({("A", "x", 0): 0.9, ("A", "x", 1): 0.8}, speed)
    assert run.tables[0].rows["A"]["latency_ms"] == (12.34, None)
    assert verdict(run)["Speed"] == "A takes 12.3 ms an image."


def test_alarms_of_all_seeds_are_counted_with_the_interval_of_one(tmp_path):
    folder = make_folder(tmp_path)
    for seed, found in enumerate((1, 4)):
        alarms = {"good": (seed, 10), "hole": (5, 5), "crack": (found, 5)}
        save(folder, make_result(make_cell("A", "x", seed), alarms=alarms))
    run = read_run(tmp_path)
    assert run.kinds(["x"]) == ["crack", "hole"]
    assert run.alarms("A", ["x"], ["crack"]) == Alarms(5, 10, seeds=2)
    assert run.alarms("A", ["x"], run.kinds(["x"])) == Alarms(15, 20, seeds=2)
    assert run.alarms("A", ["x"], ["fray"]) is None


@pytest.mark.parametrize(("alarms", "images"), [(0, 10), (8, 10), (10, 10), (3, 200)])
def test_the_interval_is_wilsons(alarms, images):
    z, p = 1.959963985, alarms / images
    middle = (p + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * (p * (1 - p) / images + z**2 / (4 * images**2)) ** 0.5
    assert Alarms(alarms, images).interval == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert Alarms(3 * alarms, 3 * images, seeds=3).interval == Alarms(alarms, images).interval


def test_counts_are_written_with_share_and_interval():
    assert counted(Alarms(8, 10)) == "80% (49% to 94%; 8/10)"


def test_the_verdict_names_the_best_and_doubts_a_small_lead(read):
    clear = {("A", "x", 0): 0.90, ("A", "x", 1): 0.92, ("B", "x", 0): 0.70, ("B", "x", 1): 0.72}
    said = verdict(read(clear))["Accuracy"]
    assert said == (
        "A tells defective images from good ones best: image AUROC 0.910 ± 0.014, against 0.710 ± 0.014 of B."
    )
    close = {("A", "x", 0): 0.80, ("A", "x", 1): 0.90, ("B", "x", 0): 0.79, ("B", "x", 1): 0.89}
    assert "within the spread over seeds, so the order may be luck" in verdict(read(close))["Accuracy"]
    assert "no telling" in verdict(read({("A", "x", 0): 0.9, ("B", "x", 0): 0.8}))["Accuracy"]
    assert verdict(read({("A", "x", 0): 0.9})) == {"Accuracy": "A: image AUROC 0.900."}
    assert "No figure ranks the models" in verdict(read({("A", "x", 0): "No defects."}))["Accuracy"]


def test_the_verdict_counts_alarms_of_the_best_model(read):
    alarms = {"good": (1, 20), "hole": (3, 4)}
    said = verdict(read({("A", "x", 0): 0.9, ("B", "x", 0): 0.8}, alarms=alarms))["At the threshold"]
    assert said == (
        "With thresholds from good images alone, A found 75% (30% to 95%; 3/4) of defective images and raised a false "
        "alarm on 5% (1% to 24%; 1/20) of good ones."
    )


def test_the_verdict_says_what_is_unfinished(read):
    run = read({("A", "x", 0): 0.9, ("A", "x", 1): None, ("A", "x", 2): ...})
    assert verdict(run)["Incomplete"] == "1 of 3 trainings finished, 1 failed, 1 are still to come."
    assert list(verdict(read({("A", "x", 0): None}))) == ["Incomplete"]
