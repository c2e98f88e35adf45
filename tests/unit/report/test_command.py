"""The whole report: complete for every run, self-contained, and safe against names from outside."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from anomalib_mixedteacher.benchmark.result import Calibration
from anomalib_mixedteacher.errors import ConfigurationError, DataError
from anomalib_mixedteacher.report.command import main

from .fake_run import add, judge, make_cell, make_folder, make_images, make_result, make_run, save, see

SECTIONS = ["verdict", "tradeoff", "curves", "scores", "defects", "gallery", "provenance"]
VOID = {"meta", "link", "img", "col", "br"}


class Page(HTMLParser):
    """Reads a page strictly: every element must be closed where it belongs."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag, **wanted):
        found = [attributes for name, attributes in self.elements if name == tag]
        return [a for a in found if all(a.get(key.rstrip("_")) == value for key, value in wanted.items())]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def report(folder, *arguments) -> Page:
    main([str(folder.path), *arguments])
    page = Page((folder.path / "report.html").read_text(encoding="utf-8"))
    assert [section["id"] for section in page.all("section")] == SECTIONS
    links = [a["href"] for a in page.all("a")]
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link.removeprefix("#") for link in links} <= set(names)
    assert all(image["alt"] for image in page.all("img"))
    assert all(heading.get("scope") for heading in page.all("th"))
    return page


def test_a_run_with_everything(tmp_path, capsys):
    folder = make_run(tmp_path, fail=[("Stfpm", "MagneticTile", 1)])
    page = report(folder)
    assert "report.html" in capsys.readouterr().out
    assert [row["data-value"] for row in page.all("th", scope="row") if "data-value" in row] == [
        "Msfd",
        "MixedTeacher",
        "Stfpm",
    ] * 3
    assert "The loss became infinite: train with a smaller learning rate." in page.text
    assert len(page.all("article")) == len(page.all("div", class_="panels"))
    assert {a["data-data"] for a in page.all("article")} == {"SyntheticTextures/weave", "MagneticTile"}
    assert "Mean over 2 seeds." in page.text
    cell = folder.results()[0].cell
    assert cell.key in page.text
    assert folder.plan.read_text().split()[0] in page.text
    assert f"mixedteacher benchmark {tmp_path}/benchmark.yaml --output {tmp_path}-again" in page.text


def test_an_unfinished_run_says_so(tmp_path):
    waiting = [("Stfpm", "MagneticTile", 0), ("Stfpm", "MagneticTile", 1), ("Msfd", "MagneticTile", 1)]
    page = report(make_run(tmp_path, ("Msfd", "Stfpm"), wait=waiting, speed=False))
    assert "2 data sets · 2 seeds" in page.text
    assert page.text.count("5 of 8 trainings have finished; 3 are still to come") == 2  # verdict and notices
    assert "It was not trained on this data set" not in page.text
    assert page.texts.count("not finished yet") == 3
    assert "of 8 trainings" not in report(make_run(tmp_path / "whole", ("Msfd",), seeds=(0,))).text


def test_it_loads_nothing(tmp_path):
    page = report(make_run(tmp_path, seeds=(0,), data={"MagneticTile": ("crack",)}))
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    sources = [a[key] for _, a in page.elements for key in ("src", "href", "srcset", "action") if key in a]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert len(page.all("script")) == len(page.all("style")) == 1
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest", text)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ({"masks": False}, "The data set has no masks."),
        ({"bad": 0}, "The test set has no defective images."),
        ({"good": 0}, "There are no good test images, so false alarms cannot be counted."),
        ({"bad": 1}, "1 of 1"),
        ({"depth": 16}, "Msfd"),
    ],
    ids=["no masks", "no defects", "no good images", "one defect", "16 bit"],
)
def test_degenerate_data_sets_have_a_complete_report(tmp_path, images, sentence):
    folder = make_run(tmp_path, ("Msfd", "Stfpm"), {"MagneticTile": ("crack",)}, (0,), **images)
    page = report(folder)
    assert sentence in page.text
    assert page.all("article")
    assert "The image file" not in page.text


def test_one_model_without_threshold_and_speed(tmp_path):
    folder = make_run(tmp_path, ("Msfd",), {"MagneticTile": ("crack",)}, (0,), speed=False)
    (result,) = folder.results()
    free = replace(result, calibration=Calibration(None, None, 0, 0.05), alarms={}, metrics={}, missing={}, curves={})
    (folder.cell(result.cell) / "result.json").write_text(free.to_json())
    page = report(folder)
    assert "No threshold could be calibrated" in page.text
    assert "Msfd has no calibrated pixel threshold" in page.text
    assert "Speed was not measured: the run folder has no speed.json." in page.text
    assert page.all("article")


