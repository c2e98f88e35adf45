"""Post-processor: region scores by brute force, normalisation, buffers; nothing of training."""

import copy
import logging

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from scipy import ndimage

from anomalib_mixedteacher.calibration.post_processor import NormalCalibratedPostProcessor, region_scores
from anomalib_mixedteacher.errors import CalibrationError, ConfigurationError


def calibrated(scores, maps=None, paths=None, **arguments):
    processor = NormalCalibratedPostProcessor(**arguments)
    processor.gather(torch.as_tensor(scores), maps, paths)
    processor.calibrate()
    return processor


def largest_region(mask):
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return max((int((labels == index).sum()) for index in range(1, count + 1)), default=0)


@pytest.mark.parametrize("area", [1, 4, 9, 30])
def test_region_score_is_the_highest_level_with_a_region_of_the_area(area):
    rng = np.random.default_rng(area)
    maps = np.stack([ndimage.gaussian_filter(rng.normal(size=(24, 24)), 1.5) for _ in range(6)]).astype(np.float32)
    for found, single in zip(region_scores(torch.from_numpy(maps), area).numpy(), maps, strict=True):
        assert largest_region(single >= found) >= area
        assert largest_region(single > found) < area


def test_region_of_one_pixel_is_the_maximum():
    maps = torch.rand(3, 1, 16, 16)
    assert torch.equal(region_scores(maps, 1), maps.amax(dim=(1, 2, 3)))


def test_an_area_beyond_the_map_is_refused():
    assert region_scores(torch.ones(2, 1, 4, 6), 24).tolist() == [1, 1]
    with pytest.raises(
        ConfigurationError, match="min_area is 25 pixels, and the anomaly map has 4 x 6: give a smaller"
    ):
        region_scores(torch.ones(2, 1, 4, 6), 25)


def test_thresholds_are_the_conformal_ones():
    maps = torch.arange(1.0, 20.0)[:, None, None].expand(19, 8, 8)
    processor = calibrated(torch.arange(1.0, 20.0), maps, alarm_rate=0.1)
    assert processor.image_threshold == 18
    assert processor.pixel_threshold == 18


def test_normalisation_is_monotone_and_a_half_at_the_threshold():
    processor = calibrated(torch.arange(1.0, 20.0), alarm_rate=0.1)
    scores = torch.tensor([-5.0, 0.0, 10.0, 18.0, 18.001, 19.0, 1e3, 1e6])
    result = processor(InferenceBatch(pred_score=scores, anomaly_map=scores.reshape(1, 2, 4)))
    normalized = result.pred_score
    assert (normalized[1:] > normalized[:-1]).all()
    assert normalized[3] == 0.5
    assert normalized[2] == 0.25  # the median
    assert ((normalized >= 0) & (normalized <= 1)).all()
    assert result.pred_label.tolist() == (scores > 18).tolist()
    assert result.pred_mask.flatten().tolist() == (scores > 18).tolist()  # the pixel threshold follows the image's


def test_constant_scores():
    processor = calibrated(torch.full((30,), 0.7))
    result = processor(InferenceBatch(pred_score=torch.tensor([0.6, 0.7, 0.8]), anomaly_map=torch.zeros(3, 2, 2)))
    assert result.pred_label.tolist() == [False, False, True]
    assert result.pred_score[1] == 0.5


def test_too_few_images_give_the_smallest_reachable_budget_and_say_so(caplog):
    with caplog.at_level(logging.WARNING):
        processor = calibrated([1.0, 3.0, 2.0], alarm_rate=0.05)
    assert processor.image_threshold == 3
    assert "3 good images are too few for an alarm rate of 0.05" in caplog.text
    assert "good for 0.25." in caplog.text


def test_tail_fit_is_labelled(caplog):
    scores = torch.from_numpy(np.random.default_rng(0).exponential(size=60))
    with caplog.at_level(logging.WARNING):
        processor = calibrated(scores, alarm_rate=0.001, tail_fit=True)
    assert processor.image_threshold > scores.max()
    assert "image threshold is an estimate from the tail of 60 scores" in caplog.text


def test_tail_fit_that_is_impossible_falls_back_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        processor = calibrated([1.0, 2.0, 3.0], alarm_rate=0.05, tail_fit=True)
    assert processor.image_threshold == 3
    assert "takes 32 good calibration images" in caplog.text


def test_calibrating_again_starts_afresh():
    processor = NormalCalibratedPostProcessor(alarm_rate=0.3)
    processor.gather(torch.tensor([1.0, float("nan")]), paths=["a", "b"])
    with pytest.raises(CalibrationError):
        processor.calibrate()
    processor.gather(torch.tensor([1.0, 2.0, 3.0]), paths=["c", "d", "e"])
    processor.calibrate()
    assert processor.image_scores.tolist() == [1, 2, 3]


def test_scores_can_be_written_after_inference_mode():
    with torch.inference_mode():
        processor = calibrated(torch.rand(5))
    processor.image_scores.mul_(2)


def test_a_defect_among_the_good_images_is_named(caplog):
    scores = torch.from_numpy(np.random.default_rng(0).normal(1.0, 0.1, size=40))
    scores[11] = 4.0
    with caplog.at_level(logging.WARNING):
        calibrated(scores, paths=[f"good/{index}.png" for index in range(40)])
    assert "good/11.png scores far above the other good images: look whether it has a defect" in caplog.text
    assert caplog.text.count("scores far above") == 1


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(CalibrationError, match="1 of 3 calibration scores are not finite"):
        calibrated([1.0, float("nan"), 2.0])


def test_state_with_any_number_of_scores_is_restored():
    processor = calibrated(torch.arange(1.0, 31.0), torch.rand(30, 8, 8), alarm_rate=0.1)
    other = NormalCalibratedPostProcessor()
    other.load_state_dict(copy.deepcopy(processor.state_dict()))
    other.load_checkpoint_config(processor.checkpoint_config())
    assert other.alarm_rate == 0.1
    raw = torch.tensor([0.0, 15.0, 29.5, 99.0])
    assert torch.equal(other.p_value(raw), processor.p_value(raw))
    for name in ("image_threshold", "pixel_threshold"):
        assert torch.equal(getattr(other, name), getattr(processor, name))


def test_p_values_and_labels_agree():
    processor = calibrated(torch.rand(99), alarm_rate=0.05)
    raw = torch.rand(200) * 1.2
    labels = processor(InferenceBatch(pred_score=raw, anomaly_map=None)).pred_label
    assert torch.equal(labels, processor.p_value(raw) <= 0.05 + 1e-12)


def test_p_value_before_calibration_is_refused():
    with pytest.raises(CalibrationError, match="no good images to calibrate on"):
        NormalCalibratedPostProcessor().p_value(torch.ones(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alarm_rate": 0}, CalibrationError, "An alarm rate of 0 makes no sense"),
        ({"min_area": 0}, ConfigurationError, "min_area must be 1 pixel or more, not 0"),
        ({"held_out": 1.0}, ConfigurationError, "held_out must be a share"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        NormalCalibratedPostProcessor(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"image_sensitivity": 0.7}, {"pixel_sensitivity": 0.2}, {"enable_normalization": False}]
)
def test_what_would_move_the_thresholds_off_the_budget_is_refused(arguments):
    with pytest.raises(ConfigurationError, match="would move the thresholds off the budget: set alarm_rate instead"):
        NormalCalibratedPostProcessor(**arguments)
