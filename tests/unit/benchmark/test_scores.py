"""Predictions of any data set and model: kinds of defect by every data set's words, and models without maps."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data.utils import DirType
from anomalib_mixedteacher.benchmark.build import build, build_data
from anomalib_mixedteacher.benchmark.stand_ins import make_stand_ins

from anomalib_mixedteacher.benchmark import alarms, probe
from anomalib_mixedteacher.benchmark.evaluation import compute_metrics, count_alarms, keep
from anomalib_mixedteacher.benchmark.result import Calibration, Cell, Result
from anomalib_mixedteacher.benchmark.run_folder import KeptPredictions
from anomalib_mixedteacher.benchmark.scores import image_kinds, predict, summarize
from anomalib_mixedteacher.benchmark.tables import values_of
from anomalib_mixedteacher.errors import ConfigurationError

CALIBRATION = Calibration(image=0.9, pixel=0.9, images=20, alarm_rate=0.05)


class Brightness:
    """Sees the bright squares that are the defects of the tiny images, without a mistake."""

    pre_processor = None
    device = torch.device("cpu")

    def __init__(self, maps=True):
        self.maps = maps

    def eval(self):
        pass

    def model(self, images):
        found = images.mean(dim=1, keepdim=True)
        return SimpleNamespace(pred_score=found.amax(dim=(1, 2, 3)), anomaly_map=found if self.maps else None)


@pytest.fixture
def folder(datamodule):
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize(
    ("labels", "kinds"),
    [
        ([DirType.NORMAL, DirType.NORMAL_TEST, DirType.ABNORMAL], ["good", "good", "abnormal"]),
        (["ok", "ok", "ko"], ["good", "good", "ko"]),
        (["Good", "Good", "Bad"], ["good", "good", "Bad"]),
        (["good", "good", "hole"], ["good", "good", "hole"]),
    ],
    ids=["Folder", "BTech", "Kolektor", "MVTecAD"],
)
def test_images_without_a_defect_are_good_in_every_data_set(labels, kinds):
    found = image_kinds(pd.DataFrame({"label": labels, "label_index": [0, 0, 1]}))
    assert found == kinds
    assert {type(kind) for kind in found} == {str}


def test_a_perfect_detector_on_a_folder_finds_all_defects_and_raises_no_false_alarm(folder, tmp_path):
    predictions = predict(Brightness(), folder)
    metrics, missing, curves = compute_metrics(predictions, CALIBRATION)
    counts = count_alarms(predictions, CALIBRATION)
    assert counts == {"good": (0, 3), "abnormal": (3, 3)}
    assert (metrics["image_AUROC"], metrics["false_alarm_rate"], missing) == (1.0, 0.0, {})
    assert summarize(predictions)["abnormal"] == 1.0
    cell = Cell("Stfpm", "Stfpm", {}, "fabric", "Folder", {}, 0, "random", 64, 1, 8, 0.05)
    result = Result(cell, metrics, missing, [], CALIBRATION, counts, curves, {})
    again = Result.from_json(result.to_json())
    assert again == result
    assert not again.mislabelled
    assert values_of(again, {})["found_rate"] == 1.0
    keep(predictions, list(folder.test_data.samples.image_path)).save(tmp_path / "predictions.npz")
    kept = KeptPredictions.load(tmp_path / "predictions.npz")
    folders = [path.split("/")[-2] for path in kept.paths]
    assert kept.kinds == ["abnormal" if name == "bad" else "good" for name in folders]


def test_good_images_of_another_word_are_good(tmp_path):
    make_stand_ins("BTech", ["01"], tmp_path)
    datamodule = build_data("BTech", {"root": str(tmp_path), "category": "01"}, 0, 4)
    datamodule.setup()
    assert set(datamodule.test_data.samples.label) == {"ok", "ko"}
    predictions = predict(Brightness(), datamodule)
    assert [kind == "good" for kind in predictions.kinds] == (predictions.labels == 0).tolist()
    assert set(predictions.kinds) == {"good", "ko"}


def test_the_other_tools_count_a_folders_good_images_as_good(folder, monkeypatch):
    assert set(probe.score(lambda images: images.mean(1, keepdim=True), folder.test_data, 64).kinds) == {
        "good",
        "abnormal",
    }
    monkeypatch.setattr(alarms.openvino, "Core", lambda: SimpleNamespace(read_model=lambda path: path))
    monkeypatch.setattr(alarms, "raw", lambda graph: graph)
    monkeypatch.setattr(alarms, "compile_exactly", lambda _: lambda images: {"pred_score": np.array(images.max())})
    scores = alarms.score("model.xml", folder)
    assert set(scores) == {"good", "abnormal"}
    assert scores["good"].max() < scores["abnormal"].min()


def test_a_model_without_maps_has_scores_and_no_figures_of_pixels(folder):
    predictions = predict(Brightness(maps=False), folder)
    assert predictions.maps.shape == (6, 0, 0)
    assert predictions.masks.any()
    assert set(summarize(predictions)) == {"image_AUROC", "abnormal"}
    assert count_alarms(predictions, CALIBRATION) == {"good": (0, 3), "abnormal": (3, 3)}


def test_a_model_without_a_teacher_is_not_said_to_have_weights():
    with pytest.raises(ConfigurationError, match="Ganomaly has no teacher that could take random weights"):
        build("Ganomaly", "random", 256)
