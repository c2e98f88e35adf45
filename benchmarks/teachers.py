"""What MixedTeacher finds with each source of teacher weights, set by set.

    python benchmarks/teachers.py --output runs/teachers.jsonl
    python benchmarks/teachers.py --output runs/teachers.jsonl --sets fabric_01 paper --seeds 0 --sources packaged

Each training adds a line to the output. The same command goes on where it stopped and ends with the table, also beside
the output (.md). A line with other settings (epochs, architecture, size) is left aside. A folder of
weights without an EfficientNet-Lite0 gets the packaged one, which is ImageNet's own.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import lightning
from anomalib.data import AnomalibDataModule, Folder
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from lightning.pytorch import Trainer
from safetensors.torch import save_file

from anomalib_mixedteacher import MagneticTile, MixedTeacher
from anomalib_mixedteacher.benchmark.scores import predict, region_overlap, summarize
from anomalib_mixedteacher.checkpoint import load_model
from anomalib_mixedteacher.components.teacher import FeatureExtractor
from anomalib_mixedteacher.components.training_data import check_training_images
from anomalib_mixedteacher.components.weights import load_weights
from anomalib_mixedteacher.errors import MixedTeacherError

OTHERS = {"fabric_01": "fabric/fabric_01", "fabric_03": "fabric/fabric_03", "commutator": "commutator"}
OTHERS |= {"magnetic_tile": "magnetic_tile"}
PAPER = {f"paper_{name}": f"paper/paper_{name}" for name in ("bdp01", "brg01", "brg02", "btn01", "flr01", "fvn01")}
SETS = OTHERS | PAPER
SETTINGS = ("epochs", "architecture", "efficientnet", "efficientnet_blocks", "image_size")
METRICS = {"image_AUROC": "image", "pixel_AUROC": "pixel", "PRO": "PRO"}


def load_data(name: str, folder: Path) -> AnomalibDataModule:
    """Load a set; a fifth of the good training images is held out, as the official recipe has it."""
    options: dict[str, Any] = {"train_batch_size": 8, "eval_batch_size": 8, "num_workers": 0}
    options |= {"val_split_mode": "from_train", "val_split_ratio": 0.2}
    root = folder / SETS[name]
    if name == "magnetic_tile":
        return MagneticTile(root=root, **options)
    kinds = sorted(path.name for path in (root / "ground_truth").iterdir())
    return Folder(
        name=name,
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{kind}" for kind in kinds],
        mask_dir=[f"ground_truth/{kind}" for kind in kinds],
        **options,
    )


def measure(
    name: str, seed: int, weights: str, options: argparse.Namespace, checkpoint: Path | None
) -> dict[str, float]:
    """Train once, keep the checkpoint, and judge the raw scores and maps of the test set."""
    lightning.seed_everything(seed, workers=True, verbose=False)
    datamodule = load_data(name, options.data)
    model = MixedTeacher(
        teacher_weights=weights,
        architecture=options.architecture,
        efficientnet=options.efficientnet,
        efficientnet_blocks=options.efficientnet_blocks,
        image_size=(options.image_size, options.image_size),
    )
    trainer, seconds = train(model, datamodule, options.epochs)
    if checkpoint:
        trainer.save_checkpoint(checkpoint)
    predictions = predict(model, datamodule)
    figures = summarize(predictions)
    figures["PRO"] = region_overlap(predictions)[0]
    return {**{metric: round(figures[metric], 4) for metric in METRICS}, "train_seconds": round(seconds, 1)}


def train(model: AnomalibModule, datamodule: AnomalibDataModule, epochs: int) -> tuple[Trainer, float]:
    """Train quietly, validating once at the end; give the trainer and the seconds."""
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        engine = Engine(
            max_epochs=epochs,
            check_val_every_n_epoch=epochs,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        engine.fit(model=model, datamodule=datamodule)
    return engine.trainer, time.perf_counter() - start


def restore(path: Path, data: Path) -> tuple[AnomalibModule, AnomalibDataModule]:
    """Restore what was trained, and its set as it was split, by the checkpoint's name."""
    name, seed = next(name for name in SETS if path.name.startswith(f"{name}-")), int(path.name.split("-")[1])
    lightning.seed_everything(seed, workers=True, verbose=False)
    datamodule, model = load_data(name, data), load_model(path)
    datamodule.setup()  # behind the model, as in training: both draw from one generator
    if check_training_images(datamodule.train_data) != model.training_data:
        sys.exit(f"{path} was trained on other images of {name}: train it anew.")
    return model, datamodule


