"""A made-up run folder: textures with bright spots, and models that see them more or less well.

``python tests/unit/report/fake_run.py FOLDER`` writes a larger one, to look at.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from anomalib_mixedteacher.benchmark.result import GOOD, Calibration, Cell, KeptPredictions, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.errors import ConfigurationError

SKILL = {"MixedTeacher": 1.6, "Msfd": 2.4, "Mkd": 0.9, "Stfpm": 1.2, "Patchcore": 2.0}
DATA = {"SyntheticTextures/weave": ("hole", "stain", "thread"), "MagneticTile": ("blowhole", "crack")}
NO_MASKS = "The data set has no masks."
NO_DEFECTS = "The test images hold no defect."
NO_GOOD = "The test images hold no good one."


def make_cell(model="Msfd", data="MagneticTile", seed=0, **changed) -> Cell:
    category = data.split("/")[-1]
    values = {"teacher_weights": "random", "image_size": 128, "max_epochs": 10, "batch": 8, "alarm_rate": 0.05}
    values |= {"group": data} | changed
    return Cell(model, model, {}, data, data.split("/")[0], {"category": category}, seed, **values)


def make_result(cell: Cell, **changed) -> Result:
    """A result without any figure, unless one is given."""
    values = {
        "metrics": {},
        "missing": {},
        "notes": [],
        "calibration": Calibration(0.5, 0.5, 30, 0.05),
        "alarms": {},
        "curves": {},
        "costs": {},
        "made": {"date": "2026-11-22T01:00:00+00:00", "version": "0.1.0", "processor": "a processor"},
    }
    return Result(cell, **(values | changed))


def make_folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.write(folder.plan, "data: [SyntheticTextures/weave, MagneticTile]\nseeds: [0, 1]\n")
    return folder


def add(folder: RunFolder, *cells: Cell) -> None:
    """Enter cells into the folder's index, behind the others."""
    try:
        known = [result.cell for result in folder.results()] + [failure.cell for failure in folder.failures()]
        known += folder.unfinished().values()
    except ConfigurationError:
        known = []
    folder.set_cells([*known, *(cell for cell in cells if cell not in known)])


def save(folder: RunFolder, result: Result, kept: KeptPredictions | None = None) -> None:
    add(folder, result.cell)
    nothing = KeptPredictions([], [], np.empty(0, np.float32), np.empty((0, 8, 8)), np.empty((0, 8, 8), bool))
    folder.save(result, kept or nothing)


