"""``mixedteacher benchmark`` end to end: real trainings, a kill in the middle, and data sets that lack something."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from anomalib_mixedteacher.benchmark import command
from anomalib_mixedteacher.benchmark.plan import parse_plan
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.benchmark.tables import values_of
from anomalib_mixedteacher.cli import main

TINY = {"teacher_weights": "random", "image_size": 64, "epochs": 1}
TEXTURES = {
    "class_path": "SyntheticTextures",
    "init_args": {"image_size": 64, "num_train": 10, "num_test_good": 4, "num_defects_per_kind": 1},
}


def fingerprint(folder):
    """All that does not depend on the clock."""
    return {
        result.cell.name: (result.metrics, result.alarms, result.calibration, result.curves)
        for result in folder.results()
    }


def test_killed_and_started_again_it_ends_in_the_same(tmp_path):
    plan = {"models": ["Stfpm", "Patchcore"], "data": [TEXTURES | {"categories": ["weave", "grid"]}], **TINY}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    start = [sys.executable, "-m", "anomalib_mixedteacher.cli", "benchmark", str(tmp_path / "plan.yaml"), "--output"]
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    subprocess.run([*start, str(whole.path)], check=True, capture_output=True)
    assert len(whole.results()) == 4

    process = subprocess.Popen([*start, str(cut.path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(cut.path.glob("cells/[!.]*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # the killed one's child ends by itself
    finished = {path: path.stat().st_mtime_ns for path in cut.path.glob("cells/[!.]*/result.json")}
    assert 0 < len(finished) < 4
    assert not (cut.path / "table.md").exists()

    again = subprocess.run([*start, str(cut.path)], check=True, capture_output=True, text=True)
    assert f"{len(finished)} of 4 cells are finished and are not run again." in again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert fingerprint(cut) == fingerprint(whole)
    assert {path.name for path in cut.path.glob("cells/*")} == {path.name for path in whole.path.glob("cells/*")}
    head, *rows = (cut.path / "table.csv").read_text().splitlines()
    assert len(rows) == 4
    assert {"image_AUROC", "PRO", "latency_ms", "images_per_second", "peak_memory_mb"} <= set(head.split(","))


@pytest.fixture(scope="module")
def odd_folders(tmp_path_factory):
    """Data sets that lack something, each with 10 good images."""
    root = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    defects = {"no_masks": 3, "no_defects": 0, "single_defect": 1, "sixteen_bits": 3}
    for name, count in defects.items():
        for place, images in {"good": 10, "bad": count, "mask": 0 if name == "no_masks" else count}.items():
            for index in range(images):
                (root / name / place).mkdir(parents=True, exist_ok=True)
                write(root / name / place, index, place, rng, name == "sixteen_bits")
    return root


def write(folder, index, place, rng, sixteen_bits):
    if place == "mask":
        mask = np.zeros((64, 64), np.uint8)
        mask[16:32, 16:32] = 255
        Image.fromarray(mask).save(folder / f"{index}.png")
        return
    image = np.repeat(rng.normal(120, 20, (64, 64, 1)).clip(0, 240).astype(np.uint8), 3, axis=-1)
    if place == "bad":
        image[16:32, 16:32] = 250
    if sixteen_bits:
        Image.fromarray(image[..., 0].astype(np.uint16) * 256).save(folder / f"{index}.tiff")
    else:
        Image.fromarray(image).save(folder / f"{index}.png")


def test_data_that_lack_something_say_so_and_are_complete_otherwise(odd_folders, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    data = [command._folder(odd_folders / name) for name in ("no_masks", "no_defects", "single_defect", "sixteen_bits")]
    status = command.run(parse_plan({"models": ["Stfpm"], "data": data, **TINY}, "here"), folder)
    assert (status, folder.failures()) == (0, [])
    found = {result.cell.data: result for result in folder.results()}
    assert set(found["no_masks"].missing) == {"pixel_AUROC", "PRO", "pixel_F1"}
    assert {"image_AUROC", "false_alarm_rate"} <= found["no_masks"].metrics.keys()
    assert set(found["no_defects"].missing.values()) == {"The test set has no defective images."}
    assert "false_alarm_rate" in found["no_defects"].metrics
    assert found["single_defect"].missing == {}
    assert any("Only 1 defective image" in note for note in found["single_defect"].notes)
    assert found["sixteen_bits"].missing == {}
    for data, defects in {"no_masks": 3, "no_defects": 0, "single_defect": 1, "sixteen_bits": 3}.items():
        alarms = found[data].alarms
        assert {kind: images for kind, (_, images) in alarms.items()} == {"good": 2} | (
            {"abnormal": defects} if defects else {}
        )
        assert alarms["good"][0] == 2 * found[data].metrics["false_alarm_rate"]
        found_rate = values_of(found[data], {}).get("found_rate")
        assert found_rate == (alarms["abnormal"][0] / defects if defects else None)
    printed = capsys.readouterr().out
    assert "- no_masks (pixel_AUROC, PRO, pixel_F1): The test set has no masks." in printed
    for result in found.values():
        assert folder.export(result.cell).exists()
        speed = json.loads(folder.speed.read_text())[result.cell.name]
        assert set(speed) == {"latency_ms", "images_per_second", "gmacs", "latency_ratio"}
        kinds = folder.predictions(result.cell).kinds
        assert {kind: kinds.count(kind) for kind in kinds} == {kind: n for kind, (_, n) in result.alarms.items()}


def test_new_images_are_trained_on_and_the_report_counts_them(odd_folders, tmp_path, capsys):
    shutil.copytree(odd_folders / "single_defect", tmp_path / "fabric")
    folder = RunFolder(tmp_path / "run")
    plan = parse_plan({"models": ["Stfpm"], "data": [command._folder(tmp_path / "fabric"), TEXTURES], **TINY}, "here")
    assert command.run(plan, folder) == 0
    before = {result.cell.data: result for result in folder.results()}
    assert before["fabric"].inputs.keys() == {"normal_dir", "abnormal_dir", "mask_dir"}
    assert before["SyntheticTextures"].inputs == {}
    for place in ("bad", "mask"):
        shutil.copy(tmp_path / "fabric" / place / "0.png", tmp_path / "fabric" / place / "1.png")
    assert command.run(plan, folder) == 0
    assert "1 of 2 cells are run again, since their images or weights changed: fabric." in capsys.readouterr().out
    after = {result.cell.data: result for result in folder.results()}
    assert after["SyntheticTextures"] == before["SyntheticTextures"]
    assert after["fabric"].alarms["abnormal"][1] == 2
    assert set(json.loads(folder.speed.read_text())) == {result.cell.name for result in after.values()}
    assert main(["report", str(folder.path)]) == 0
    page = (folder.path / "report.html").read_text()
    assert "There are no good test images" not in page
    assert 'data-kind="good"' in page
    assert 'data-kind="abnormal"' in page


def test_a_model_without_maps_has_all_other_figures(tmp_path, capsys):
    models = [{"class_path": "Ganomaly", "init_args": {"n_features": 4, "latent_vec_size": 8}}]
    folder = RunFolder(tmp_path / "run")
    settings = {"image_size": 256, "epochs": 1}  # no teacher, so that nothing is fetched
    assert command.run(parse_plan({"models": models, "data": [TEXTURES], **settings}, "here"), folder) == 0
    (result,) = folder.results()
    assert set(result.missing) == {"pixel_AUROC", "PRO", "pixel_F1"}
    assert set(result.missing.values()) == {"The model gives no anomaly maps."}
    assert {"image_AUROC", "false_alarm_rate"} <= result.metrics.keys()
    assert result.calibration.pixel is None
    assert result.alarms["good"][1] == 4
    assert folder.predictions(result.cell).maps.size == 0
    assert folder.export(result.cell).exists()
    assert "(pixel_AUROC, PRO, pixel_F1): The model gives no anomaly maps." in capsys.readouterr().out
    assert main(["report", str(folder.path)]) == 0


def test_a_cell_that_fails_is_named_and_the_rest_is_finished(tmp_path, capsys):
    models = [{"class_path": "Msfd", "init_args": {"layers": [9]}, "name": "broken"}, "EfficientAd", "Stfpm"]
    folder = RunFolder(tmp_path / "run")
    status = command.run(parse_plan({"models": models, "data": [TEXTURES], **TINY}, "here"), folder)
    assert status == 1
    assert [result.cell.model for result in folder.results()] == ["Stfpm"]
    messages = {failure.cell.model: failure.message for failure in folder.failures()}
    assert set(messages) == {"broken", "EfficientAd"}
    assert "layers" in messages["broken"]
    assert messages["EfficientAd"].endswith("give it an image_size of its own.")
    assert "EfficientAd on SyntheticTextures, seed 0, failed:" in capsys.readouterr().out
    assert "Traceback" in folder.log(folder.failures()[0].cell).read_text()


def test_wrong_names_are_refused_before_anything_is_trained(tmp_path, capsys):
    textures = ["--data", "SyntheticTextures"]
    for arguments, sentence in (
        (["--models", "Nonsense", *textures], "There is no model Nonsense"),
        (["--data", "Nonsense"], "There is no data set Nonsense"),
    ):
        assert main(["benchmark", *arguments, "--output", str(tmp_path / "run")]) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
