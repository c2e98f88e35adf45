"""Published figures: each has a source and is as it was published; measured ones are put beside the right ones."""

import re
from dataclasses import replace
from statistics import mean, stdev

import pytest
from anomalib_mixedteacher.benchmark.comparison import to_markdown
from anomalib_mixedteacher.benchmark.published import Figure, Published, read_published

from anomalib_mixedteacher.benchmark.result import Calibration, Cell, Result
from anomalib_mixedteacher.benchmark.run_folder import Failure
from anomalib_mixedteacher.benchmark.tables import COLUMNS

TEXTURES = ["carpet", "grid", "leather", "tile", "wood"]
# anomalib's table of image / pixel AUROC, written down once more
ANOMALIB = """
Stfpm resnet18                      .954/.986 .982/.988 .989/.991 .949/.946 .961/.949
Stfpm wide_resnet50_2               .957/.987 .977/.989 .981/.980 .976/.966 .939/.956
Patchcore wide_resnet50_2           .984/.988 .959/.968 1.00/.991 1.00/.961 .989/.934
Patchcore resnet18                  .970/.986 .947/.955 1.00/.990 .997/.943 .997/.933
Padim wide_resnet50_2               .995/.991 .942/.970 1.00/.993 .974/.955 .993/.957
ReverseDistillation wide_resnet50_2 .984/.988 1.00/.992 1.00/.991 1.00/.954 .997/.947
"""

PUBLISHED = read_published()


def test_every_figure_says_where_it_is_from_and_how_it_was_measured():
    metrics = {column.key for column in COLUMNS}
    for figure in PUBLISHED.figures:
        assert len(figure.source) > 10, figure
        assert len(figure.protocol) > 20, figure
        assert figure.metric in metrics, figure
        assert figure.metric == "images_per_second" or 0.5 < figure.value <= 1, figure
    keys = [(f.model, str(f.arguments), f.data, f.category, f.metric, f.source) for f in PUBLISHED.figures]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("line", ANOMALIB.strip().splitlines())
def test_anomalibs_tables_are_as_published(line):
    model, backbone, *pairs = line.split()
    for category, pair in zip(TEXTURES, pairs, strict=True):
        found = {
            figure.metric: figure.value
            for figure in PUBLISHED.find(f"anomalib.models.{model}", {"backbone": backbone}, "MVTecAD", category)
            if "anomalib" in figure.source
        }
        image, pixel = map(float, pair.split("/"))
        assert found == {"image_AUROC": image, "pixel_AUROC": pixel}


def test_published_means_are_those_of_their_categories():
    assert PUBLISHED.means == {"textures": TEXTURES}
    tables = {}
    for f in PUBLISHED.figures:
        tables.setdefault((f.model, str(f.arguments), f.metric, f.source), {})[f.category] = f.value
    checked = 0
    for values in tables.values():
        if {"textures", *TEXTURES} <= values.keys():
            checked += 1
            # published to three digits, one of them cut off rather than rounded
            assert values["textures"] == pytest.approx(mean(values[name] for name in TEXTURES), abs=1e-3)
    assert checked == 11


def test_what_is_known_of_mixed_teacher_is_two_figures_that_can_be_compared():
    known = {
        (f.data, f.category): f.value for f in PUBLISHED.figures if f.model == "MixedTeacher" and not f.not_comparable
    }
    assert known == {("MVTecAD", "textures"): 0.998, ("BTech", "02"): 0.97}


def test_a_figure_holds_for_the_arguments_it_was_published_with():
    assert not PUBLISHED.find("Patchcore", {}, "MVTecAD", "wood")
    figures = {
        backbone: {
            f.value for f in PUBLISHED.find("Patchcore", {"backbone": backbone, "layers": []}, "MVTecAD", "tile")
        }
        for backbone in ("resnet18", "wide_resnet50_2", "resnet50")
    }
    assert figures == {"resnet18": {0.997, 0.943}, "wide_resnet50_2": {1.0, 0.961}, "resnet50": set()}


CELL = Cell(
    "Ours", "MixedTeacher", {}, "MVTecAD/wood", "MVTecAD", {"category": "wood"}, 0, "imagenet", 256, 100, 8, 0.05
)