def make_images(folder: Path, kinds, good=10, bad=4, side=96, depth=8, masks=True):
    """Write images; give their paths, kinds and masks."""
    rng = np.random.default_rng(len(kinds))
    paths, names, truths = [], [], []
    rows, columns = np.mgrid[:side, :side]
    for kind in [GOOD] * good + [kind for kind in kinds for _ in range(bad)]:
        period = 5 + 2 * len(kinds)
        image = 120 + 25 * np.sin(2 * np.pi * rows / period) * np.sin(2 * np.pi * (columns + 2) / period)
        image += gaussian_filter(rng.normal(0, 22, (side, side)), 1)
        mask = np.zeros((side, side), bool)
        if kind != GOOD:
            row, column = rng.integers(side // 4, 3 * side // 4, 2)
            turn = rng.uniform(0, np.pi)
            length, width = side * np.array([0.2, 0.025] if kind in {"thread", "crack"} else [0.08, 0.07])
            along = (rows - row) * np.sin(turn) + (columns - column) * np.cos(turn)
            across = (rows - row) * np.cos(turn) - (columns - column) * np.sin(turn)
            mask = (along / length) ** 2 + (across / width) ** 2 < 1
            image += rng.uniform(15, 60) * gaussian_filter(mask.astype(float), 1)
        path = folder / kind / f"{len(paths):03}.{'png' if depth == 8 else 'tiff'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = image.clip(0, 255)
        Image.fromarray((values * 257).astype(np.uint16) if depth == 16 else values.astype(np.uint8)).save(path)
        paths.append(str(path))
        names.append(kind)
        truths.append(mask & masks)
    return paths, names, np.array(truths)


def see(paths, masks, kinds, skill, seed) -> KeptPredictions:
    """The predictions of a model with a skill, by a map that is high where the defect is."""
    rng = np.random.default_rng([seed, int(100 * skill)])
    maps, side = [], masks.shape[1] // 2
    for mask, kind in zip(masks, kinds, strict=True):
        hidden = mask if mask.any() or kind == GOOD else np.pad(np.ones((8, 8), bool), (20, len(mask) - 28))
        signal = gaussian_filter(np.asarray(Image.fromarray(hidden).resize((side, side))).astype(float), side / 27)
        noise = gaussian_filter(rng.normal(0, 1, (side, side)), side / 20) * side / 12
        maps.append(0.3 + 0.05 * noise + 0.2 * skill * rng.uniform(0.2, 1) * signal)
    maps = np.array(maps)
    nearest = Image.Resampling.NEAREST
    small = np.array([np.asarray(Image.fromarray(mask).resize((side, side), nearest)) for mask in masks])
    return KeptPredictions(paths, kinds, maps.max((1, 2)).astype(np.float32), maps.astype(np.float16), small)


def judge(cell: Cell, kept: KeptPredictions, skill: float) -> Result:
    """A result whose AUROC, ROC curve and alarms are those of the scores; its other figures are made up."""
    good = np.array([kind == GOOD for kind in kept.kinds])
    scores = kept.scores.astype(float)
    threshold = float(np.quantile(scores[good], 0.95, method="higher")) if good.any() else float(np.median(scores))
    metrics, missing, curves = {}, {}, {}
    if good.any() and not good.all():
        metrics["image_AUROC"] = float((scores[~good][:, None] > scores[good][None]).mean())
        metrics["image_AP"] = 0.95 * metrics["image_AUROC"]
        steps = [float("inf"), *sorted(scores, reverse=True)]
        curves["roc"] = [(float((scores[good] >= s).mean()), float((scores[~good] >= s).mean())) for s in steps]
    else:
        reason = NO_DEFECTS if good.any() else NO_GOOD
        missing |= dict.fromkeys(("image_AUROC", "image_AP"), reason)
    if kept.masks.any():
        metrics |= {"pixel_AUROC": min(0.99, 0.7 + 0.1 * skill + 0.004 * cell.seed), "PRO": 0.4 + 0.2 * skill}
        curves["pro"] = [(x, min(1.0, skill * 2 * x**0.5)) for x in np.linspace(0, 0.3, 40).tolist()]
    else:
        missing |= dict.fromkeys(("pixel_AUROC", "PRO"), NO_MASKS)
    alarms = {}
    for kind in dict.fromkeys(kept.kinds):
        chosen = scores[np.array(kept.kinds) == kind]
        alarms[kind] = (int((chosen >= threshold).sum()), len(chosen))
    for name, of, reason in (("false_alarm_rate", good, NO_GOOD), ("found_rate", ~good, NO_DEFECTS)):
        if of.any():
            metrics[name] = float((scores[of] >= threshold).mean())
        else:
            missing[name] = reason
    costs = {"train_seconds": 60 / skill + cell.seed, "wall_seconds": 80 / skill + cell.seed}
    calibration = Calibration(threshold, 0.45, 30, 0.05)
    return make_result(
        cell, metrics=metrics, missing=missing, alarms=alarms, curves=curves, costs=costs, calibration=calibration
    )


def make_run(
    path: Path,
    models=("MixedTeacher", "Msfd", "Stfpm"),
    data=DATA,
    seeds=(0, 1),
    fail=(),
    wait=(),
    speed=True,
    **images,
) -> RunFolder:
    """Write a run folder.

    ``fail`` names (model, data, seed) that failed, ``wait`` those not trained yet; ``images`` are for make_images.
    """
    folder = make_folder(path)
    speeds = {}
    for name, kinds in data.items():
        paths, names, masks = make_images(path / "images" / name, kinds, **images)
        for model in models:
            for seed in seeds:
                cell = make_cell(model, name, seed)
                if (model, name, seed) in wait:
                    add(folder, cell)
                    continue
                if (model, name, seed) in fail:
                    add(folder, cell)
                    folder.fail(cell, "The loss became infinite: train with a smaller learning rate.")
                    continue
                skill = SKILL.get(model, 1.5)
                kept = see(paths, masks, names, skill, seed)
                save(folder, judge(cell, kept, skill), kept)
                if seed == seeds[0]:
                    speeds[cell.name] = {"latency_ms": 8 * skill, "images_per_second": 220 / skill}
    if speed:
        folder.write(folder.speed, speeds)
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    failed = [("Mkd", "MagneticTile", 1)]
    make_run(target, tuple(SKILL), fail=failed, good=60, bad=25, side=256)
