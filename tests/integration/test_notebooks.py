"""The notebooks run from top to bottom at a tiny size, and are committed without outputs.

Their cells run in this process, each notebook in a namespace of its own: a kernel for each would take a minute more to
import anomalib, and its variables could not be looked at.
"""

import functools
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from anomalib_mixedteacher.benchmark import runner
from anomalib_mixedteacher.decoding import read_image
from anomalib_mixedteacher.export import openvino as openvino_export

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
DOCS = FOLDER.parent / "docs" / "notebooks.md"
TINY = {"IMAGE_SIZE": 64, "IMAGES": 10, "EPOCHS": 2}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def is_parameters(cell: dict[str, Any]) -> bool:
    return "parameters" in cell["metadata"].get("tags", [])


def run(name: str, **parameters: Any) -> dict[str, Any]:
    """Run a notebook's code with other parameters, and give its variables."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in read(next(FOLDER.glob(f"{name}_*.ipynb")))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, {cell['id']}", "exec"), names)
        if is_parameters(cell):
            assert parameters.keys() <= names.keys()
            names.update(parameters)
        plt.close("all")
    return names


@pytest.fixture(autouse=True)
def aside(tmp_path, monkeypatch) -> Iterator[None]:
    """A folder to write to, and everything that notebooks set for their whole process set back."""
    loggers = [logging.getLogger(name) for name in ("anomalib_mixedteacher", "lightning.pytorch", "lightning_fabric")]
    loggers.append(logging.getLogger("nncf"))
    levels = [logger.level for logger in loggers]
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ), matplotlib.rc_context({"figure.max_open_warning": 0}):
        matplotlib.use("Agg")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


class TestCommitted:
    def test_there_are_four_and_each_is_in_the_docs_its_pictures_small(self):
        assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]
        text = DOCS.read_text()
        for path in NOTEBOOKS:
            assert path.name in text
            pictures = re.findall(rf"\]\((images/notebook-{path.name[:2]}[\w-]*\.png)\)", text)
            assert pictures
            assert all((DOCS.parent / picture).stat().st_size < 200_000 for picture in pictures)

    @pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
    def test_no_outputs(self, path):
        notebook = read(path)
        assert notebook["nbformat"] == 4
        assert notebook["metadata"]["kernelspec"]["language"] == "python"
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                assert cell["execution_count"] is None
        identities = [cell["id"] for cell in notebook["cells"]]
        assert len(set(identities)) == len(identities)

    @pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
    def test_one_cell_has_the_parameters_and_the_first_one_says_what_the_teachers_are(self, path):
        cells = read(path)["cells"]
        (parameters,) = [cell for cell in cells if is_parameters(cell)]
        names: dict[str, Any] = {}
        exec("".join(parameters["source"]), names)
        assert names["TEACHER_WEIGHTS"] in {"random", "texture"}  # neither needs a network
        assert names.keys() >= {*TINY, "OUTPUT"}
        assert not Path(names["OUTPUT"]).is_absolute()
        assert cells.index(parameters) == 1
        introduction = " ".join("".join(cells[0]["source"]).split())
        assert "a floor" in introduction
        assert 'TEACHER_WEIGHTS = "imagenet"' in introduction


def test_train_on_own_images():
    found = run("01", **TINY)
    fabric = found["FABRIC"]
    bad, mask = ({path.name for path in (fabric / kind).iterdir()} for kind in ("bad", "mask"))
    assert bad == mask
    assert len(bad) == 36
    parts = [set(getattr(found["datamodule"], f"{name}_data").samples.image_path) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10 + 36

    assert found["log"].val_loss.notna().sum() == TINY["EPOCHS"]
    processor = found["model"].post_processor
    # of so few images the highest score is the threshold
    assert processor.image_threshold.item() == processor.image_scores.max().item()

    table = found["table"]
    area = roc_auc_score(table.kind != "good", table.score)
    assert found["metrics"]["image_AUROC"] == pytest.approx(area)
    assert set(found["metrics"]) == {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"}
    assert (table.alarm == (table.score > 0.5)).all()
    assert found["alarms"].images.sum() == len(table) == 38
    assert found["checkpoint"].exists()


def test_calibrate_and_deploy(capsys, monkeypatch):
    # one conversion in place of three, which take longer than everything else
    network = functools.lru_cache(openvino_export.network)
    monkeypatch.setattr(
        openvino_export, "network", lambda module, size=None, **kwargs: network(module, size, **kwargs).clone()
    )
    found = run("02", **TINY, GOOD=48, REPETITIONS=2)
    printed = capsys.readouterr().out
    assert "takes 999 good calibration images, but there are 24" in printed
    assert "torch was imported: False" in printed
    assert "broken.png: Cannot read the image" in printed

    path = found["bad"].image_path.iloc[-1]
    with torch.no_grad():
        expected = found["model"](read_image(path, as_tensor=True)[None])
    judged = found["detector"].predict(path)
    assert judged.score == pytest.approx(expected.pred_score.item(), abs=1e-4)
    np.testing.assert_allclose(judged.anomaly_map, expected.anomaly_map.squeeze(), atol=1e-4)
    assert max(found["score_difference"], found["map_difference"]) < 1e-4

    scores = np.array(found["detector"].record.calibration.scores)
    p_values = [(1 + np.sum(scores >= one.score)) / (1 + len(scores)) for one in found["fresh"]]
    assert found["fresh_p"] == pytest.approx(p_values)
    assert found["budgets"].iloc[:, 0].tolist() == [
        sum(p <= budget for p in p_values) for budget in (0.02, 0.05, 0.1, 0.2)
    ]
    assert len(found["first"]) == sum(not one.label for one in found["fresh"]) // found["window"]

    speed = found["speed"]
    assert speed.loc["FP32", "images/s, FP32 = 1"] == 1
    assert speed.loc["FP16", "file, FP32 = 1"] == pytest.approx(0.5, abs=0.02)
    quality = found["detectors"]["INT8"].record.quality
    lost = max(quality[f"float_{name}"] - quality[name] for name in ("image_AUROC", "pixel_AUROC"))
    assert ("INT8 is refused: Quantisation loses" in printed) == (lost > 0.002) == speed.loc["INT8", "refused"]


def test_benchmark_and_report(monkeypatch):
    trained = []
    apart = runner._run_apart
    monkeypatch.setattr(
        runner, "_run_apart", lambda folder, cell, *rest: trained.append(cell.model) or apart(folder, cell, *rest)
    )
    found = run("03", **TINY)
    assert trained == ["MixedTeacher", "Patchcore", "Stfpm"]  # once, in both calls together
    table = found["table"]
    assert table.index.tolist() == trained
    for model, kept in found["kept"].items():
        area = roc_auc_score([kind != "good" for kind in kept.kinds], kept.scores)
        assert table.loc[model, "image_AUROC"] == pytest.approx(area)
    assert table[["image_AUROC", "pixel_AUROC", "false_alarm_rate", "found_rate"]].stack().between(0, 1).all()
    assert (found["relative"].loc["MixedTeacher"] == 1).all()
    page = found["report"].read_text()
    assert all(model in page for model in trained)


def test_what_the_two_teachers_see():
    found = run("04", **TINY)
    teachers, fusions = found["by_teacher"], found["by_fusion"]
    # smoothing and upsampling are linear, so the fused map is the sum of the finished ones
    assert torch.allclose(fusions["sum"], teachers["ResNet"] + teachers["EfficientNet"], rtol=1e-4)
    assert not torch.allclose(fusions["product"], fusions["normalized_product"])
    for name, maps in (found["by_depth"] | teachers | fusions).items():
        area = roc_auc_score(found["kinds"] != "good", maps.amax(dim=(1, 2, 3)))
        assert found["table"].loc[name, "image AUROC"] == pytest.approx(area)
    assert found["by_kind"].stack().between(0, 1).all()
    assert all(-1 <= value <= 1 for value in found["agreement"].values())
    counts = found["counts"]
    assert counts.sum(axis=1).to_dict() == {"good": 24} | dict.fromkeys(found["defects"], 6)