def result(auroc, category="wood", seed=0, **changed):
    cell = replace(
        CELL, data=f"MVTecAD/{category}", data_args={"root": "x", "category": category}, seed=seed, **changed
    )
    metrics = {"image_AUROC": auroc, "pixel_AUROC": 0.5}
    made = {"version": "1.2.3", "processor": "a processor"}
    return Result(cell, metrics, {}, [], Calibration(0.5, 0.5, 20, 0.05), {}, {}, {}, made)


def figure(category, value, **changed):
    kept = {"source": "A paper", "protocol": "As it was.", "not_comparable": None} | changed
    metric = kept.pop("metric", "image_AUROC")
    return Figure("MixedTeacher", {}, "MVTecAD", category, metric, value, **kept)


def rows(markdown, title):
    """The cells of a table, by its heading."""
    (section,) = re.findall(rf"^### {title}\n\n(.*?)(?:\n\n|\Z)", markdown, re.DOTALL | re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]


def compare(results, figures=(), failures=(), speed=()):
    return to_markdown(
        results, failures, dict(speed), Published(figures, {"both": ["tile", "wood"]}, {"BTech": "Mind the wood."})
    )


def test_measured_stands_beside_published_with_spread_and_difference():
    markdown = compare([result(0.9), result(0.8, seed=1)], [figure("wood", 0.975), figure("tile", 0.1)])
    assert rows(markdown, "MVTecAD/wood") == [["Ours", "image AUROC", "0.850 ± 0.071", "0.975", "-0.125", "1"]]
    assert "1. A paper. As it was.\n" in markdown
    assert "seeds 0, 1" in markdown
    assert "version 1.2.3 on a processor" in markdown
    assert "not imagenet" not in markdown


def test_a_mean_takes_whole_seeds_only():
    aurocs = {("tile", 0): 0.6, ("wood", 0): 0.8, ("tile", 1): 0.7, ("wood", 1): 0.9, ("tile", 2): 0.1}
    results = [result(auroc, category, seed) for (category, seed), auroc in aurocs.items()]
    other = result(0.3, "wood", model="Other")
    markdown = compare([*results, other], [figure("both", 0.7)])
    ((model, _, measured, published, difference, _),) = rows(markdown, "Mean of tile, wood")
    assert model == "Ours"  # the other one has no tile
    assert measured == f"{mean([0.7, 0.8]):.3f} ± {stdev([0.7, 0.8]):.3f}"
    assert (published, difference) == ("0.700", "+0.050")
    assert "Mean of" not in compare([other])


def test_what_is_not_known_or_not_comparable_is_not_subtracted():
    figures = [
        figure("wood", 0.9, metric="pixel_AUROC", not_comparable="another metric", source="B paper"),
        figure("wood", 108.1, metric="images_per_second"),
        figure("wood", 0.8, metric="PRO"),
    ]
    known = result(0.9)
    unknown = result(0.9, class_path="Msfd", model="Msfd")
    markdown = compare([known, unknown], figures, speed={known.cell.name: {"images_per_second": 20.04}})
    assert rows(markdown, "MVTecAD/wood") == [
        ["Ours", "pixel AUROC", "0.500", "0.900", "not comparable", "1"],
        ["Ours", "images/s", "20.0", "108.1", "-88.1", "2"],
        ["Ours", "PRO", "-", "0.800", "-", "2"],
        ["Msfd", "image AUROC", "0.900", "unknown", "-", "-"],
    ]
    assert "1. B paper. As it was. Not comparable: another metric." in markdown


def test_readers_are_told_of_other_teachers_and_failures():
    markdown = compare([result(0.9, teacher_weights="texture")], failures=[Failure(CELL, "It broke.")])
    assert "weights are texture, not imagenet" in markdown
    assert "Ours on MVTecAD/wood, seed 0, failed: It broke." in markdown
    assert "there is no spread" in markdown
    assert "Mind the wood" not in markdown
    assert "- Mind the wood.\n" in compare([result(0.9, data_class="anomalib.data.BTech")])
