"""The whole report: complete for every run, self-contained, and safe against names from outside."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from anomalib_mixedteacher.benchmark.result import Calibration
from anomalib_mixedteacher.errors import ConfigurationError, DataError
from anomalib_mixedteacher.report.command import main

from .fake_run import add, judge, make_cell, make_folder, make_images, make_result, make_run, save, see

SECTIONS = ["verdict", "tradeoff", "curves", "scores", "defects", "gallery", "provenance"]
VOID = {"meta", "link", "img"}
ONE = {"data": {"MagneticTile": ("crack",)}, "seeds": (0,)}


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
    assert main([str(folder.path), *arguments]) == 0
    page = Page((folder.path / "report.html").read_text(encoding="utf-8"))
    assert [section["id"] for section in page.all("section")] == SECTIONS
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {a["href"].removeprefix("#") for a in page.all("a")} <= set(names)
    assert all("alt" in image for image in page.all("img"))
    assert all(heading.get("scope") for heading in page.all("th"))
    return page


def test_a_run_with_everything(tmp_path, capsys):
    folder = make_run(tmp_path, fail=[("Stfpm", "MagneticTile", 1)])
    page = report(folder)
    assert "report.html" in capsys.readouterr().out
    ranked = [row["data-value"] for row in page.all("th", scope="row") if "data-value" in row]
    assert ranked == ["Msfd", "MixedTeacher", "Stfpm"] * 3
    assert "The loss became infinite: train with a smaller learning rate." in page.text
    assert len(page.all("article")) == len(page.all("div", class_="panels")) > 0
    assert {a["data-data"] for a in page.all("article")} == {"SyntheticTextures/weave", "MagneticTile"}
    # the trade-off, two kinds of curves and three histograms of each data set
    assert len(page.all("img", class_="plot")) == 1 + 2 * (2 + 3)
    assert folder.results()[0].cell.key in page.text
    assert folder.plan.read_text().split()[0] in page.text
    assert f"mixedteacher benchmark {tmp_path}/benchmark.yaml --output {tmp_path}-again" in page.text


def test_best_values_are_marked_unless_none_is_better(tmp_path):
    folder = make_folder(tmp_path)
    for model, auroc, rate in (("A", 0.90001, 0.0), ("B", 0.90002, 0.1), ("C", 0.8, 0.2)):
        metrics = {"image_AUROC": auroc, "false_alarm_rate": rate}
        save(folder, make_result(make_cell(model), metrics=metrics, costs={"train_seconds": 100 * auroc}))
    page = report(folder)
    # equal as written is equally good; less time is better; no false alarm is no merit of a model that finds nothing
    marked = [text for text, after in zip(page.texts, page.texts[1:], strict=False) if after == " (best)"]
    assert marked == ["0.900", "0.900", "80"]


def test_an_unfinished_run_says_so(tmp_path):
    page = report(make_run(tmp_path, ("Msfd", "Stfpm"), wait=[("Stfpm", "MagneticTile", seed) for seed in (0, 1)]))
    assert "6 of 8 trainings finished, 0 failed, 2 are still to come." in page.text
    assert "Stfpm, all figures: The training on MagneticTile with seed 1 is to come." in page.text


def test_it_loads_nothing(tmp_path):
    page = report(make_run(tmp_path, **ONE))
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    sources = [a[key] for _, a in page.elements for key in ("src", "href", "srcset", "action") if key in a]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest", (tmp_path / "report.html").read_text())


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ({"masks": False}, "The data set has no masks."),
        ({"bad": 0}, "The test images hold no defect."),
        ({"good": 0}, "The test images hold no good one."),
        ({"bad": 1}, "1/1)"),
        ({"depth": 16}, "Msfd"),
    ],
    ids=["no masks", "no defects", "no good images", "one defect", "16 bit"],
)
def test_degenerate_data_sets_have_a_complete_report(tmp_path, images, sentence):
    page = report(make_run(tmp_path, ("Msfd", "Stfpm"), **ONE, **images))
    assert sentence in page.text
    assert page.all("article")
    assert "The image file" not in page.text


def test_one_model_without_threshold_and_speed(tmp_path):
    folder = make_run(tmp_path, ("Msfd",), speed=False, **ONE)
    (result,) = folder.results()
    free = replace(result, calibration=Calibration(None, None, 0, 0.05), alarms={}, metrics={}, missing={}, curves={})
    (folder.cell(result.cell) / "result.json").write_text(free.to_json())
    page = report(folder)
    assert "No model has a threshold." in page.text
    assert "The speed of exports was not measured." in page.text
    assert "no model has both an AUROC and a latency" in page.text
    assert page.all("article")


def test_every_cell_failed(tmp_path):
    page = report(make_run(tmp_path, ("Msfd",), fail=[("Msfd", "MagneticTile", 0)], **ONE))
    assert "0 of 1 trainings finished, 1 failed" in page.text
    assert "The loss became infinite" in page.text
    assert not page.all("article")
    assert not page.all("img", class_="plot")


def test_lost_images_do_not_stop_it(tmp_path):
    folder = make_run(tmp_path, **ONE)
    for image in tmp_path.glob("images/**/*.png"):
        image.unlink()
    assert "The image file is gone or cannot be read." in report(folder).text


def test_names_from_outside_stay_text(tmp_path):
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}$x_$"
    folder = make_folder(tmp_path / "a<b>&c")
    folder.write(folder.plan, f"models: [{nasty}]\n")
    name = nasty.replace("/", "|")  # a path's name
    paths, kinds, masks = make_images(tmp_path / "images", (name,), good=3, bad=2)
    kept = see(paths, masks, kinds, 1.0, 0)
    kept = replace(kept, kinds=[kind.replace(name, nasty) for kind in kinds])
    result = judge(make_cell(nasty, nasty), kept, 1.0)
    made = dict.fromkeys(("date", "version", "processor"), nasty)
    save(folder, replace(result, missing={"latency_ms": nasty}, notes=[nasty], made=made), kept)
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
    folder = make_run(tmp_path, **ONE, good=10, bad=10)
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


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "anomalib_mixedteacher.report.page", raising=False)
    with pytest.raises(ConfigurationError, match=r"needs jinja2, .*: pip install 'anomalib-mixedteacher\[report\]'"):
        main([str(tmp_path)])


@pytest.mark.parametrize("lacking", ["scores", "maps"])
def test_predictions_that_lack_something_do_not_stop_it(tmp_path, lacking):
    folder = make_folder(tmp_path)
    paths, kinds, masks = make_images(tmp_path / "images", ("crack",), good=2, bad=2)
    kept = see(paths, masks, kinds, 1.0, 0)
    if lacking == "scores":
        kept = replace(kept, scores=np.full(4, np.nan, np.float32), maps=kept.maps * np.nan)
    else:
        kept = replace(kept, maps=np.empty((4, 0, 0), np.float32))
    save(folder, make_result(make_cell(), missing={"PRO": "The model gives no anomaly maps."}), kept)
    page = report(folder)
    expected = "No score is a finite number." if lacking == "scores" else "No anomaly map was kept."
    assert expected in page.text
    assert "Msfd: The model gives no anomaly maps." in page.text  # in the place of the PRO curve
