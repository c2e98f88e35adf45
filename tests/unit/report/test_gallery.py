"""Which images the gallery shows, and how they are drawn."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anomalib_mixedteacher.benchmark.result import Calibration, KeptPredictions
from anomalib_mixedteacher.report.gallery import (
    ALARM,
    CONTOUR_COLOUR,
    MASK_COLOUR,
    MISS,
    RANDOM,
    Kept,
    Scale,
    images_by_default,
    overlay,
    rows,
    select,
    thumbnail,
)

GREY = np.full((160, 160, 3), 128, np.uint8)


def kept(scores, kinds, masks=None, paths=None) -> KeptPredictions:
    """Predictions of images ``0.png``, ``1.png`` and so on."""
    paths = paths or [f"{index}.png" for index in range(len(scores))]
    maps = np.broadcast_to(np.float32(scores)[:, None, None], (len(scores), 8, 8))
    masks = np.zeros((len(scores), 8, 8), bool) if masks is None else masks
    return KeptPredictions(paths, kinds, np.float32(scores), maps, masks)


def named(chosen, part):
    return [path for path, parts in chosen.items() if part in parts]


def test_models_take_turns_with_their_worst_images():
    kinds = ["hole"] * 4 + ["good"] * 3
    first = kept([0.1, 0.2, 0.3, 0.9, 0.5, 0.4, 0.6], kinds)
    second = kept([30.0, 10.0, 40.0, 20.0, 60.0, 70.0, 50.0], kinds)
    chosen = select({"A": first, "B": second}, 3)
    # A: 0, 1, 2, 3; B: 1, 3, 0, 2. A takes 0, B takes 1, A takes 2 since 1 is taken
    assert named(chosen, MISS) == ["0.png", "1.png", "2.png"]
    assert named(chosen, ALARM) == ["6.png", "5.png", "4.png"]


def test_random_images_are_the_same_each_time_and_may_have_other_parts():
    predictions = {"A": kept(np.linspace(0, 1, 20), ["good"] * 10 + ["hole"] * 10)}
    assert select(predictions, 5) == select(predictions, 5)
    assert len(named(select(predictions, 5), RANDOM)) == 5
    everything = select(predictions, 100)
    assert set(named(everything, RANDOM)) == set(everything) == {f"{index}.png" for index in range(20)}
    assert everything["0.png"] == [ALARM, RANDOM]


@pytest.mark.parametrize(("kinds", "lacking"), [(["good"] * 3, MISS), (["hole"] * 3, ALARM)])
def test_one_class_alone_lacks_one_part(kinds, lacking):
    chosen = select({"A": kept([0.1, 0.2, 0.3], kinds)}, 2)
    assert named(chosen, lacking) == []
    assert len(named(chosen, RANDOM)) == 2


def test_the_default_number_of_images_is_bounded():
    assert images_by_default(3, 2) == 12
    assert images_by_default(8, 15) * 3 * 15 * 10 <= 1500
    assert images_by_default(100, 100) == 1


def test_thumbnails_keep_range_and_shape(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 160)[None], 80, axis=0).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.tiff")
    small = thumbnail(tmp_path / "ramp.tiff")
    assert small.shape == (80, 160, 3)
    np.testing.assert_allclose(small[0, :, 0], np.linspace(0, 255, 160), atol=1)
    Image.new("L", (2000, 40)).save(tmp_path / "strip.png")
    assert thumbnail(tmp_path / "strip.png").shape == (32, 160, 3)


def test_the_threshold_has_the_middle_colour_whatever_the_range():
    scale = Scale.of(np.linspace(0, 1, 10000, dtype=np.float32).reshape(4, 50, 50), 0.25)
    values = np.float32([scale.low, 0.25, scale.high, -5, 5, np.nan])
    np.testing.assert_allclose(scale.heat(values), [0, 0.5, 1, 0, 1, 0], atol=1e-6)
    assert (scale.low, scale.high) == pytest.approx((0.01, 0.999), abs=1e-3)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 7.0, -3.0, None])
@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_flat_maps_have_colours(threshold, value):
    scale = Scale.of(np.full((2, 4, 4), value, np.float32), threshold)
    heat = scale.heat(np.float32([0.4, 0.5, 0.6]))
    assert np.isfinite(heat).all()
    assert (np.diff(heat) >= 0).all()
    if threshold is not None:
        assert scale.heat(np.float32([threshold]))[0] == pytest.approx(0.5)


def test_contours_are_where_map_and_mask_end():
    values, mask = np.zeros((80, 80), np.float32), np.zeros((160, 160), bool)
    values[:, 40:] = 1
    mask[20:40, 20:40] = True
    drawn = overlay(GREY, values, mask, Scale(0, 0.5, 1))
    white, magenta = (drawn == CONTOUR_COLOUR).all(-1), (drawn == MASK_COLOUR).all(-1)
    assert white[80, 79:82].any()
    assert not white[:, :78].any()
    assert magenta[20, 20:40].all()
    assert magenta.sum() == 4 * 20 - 4
    assert drawn[80, 120, 0] > drawn[80, 10, 0]  # red where it is high
    assert not (overlay(GREY, values, mask, Scale(0, None, 1)) == CONTOUR_COLOUR).all(-1).any()


def test_rows_judge_every_model_and_survive_lost_files(tmp_path):
    paths = [str(tmp_path / "hole" / "a.png"), str(tmp_path / "good" / "b.png")]
    (tmp_path / "good").mkdir()
    Image.new("L", (40, 40)).save(paths[1])
    both = kept([0.4, 0.5], ["hole", "good"], paths=paths)
    predictions = {
        "A": both,
        "B": kept([3.0], ["hole"], np.ones((1, 8, 8), bool), paths[:1]),
        "C": replace(both, maps=np.empty((2, 0, 0), np.float32)),
    }
    thresholds = {"A": 0.5, "B": 2.0, "C": None}  # a score at the threshold is an alarm
    calibrations = {model: Calibration(value, value, 9, 0.1) for model, value in thresholds.items()}
    made = {row.name: row for row in rows(Kept(0, predictions, calibrations, []), 5)}
    hole, good = made["hole/a.png"], made["good/b.png"]
    assert [panel.title for panel in hole.panels] == ["image", "mask", "A", "B", "C"]
    assert [panel.verdict for panel in hole.panels] == ["", "", "✗ missed", "✓ found", ""]
    assert [panel.verdict for panel in good.panels] == ["", "", "✗ false alarm", "", ""]
    assert (hole.panels[2].score, good.panels[2].score) == ("score 0.4 < 0.5", "score 0.5 ≥ 0.5")
    assert [bool(panel.uri) for panel in hole.panels] == [False, False, True, True, False]
    assert [bool(panel.uri) for panel in good.panels] == [True, False, True, False, False]
    assert "gone" in hole.panels[0].text
    assert "no prediction" in good.panels[3].text
    assert good.panels[4].text == "No anomaly map was kept."
    assert good.size == (160, 160)