def complete(source: str, folder: Path) -> str:
    """Give a folder of weights the packaged EfficientNet-Lite0 in a copy, unless it has one."""
    given, name = Path(source), "tf_efficientnet_lite0"
    if not given.is_dir() or (given / f"{name}.safetensors").exists():
        return source
    for file in given.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    state = load_weights(FeatureExtractor(name, ["blocks.6"]), "packaged")
    save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    return str(folder)


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the lines of these settings."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if all(row[key] == value for key, value in settings.items())]


def table(rows: Sequence[dict[str, Any]], sets: Sequence[str], sources: Sequence[str]) -> str:
    """Make a Markdown table: a line a set or mean, three columns a source; a dash where a training is missing."""
    paper, others = [name for name in sets if name.startswith("paper")], [name for name in sets if name in OTHERS]
    groups = {name: [name] for name in others} | {f"paper, mean of {len(paper)}": paper}
    groups |= {f"without paper, mean of {len(others)}": others}
    groups |= {f"mean of {len(sets)}": list(sets)} if paper else {}
    heads = [f"{Path(source).name}: {name}" for source in sources for name in METRICS.values()]
    lines = ["| set | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for label, group in groups.items():
        cells = []
        for source, metric in product(sources, METRICS):
            found = [[row[metric] for row in rows if (row["set"], row["source"]) == (name, source)] for name in group]
            cells.append(f"{fmean(map(fmean, found)):.3f}" if found and all(found) else "-")
        lines += [f"| {label} | " + " | ".join(cells) + " |"] if group else []
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the sets")
    parser.add_argument("--output", type=Path, required=True, help="lines of results, added to")
    parser.add_argument("--sets", nargs="+", choices=[*SETS, "paper"], default=list(SETS), help="paper: all six")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--sources", nargs="+", default=["random", "packaged", "../shared/weights/imagenet"])
    parser.add_argument("--checkpoints", type=Path, help="folder that keeps what was trained")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--architecture", choices=("fast", "paper"), default="fast")
    parser.add_argument("--efficientnet", help="timm name of the second teacher (default: the architecture's)")
    parser.add_argument("--efficientnet-blocks", nargs="+", type=int, help="its blocks (default: likewise)")
    parser.add_argument("--image-size", type=int, default=256)
    options = parser.parse_args()
    sets = [name for name in SETS if name in options.sets or (name in PAPER and "paper" in options.sets)]
    settings = {name: getattr(options, name) for name in SETTINGS}
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # a page for each training
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["set"], row["seed"], row["source"]) for row in read(options.output, settings)}
    for seed, name, source in product(options.seeds, sets, options.sources):
        if (name, seed, source) in done:
            continue
        label = f"{name}-{seed}-{Path(source).name}-{options.architecture}.ckpt"
        checkpoint = options.checkpoints / label if options.checkpoints else None
        try:
            with TemporaryDirectory() as folder:
                figures = measure(name, seed, complete(source, Path(folder)), options, checkpoint)
        except MixedTeacherError as error:
            sys.exit(f"{name}, {source}: {error}")
        row = {"set": name, "seed": seed, "source": source, **settings, **figures}
        with options.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    found = table(read(options.output, settings), sets, options.sources)
    options.output.with_suffix(".md").write_text(f"### Sources\n\n{found}\n")
    print("\n" + found)


if __name__ == "__main__":
    main()