def test_every_cell_failed(tmp_path):
    folder = make_run(tmp_path, ("Msfd",), {"MagneticTile": ("crack",)}, (0,), fail=[("Msfd", "MagneticTile", 0)])
    page = report(folder)
    assert "One training failed, none finished" in page.text
    assert "The loss became infinite" in page.text
    assert not page.all("article")
    assert not page.all("svg", class_="plot")


def test_lost_images_and_lost_predictions_do_not_stop_it(tmp_path):
    folder = make_run(tmp_path, data={"MagneticTile": ("crack",)}, seeds=(0,))
    for image in tmp_path.glob("images/**/*.png"):
        image.unlink()
    lost = folder.results()[0].cell
    (folder.cell(lost) / "predictions.npz").write_bytes(b"broken")
    page = report(folder)
    assert "The image file is gone." in page.text
    assert f"The predictions of {lost.model} with seed 0 cannot be read." in page.text


def test_names_from_outside_stay_text(tmp_path):
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"
    folder = make_folder(tmp_path / "a<b>&c")
    folder.write(folder.plan, f"models: [{nasty}]\n")
    name = nasty.replace("/", "|")  # a path's name
    paths, kinds, masks = make_images(tmp_path / "images", (name,), good=3, bad=2)
    kept = see(paths, masks, kinds, 1.0, 0)
    kinds = [kind.replace(name, nasty) for kind in kinds]
    cell = make_cell(nasty, nasty)
    result = judge(cell, replace(kept, kinds=kinds), 1.0)
    missing = result.missing | {"image_F1": nasty}
    metrics = {key: value for key, value in result.metrics.items() if key != "image_F1"}
    made = dict.fromkeys(("date", "version", "processor"), nasty)
    save(
        folder, replace(result, missing=missing, metrics=metrics, notes=[nasty], made=made), replace(kept, kinds=kinds)
    )
    failed = make_cell(nasty, nasty, 1)
    add(folder, failed)
    folder.fail(failed, nasty)
    page = report(folder)
    assert len(page.all("script")) == 1
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert page.text.count("{{ 7 * 7 }}") > 10
    assert {article["data-kind"] for article in page.all("article")} == {"good", nasty}


def test_the_number_of_images_can_be_chosen(tmp_path):
    folder = make_run(tmp_path, data={"MagneticTile": ("crack",)}, seeds=(0,), good=10, bad=10)
    parts = [a["data-part"].split() for a in report(folder, "--images", "2").all("article")]
    assert [sum(part in own for own in parts) for part in ("miss", "alarm", "random")] == [2, 2, 2]
    assert not report(folder, "--images", "0").all("article")


def test_errors_are_one_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is not the folder of a benchmark: give the --output"):
        main([str(tmp_path)])
    folder = make_folder(tmp_path)
    folder.set_cells([make_cell()])
    with pytest.raises(DataError, match=r"Nothing has finished in .* yet: wait"):
        main([str(tmp_path)])
    save(folder, make_result(make_cell()))
    with pytest.raises(ConfigurationError, match="--images -1 is negative: give 0"):
        main([str(tmp_path), "--images", "-1"])
    with pytest.raises(DataError, match=r"Cannot write .*: give another file with --output"):
        main([str(tmp_path), "--output", str(tmp_path / "no" / "report.html")])
    path = folder.cell(make_cell()) / "result.json"
    for damaged in ("{", "[]", json.dumps({"cell": {}})):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"cannot be read .*: remove its cell's folder") as error:
            main([str(tmp_path)])
        assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob(".*.html"))


def test_test_images_without_finite_scores(tmp_path):
    folder = make_folder(tmp_path)
    paths, kinds, masks = make_images(tmp_path / "images", ("crack",), good=2, bad=2)
    kept = see(paths, masks, kinds, 1.0, 0)
    save(
        folder, make_result(make_cell()), replace(kept, scores=np.full(4, np.nan, np.float32), maps=kept.maps * np.nan)
    )
    assert "No score is a finite number." in report(folder).text


def test_a_model_without_maps(tmp_path):
    folder = make_folder(tmp_path)
    paths, kinds, masks = make_images(tmp_path / "images", ("crack",), good=4, bad=3)
    kept = see(paths, masks, kinds, 1.0, 0)
    cell = make_cell("Ganomaly")
    result = judge(cell, kept, 1.0)
    reasons = dict.fromkeys(("pixel_AUROC", "PRO", "pixel_F1"), "The model gives no anomaly maps.")
    metrics = {name: value for name, value in result.metrics.items() if name not in reasons}
    curves = {"roc": result.curves["roc"]}
    bare = replace(kept, maps=np.empty((7, 0, 0), np.float32))
    calibration = replace(result.calibration, pixel=None)
    save(folder, replace(result, metrics=metrics, missing=reasons, curves=curves, calibration=calibration), bare)
    page = report(folder)
    assert "This model gives no anomaly maps." in page.text
    assert "Ganomaly: The model gives no anomaly maps." in page.text  # in the place of the PRO curve
    assert "no calibrated pixel threshold" not in page.text
    assert page.all("article")
