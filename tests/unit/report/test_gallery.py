"""Which images the gallery shows, and how they are drawn."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anomalib_mixedteacher.benchmark.result import Calibration
from anomalib_mixedteacher.benchmark.run_folder import KeptPredictions
from anomalib_mixedteacher.errors import DataError
from anomalib_mixedteacher.report.gallery import images_by_default, rows
from anomalib_mixedteacher.report.selection import ALARM, MISS, RANDOM, select
from anomalib_mixedteacher.report.thumbnails import MASK_COLOUR, Scale, overlay, read_thumbnail

GREY = np.full((160, 160, 3), 128, np.uint8)


def kept(scores, kinds, masks=None, paths=None) -> KeptPredictions:
    """Predictions of images ``0.png``, ``1.png`` and so on."""
    paths = paths or [f"{index}.png" for index in range(len(scores))]
    maps = np.broadcast_to(np.float16(scores)[:, None, None], (len(scores), 8, 8))
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


def test_images_of_one_model_only_are_chosen_too():
    chosen = select({"A": kept([0.1], ["hole"]), "B": kept([0.1], ["hole"], paths=["other.png"])}, 5)
    assert named(chosen, MISS) == ["0.png", "other.png"]


def test_the_default_number_of_images_is_bounded():
    assert images_by_default(3, 2) == 12
    assert images_by_default(8, 15) * 3 * 15 * 10 <= 1500
    assert images_by_default(100, 100) == 1


def test_sixteen_bit_images_keep_their_range(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 160)[None], 80, axis=0).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.tiff")
    small = read_thumbnail(tmp_path / "ramp.tiff")
    assert small.shape == (80, 160, 3)
    np.testing.assert_allclose(small[0, :, 0], np.linspace(0, 255, 160), atol=1)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_modes_are_read(tmp_path, mode):
    Image.new("RGB", (64, 64), (90, 90, 90)).convert(mode).save(tmp_path / "image.png")
    assert np.abs(read_thumbnail(tmp_path / "image.png").astype(int) - 90).max() <= 1


def test_a_narrow_strip_keeps_a_side_that_can_be_drawn(tmp_path):
    Image.new("RGB", (2000, 40)).save(tmp_path / "strip.png")
    assert read_thumbnail(tmp_path / "strip.png").shape == (32, 160, 3)


def test_the_threshold_has_the_middle_colour_whatever_the_range():
    maps = np.linspace(0, 1, 10000, dtype=np.float16).reshape(4, 50, 50)
    scale = Scale.of(maps, 0.25)
    values = np.float32([scale.low, 0.25, scale.high, -5, 5, np.nan])
    np.testing.assert_allclose(scale.heat(values), [0, 0.5, 1, 0, 1, 0], atol=1e-6)
    assert scale.low == pytest.approx(0.01, abs=1e-3)
    assert scale.high == pytest.approx(0.999, abs=1e-3)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 7.0, -3.0, None])
@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_flat_maps_have_colours(threshold, value):
    scale = Scale.of(np.full((2, 4, 4), value, np.float16), threshold)
    heat = scale.heat(np.float32([0.4, 0.5, 0.6]))
    assert np.isfinite(heat).all()
    assert (np.diff(heat) >= 0).all()
    if threshold is not None:
        assert scale.heat(np.float32([threshold]))[0] == pytest.approx(0.5)


def test_contours_are_where_map_and_mask_end():
    values, mask = np.zeros((80, 80), np.float16), np.zeros((80, 80), bool)
    values[:, 40:] = 1
    mask[10:20, 10:20] = True
    drawn = overlay(GREY, values, mask, Scale(0, 0.5, 1))
    white, magenta = (drawn == 255).all(-1), (drawn == MASK_COLOUR).all(-1)
    assert white[80, 79:82].any()
    assert not white[:, :78].any()
    assert magenta[20, 20:40].all()
    assert magenta.sum() == 4 * 20 - 4  # a square of 20 x 20 pixels in the thumbnail
    assert drawn[80, 10, 2] > drawn[80, 10, 0]  # blue where it is low
    assert drawn[80, 120, 0] > drawn[80, 120, 2]  # red where it is high


def test_no_threshold_no_white_line():
    values = np.zeros((80, 80), np.float16)
    values[:, 40:] = 1
    drawn = overlay(GREY, values, np.zeros((80, 80), bool), Scale(0, None, 1))
    assert not (drawn == 255).all(-1).any()


def test_rows_judge_every_model_and_survive_lost_files(tmp_path):
    paths = [str(tmp_path / "hole" / "a.png"), str(tmp_path / "good" / "b.png")]
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "b.png").write_text("no image")
    both = kept([0.4, 0.8], ["hole", "good"], paths=paths)
    only = kept([3.0], ["hole"], paths=paths[:1])
    free = replace(both, scores=np.float32([1, 2]))
    calibrations = {
        "A": Calibration(0.5, 0.5, 9, 0.1),
        "B": Calibration(2.0, 2.0, 9, 0.1),
        "C": Calibration(None, None, 0, 0.1),
    }
    made = {
        row.name: row for row in rows("x", ["A", "B", "C", "D"], {"A": both, "B": only, "C": free}, calibrations, 5)
    }
    hole, good = made["hole/a.png"], made["good/b.png"]
    assert [panel.verdict for panel in hole.panels] == ["", "", "missed", "found", ""]
    assert [panel.verdict for panel in good.panels] == ["", "", "false alarm", "", ""]
    assert hole.summary == "1 of 2 models misses it"
    assert good.summary == "1 of 1 model raises a false alarm"
    assert hole.panels[0].instead == "The image file is gone."
    assert good.panels[0].instead == "The image file cannot be read."
    assert (hole.panels[1].instead, good.panels[1].instead) == ("No mask.", "Good: nothing to mark.")
    assert "no prediction" in good.panels[3].instead
    assert hole.panels[3].score == "score 3.00 > 2.00"
    assert all(panel.picture.uri.startswith("data:image/webp;base64,") for panel in hole.panels[2:5])


def test_a_lost_image_is_an_error_of_the_reader(tmp_path):
    with pytest.raises(DataError, match="There is no image"):
        read_thumbnail(tmp_path / "lost.png")


def test_a_model_without_maps_is_judged_without_pictures(tmp_path):
    paths = [str(tmp_path / "hole" / "a.png")]
    drawn = kept([0.4], ["hole"], np.ones((1, 8, 8), bool), paths)
    bare = replace(drawn, maps=np.empty((1, 0, 0), np.float32))
    calibrations = {"A": Calibration(0.5, None, 9, 0.1), "B": Calibration(0.5, 0.5, 9, 0.1)}
    (row,) = rows("x", ["A", "B"], {"A": bare, "B": drawn}, calibrations, 5)
    _, mask, without, with_map = row.panels
    assert mask.picture
    assert (without.picture, without.instead) == (None, "This model gives no anomaly maps.")
    assert (without.score, without.verdict) == ("score 0.400 ≤ 0.500", "missed")
    assert with_map.picture
