"""Figures against scikit-learn and plain loops, and what is said where one cannot be had."""

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data.utils import DirType
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalib_mixedteacher.benchmark.result import Calibration, KeptPredictions
from anomalib_mixedteacher.benchmark.scores import (
    METRICS,
    Predictions,
    compute_metrics,
    count_alarms,
    image_kinds,
    keep,
    notes,
    region_overlap,
    summarize,
)

CALIBRATION = Calibration(image=0.5, pixel=0.6, images=30, alarm_rate=0.05)
KINDS = ["good"] * 9 + ["hole"] * 4 + ["crack"] * 3


def predictions(kinds=KINDS, masks=True, side=16, scale=1.0):
    """Scores and maps that see defects more or less well, far beyond [0, 1] where the scale is large."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([int(kind != "good") for kind in kinds])
    truth = torch.zeros(len(kinds), side, side, dtype=torch.int)
    for index in range(len(kinds)):
        if labels[index] and masks:
            truth[index, 1 + index % 8 : 4 + index % 8, 2:6] = 1
            truth[index, 9:11, 9 : 10 + index % 5] = 1
    maps = torch.rand(len(kinds), side, side, generator=generator) + 0.5 * truth
    scores = torch.rand(len(kinds), generator=generator) + 0.3 * labels
    return Predictions(scale * scores, scale * maps, labels, truth, list(kinds))


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-6])
def test_ranking_figures_are_scikit_learns_at_any_scale(scale):
    p = predictions(scale=scale)
    found = summarize(p)
    scores, labels = p.scores.double().numpy(), p.labels.numpy()
    assert found["image_AUROC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["image_AP"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    pixels = roc_auc_score(p.masks.flatten().numpy(), p.maps.double().flatten().numpy())
    assert found["pixel_AUROC"] == pytest.approx(pixels, abs=1e-6)


def test_region_overlap_is_the_mean_over_regions_up_to_thirty_percent_false_positives():
    p = predictions()
    value, rates, overlaps = region_overlap(p)
    maps, masks = p.maps.double().numpy(), p.masks.numpy().astype(bool)
    regions = []
    for index, mask in enumerate(masks):
        parts, count = label(mask, np.ones((3, 3)))
        regions += [maps[index][parts == part] for part in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.sort(np.unique(maps))[::-1]:
        rate = (maps[~masks] >= threshold).mean()
        points.append((rate, np.mean([(region >= threshold).mean() for region in regions])))
    x, y = np.array(points).T
    inside = x <= 0.3
    area = np.trapezoid(np.append(y[inside], np.interp(0.3, x, y)), np.append(x[inside], 0.3))
    assert value == pytest.approx(area / 0.3, abs=2e-3)
    assert float(rates[-1]) == pytest.approx(0.3)
    assert len(rates) == len(overlaps)


def test_alarms_are_counted_from_the_threshold_on():
    p = predictions()
    p.scores[0] = 0.5  # at the threshold
    metrics, missing, curves = compute_metrics(p, CALIBRATION)
    assert (set(metrics), missing) == (set(METRICS), {})
    above = p.scores >= 0.5
    assert metrics["false_alarm_rate"] == pytest.approx(float(above[p.labels == 0].float().mean()))
    assert metrics["found_rate"] == pytest.approx(float(above[p.labels == 1].float().mean()))
    alarms = count_alarms(p, CALIBRATION)
    assert list(alarms) == ["good", "crack", "hole"]
    assert [count for _, count in alarms.values()] == [9, 3, 4]
    x, y = zip(*curves["roc"], strict=True)
    assert np.trapezoid(y, x) == pytest.approx(metrics["image_AUROC"], abs=1e-3)


@pytest.mark.parametrize(
    ("kinds", "masks", "calibration", "lacking", "reason"),
    [
        (KINDS, False, CALIBRATION, {"pixel_AUROC", "PRO"}, "The test set has no masks."),
        (["good"] * 5, True, CALIBRATION, set(METRICS) - {"false_alarm_rate"}, "The test set has no defective images."),
        (["hole"] * 5, True, CALIBRATION, {*METRICS[:2], "false_alarm_rate"}, "The test set has no good images."),
        (KINDS, True, Calibration(None, None, 0, 0.05), set(METRICS[-2:]), "There were no good validation images"),
    ],
)
def test_what_cannot_be_computed_says_why(kinds, masks, calibration, lacking, reason):
    metrics, missing, _ = compute_metrics(predictions(kinds, masks), calibration)
    assert set(missing) == lacking
    assert set(metrics) == set(METRICS) - lacking
    assert all(text.startswith(reason) for text in missing.values())


def test_a_model_without_maps_lacks_the_figures_of_pixels_alone():
    p = predictions()
    p.maps = torch.empty(len(KINDS), 0, 0)
    metrics, missing, curves = compute_metrics(p, CALIBRATION)
    assert missing == dict.fromkeys(["pixel_AUROC", "PRO"], "The model gives no anomaly maps.")
    assert (set(metrics), set(curves)) == (set(METRICS) - set(missing), {"roc"})


def test_images_of_several_sizes_lack_the_figures_of_pixels_alone():
    p = predictions()
    p.maps = p.masks = torch.empty(len(KINDS), 0, 0)
    metrics, missing, _ = compute_metrics(p, CALIBRATION)
    assert missing == dict.fromkeys(["pixel_AUROC", "PRO"], "The test images have several sizes.")
    assert set(metrics) == set(METRICS) - set(missing)
    assert notes(p, CALIBRATION, 0.05) == notes(predictions(masks=False), CALIBRATION, 0.05)
    assert keep(p, KINDS, torch.tensor([0.25]), with_maps=True).masks.shape == (len(KINDS), 0, 0)


def test_notes_name_few_defects_missing_masks_and_a_budget_out_of_reach():
    p = predictions(["good"] * 5 + ["hole"] * 12)
    assert notes(p, CALIBRATION, 0.05) == []
    p.masks[5:8] = 0
    bare, budget = notes(p, Calibration(0.5, 0.6, 9, 0.1), 0.05)
    assert bare.startswith("3 of 12 defective images have no mask")
    assert budget.startswith("9 good validation images allow a budget of 0.100, not 0.05")
    assert notes(predictions(["good", "hole"]), CALIBRATION, 0.05)[0].startswith("Only 1 defective image in the test")


@pytest.mark.parametrize(
    ("labels", "kinds"),
    [
        ([DirType.NORMAL, DirType.NORMAL_TEST, DirType.ABNORMAL], ["good", "good", "nep"]),
        (["ok", "ok", "ko"], ["good", "good", "ko"]),
        (["good", "good", "hole"], ["good", "good", "hole"]),
    ],
    ids=["Folder", "BTech", "MVTecAD"],
)
def test_good_images_are_good_in_every_data_set_and_a_folder_names_its_defects(labels, kinds):
    paths = ["train/good/0.png", "test/good/0.png", "test/nep/0.png"]
    assert image_kinds(pd.DataFrame({"label": labels, "label_index": [0, 0, 1], "image_path": paths})) == kinds


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_kept_predictions_are_small_and_come_back(tmp_path, scale):
    p = predictions(["good", "hole"], side=200, scale=scale)
    kept = keep(p, ["a.png", "b.png"], torch.tensor([0.25]), with_maps=True)
    kept.save(tmp_path / "kept.npz")
    again = KeptPredictions.load(tmp_path / "kept.npz")
    assert (again.paths, again.kinds) == (["a.png", "b.png"], ["good", "hole"])
    assert again.maps.shape == again.masks.shape == (2, 128, 128)
    assert float(again.maps.mean()) == pytest.approx(float(p.maps.mean()), rel=0.01)
    np.testing.assert_allclose(again.maps, kept.maps, rtol=1e-3)
    np.testing.assert_array_equal(again.scores, p.scores.numpy())
    np.testing.assert_array_equal(again.good_scores, [0.25])
    assert again.masks.any(axis=(1, 2)).tolist() == [False, True]
    assert keep(p, ["a.png", "b.png"], torch.empty(0), with_maps=False).maps.shape == (2, 0, 0)
