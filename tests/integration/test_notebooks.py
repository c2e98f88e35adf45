"""The notebooks run from top to bottom at a tiny size, and are committed without outputs.

Their cells run in this process, each notebook in a namespace of its own: a kernel for each would take a minute more to
import anomalib, and its variables could not be looked at.
"""

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

from anomalib_mixedteacher.decoding import read_image

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PAGE = FOLDER.parent / "docs" / "notebooks.md"
TINY = {"IMAGE_SIZE": 64, "IMAGES": 10, "EPOCHS": 2}


def is_parameters(cell: dict[str, Any]) -> bool:
    return "parameters" in cell["metadata"].get("tags", [])


def run(name: str, **parameters: Any) -> dict[str, Any]:
    """Run a notebook's code with other parameters, and give its variables."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(next(FOLDER.glob(f"{name}_*.ipynb")).read_text(encoding="utf-8"))["cells"]:
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
    names = ("anomalib_mixedteacher", "lightning.pytorch", "lightning_fabric", "nncf")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ), matplotlib.rc_context({"figure.max_open_warning": 0}):
        matplotlib.use("Agg")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_without_outputs_and_shown_in_the_docs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"])]
    names: dict[str, Any] = {}
    exec("".join(next(cell for cell in cells if is_parameters(cell))["source"]), names)
    assert names["TEACHER_WEIGHTS"] == "packaged"  # needs no network
    assert path.name in PAGE.read_text()
    pictures = re.findall(rf"\]\((images/notebook-{path.name[:2]}[\w-]*\.png)\)", PAGE.read_text())
    assert pictures
    assert all((PAGE.parent / picture).stat().st_size < 200_000 for picture in pictures)


def test_train_on_own_images():
    found = run("01", **TINY)
    parts = [set(getattr(found["datamodule"], f"{name}_data").samples.image_path) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10 + 36
    assert found["log"].val_loss.notna().sum() == TINY["EPOCHS"]
    processor, table = found["model"].post_processor, found["table"]
    assert processor.image_threshold.item() == pytest.approx(processor.image_scores.max().item())  # of so few images
    assert found["metrics"]["image_AUROC"] == pytest.approx(roc_auc_score(table.kind != "good", table.score))
    assert (table.alarm == (table.score >= 0.5)).all()


def test_calibrate_and_deploy(capsys):
    found = run("02", **TINY, GOOD=48, REPETITIONS=2)
    printed = capsys.readouterr().out
    assert "takes 999 good calibration images, but there are 24" in printed
    assert "torch was imported: False" in printed
    assert "broken.png: Cannot read the image" in printed

    path, detector = found["bad"].image_path.iloc[-1], found["detector"]
    with torch.no_grad():
        expected = found["model"](read_image(path, as_tensor=True)[None])
    assert detector.predict(path).score == pytest.approx(expected.pred_score.item(), abs=1e-4)
    assert max(found["score_difference"], found["map_difference"]) < 1e-4

    scores = detector.record.thresholds.good_scores
    p_values = [(1 + np.sum(scores >= np.float32(one.score))) / (1 + len(scores)) for one in found["fresh"]]
    assert found["fresh_p"] == pytest.approx(p_values)
    assert len(found["first"]) == sum(not one.label for one in found["fresh"]) // found["window"]

    speed = found["speed"]
    assert speed.loc["FP16", "file, FP32 = 1"] == pytest.approx(0.5, abs=0.02)
    quality = found["detectors"]["INT8"].record.quality
    lost = max(quality[f"float_{name}"] - quality[name] for name in ("image_AUROC", "pixel_AUROC"))
    assert ("INT8 is refused: Quantisation loses" in printed) == (lost > 0.002) == speed.loc["INT8", "refused"]


def test_benchmark_and_report(capsys):
    found = run("03", **TINY)
    assert "3 of 3 results are there already." in capsys.readouterr().out  # the second call trains nothing
    table = found["table"]
    assert sorted(table.index) == ["MixedTeacher", "Patchcore", "Stfpm"]
    for model, kept in found["kept"].items():
        area = roc_auc_score([kind != "good" for kind in kept.kinds], kept.scores)
        assert table.loc[model, "image_AUROC"] == pytest.approx(area)
    page = found["report"].read_text()
    assert all(model in page for model in table.index)


def test_large_images():
    found = run("04", **TINY | {"IMAGE_SIZE": 128, "IMAGES": 4}, TILE=64)
    assert found["detector"].record.tile_size == 64
    assert found["difference"] < 1e-5
    assert found["blocks"][-1].last == len(found["web"]) == 10 * 128
    assert found["found"].shape == found["mask"].shape == (128, 128)
