"""What tiles find on whole strips that resized strips hide, and whether their seams show.

    python benchmarks/full_resolution.py --output runs/full_resolution
    python benchmarks/full_resolution.py --output runs/full_resolution --seeds 0 --epochs 10

Trains MixedTeacher in tiles and on strips that are resized to 256 x 256, with the same teachers, seeds and good
strips, and judges the raw scores and maps of the test strips; in tiles with standardize=position, and without its
profile, which is standardize=tile. Each training adds its figures to the output folder; the same command goes on where
it stopped, and writes the table, table.md.

Smallest defect: pixels of the strip in the smallest region of a mask in which the map is higher than on any good strip.
Seam: median of the columns' means on good strips where tiles meet, as a part of that elsewhere.
Shift: correlation of the maps of a good strip and of the same strip without its first half tile.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning
import numpy as np
import torch
from anomalib.data import Folder
from numpy.typing import NDArray
from scipy import ndimage

from anomalib_mixedteacher import MixedTeacher
from anomalib_mixedteacher.benchmark.scores import Predictions, predict, region_overlap, summarize
from mixedteacher_edge.tiling import Tiling
from teachers import train

TILE = 256
PIXELS = 4096 * 256  # of a strip
WAYS = ("squeezed", "tiles", "tiles, position")


def load_data(root: Path) -> Folder:
    """Load the strips; a fifth of the good training strips is held out."""
    kinds = sorted(path.name for path in (root / "ground_truth").iterdir())
    return Folder(
        name=root.name,
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{kind}" for kind in kinds],
        mask_dir=[f"ground_truth/{kind}" for kind in kinds],
        train_batch_size=1,
        eval_batch_size=1,
        num_workers=0,
        val_split_mode="from_train",
        val_split_ratio=0.2,
    )


def measure(tiled: bool, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train once, and judge the test strips."""
    lightning.seed_everything(seed, workers=True, verbose=False)
    datamodule = load_data(options.data)
    arguments: dict[str, Any] = {"tile_size": TILE, "tiles_per_image": options.tiles, "standardize": "position"}
    model = MixedTeacher(**arguments if tiled else {})
    trainer, seconds = train(model, datamodule, options.epochs)
    known = {"seed": seed, "epochs": options.epochs, "train_seconds": round(seconds, 1)}
    trainer.save_checkpoint(options.output / f"{'tiles' if tiled else 'squeezed'}-{seed}.ckpt")
    if not tiled:
        return [{"way": WAYS[0], **known, **judge(predict(model, datamodule))}]
    rows = [{"way": WAYS[2], **known, **judge(predict(model, datamodule)), **seams(model, datamodule)}]
    model.model.good_profile = model.model.good_profile[:0]
    return [*rows, {"way": WAYS[1], **known, **judge(predict(model, datamodule)), **seams(model, datamodule)}]


def judge(predictions: Predictions) -> dict[str, float]:
    """Compute the figures of a way."""
    figures = summarize(predictions)
    figures["PRO"] = region_overlap(predictions)[0]
    figures |= {f"{kind} image_AUROC": of_kind(predictions, kind) for kind in sorted(set(predictions.kinds) - {"good"})}
    figures["smallest defect"] = smallest_defect(predictions)
    return {name: round(float(value), 4) for name, value in figures.items()}


def of_kind(p: Predictions, kind: str) -> float:
    """Give the image AUROC of one kind of defect."""
    chosen = torch.tensor([of in {kind, "good"} for of in p.kinds])
    kinds = [of for of in p.kinds if of in {kind, "good"}]
    return summarize(Predictions(p.scores[chosen], p.maps[chosen], p.labels[chosen], p.masks[chosen], kinds))[
        "image_AUROC"
    ]


def smallest_defect(p: Predictions) -> float:
    """Give the pixels of the smallest region that stands out above every good strip; NaN if none does."""
    highest = p.maps[p.labels == 0].amax()
    found = []
    for anomaly_map, mask in zip(p.maps.numpy(), p.masks.numpy(), strict=True):
        regions, count = ndimage.label(mask, np.ones((3, 3)))
        tops = ndimage.maximum(anomaly_map, regions, range(1, count + 1))
        areas = ndimage.sum(mask, regions, range(1, count + 1))
        found += [area * PIXELS / mask.size for top, area in zip(tops, areas, strict=True) if top > highest]
    return min(found, default=float("nan"))


@torch.no_grad()
def seams(model: Any, datamodule: Folder) -> dict[str, float]:
    """Look for the seams of tiles on the good strips of all splits."""
    tiling, maps, correlations, left = Tiling(TILE), [], [], TILE // 2
    for split in ("train", "val", "test"):
        for batch in getattr(datamodule, f"{split}_dataloader")():
            if not bool(batch.gt_label):
                images = model.pre_processor.transform(batch.image)
                maps.append(model.model.joined_map(images[0]).repeat(4, 1))
                profile = model.model.good_profile
                model.model.good_profile = profile[left // 4 :]
                part = model.model.joined_map(images[0][..., left:]).repeat(4, 1)
                model.model.good_profile = profile
                correlations.append(float(np.corrcoef(maps[-1][:, left:].ravel(), part.ravel())[0, 1]))
    mean: NDArray[Any] = np.mean(maps, axis=0)
    joints = np.array([start + tiling.overlap // 2 for start in tiling.starts(mean.shape[1])[1:]])
    at = np.zeros(mean.shape[1], bool)
    at[(joints[:, None] + np.arange(-16, 16)).ravel()] = True
    return {
        "good strips": len(maps),
        "seam": round(float(np.median(mean.mean(0)[at]) / np.median(mean.mean(0)[~at])), 4),
        "shift": round(fmean(correlations), 4),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Make a Markdown table, the mean over seeds."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in {"way", "seed", "epochs"}))
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"| mean of {seeds} seed{'s' * (seeds > 1)} | " + " | ".join(WAYS) + " |",
        "| --- |" + " --- |" * len(WAYS),
    ]
    for name in names:
        cells = []
        for way in WAYS:
            values = [row[name] for row in rows if row["way"] == way and name in row]
            cells.append(
                f"{fmean(values):.3f}" if values and max(values) < 5 else f"{fmean(values):.0f}" if values else "-"
            )
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/fabric_strips/fabric_03"), help="the strips")
    parser.add_argument("--output", type=Path, required=True, help="folder for figures, checkpoints and table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--tiles", type=int, default=8, help="tiles of each strip in a step")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "figures.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if row["epochs"] == options.epochs]
    for seed in options.seeds:
        for tiled in (False, True):
            if not any((row["way"] != WAYS[0], row["seed"]) == (tiled, seed) for row in rows):
                found = measure(tiled, seed, options)
                lines = "".join(json.dumps(row) + "\n" for row in found)
                with path.open("a") as file:
                    file.write(lines)
                print(lines, end="", flush=True)
                rows += found
    (options.output / "table.md").write_text(f"### Strips\n\n{table(rows)}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
