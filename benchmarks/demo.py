"""From nothing to a detector in minutes: train, test, export, judge, on a texture drawn on the spot.

Run ``python benchmarks/demo.py --help``.
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from anomalib_mixedteacher.errors import MixedTeacherError

SEED = 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything the demo writes")
    parser.add_argument("--category", default="weave", help="texture to train on")
    parser.add_argument("--teacher-weights", default="packaged", help="packaged, imagenet, random or a path")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=64, help="good images to train on")
    settings = parser.parse_args()
    if settings.epochs < 1:
        parser.error(f"--epochs is {settings.epochs}: give 1 or more.")
    try:
        run(settings)
    except MixedTeacherError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def run(settings: argparse.Namespace) -> None:
    """Train, test, export, and judge the test images with the exported model."""
    print("Loading anomalib ...", flush=True)
    warnings.filterwarnings("ignore")  # other packages' notes to developers
    import lightning
    from anomalib.engine import Engine

    from anomalib_mixedteacher import MixedTeacher, SyntheticTextures
    from anomalib_mixedteacher.training_output import TrainingOutput
    from mixedteacher_edge import EdgeDetector

    for name in ("anomalib", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    start = time.perf_counter()
    lightning.seed_everything(SEED, verbose=False)
    output, size = settings.output.resolve(), settings.image_size
    data = SyntheticTextures(
        root=output / "data", category=settings.category, image_size=size, num_train=settings.images, seed=SEED
    )
    model = MixedTeacher(settings.teacher_weights, image_size=(size, size))
    engine = Engine(
        callbacks=[TrainingOutput()],
        default_root_dir=output / "results",
        max_epochs=settings.epochs,
        check_val_every_n_epoch=settings.epochs,  # the last epoch alone sets thresholds, and is what is kept
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    engine.fit(model=model, datamodule=data)
    (metrics,) = engine.test(model=model, datamodule=data, verbose=False)
    exported: Any = engine.export(model, "openvino", output, onnx_kwargs={"verbose": False})

    samples = data.test_data.samples
    items = EdgeDetector(exported, cache=None).stream(samples.image_path)
    labels = [item.prediction is not None and item.prediction.label for item in items]
    alarms = {kind: [a for a, k in zip(labels, samples.label_index, strict=True) if k == kind] for kind in (0, 1)}
    print(f"\nMixedTeacher, {settings.category}, {size} px, {settings.teacher_weights} teachers")
    print(f"  AUROC        image {metrics['image_AUROC']:.3f}, pixel {metrics['pixel_AUROC']:.3f}")
    print(f"  OpenVINO     {sum(alarms[0])} of {len(alarms[0])} good images are alarms, ", end="")
    print(f"{sum(alarms[1])} of {len(alarms[1])} defects are found")
    print(f"  time         {time.perf_counter() - start:.0f} seconds")
    print(f"  heat maps    {Path(engine.trainer.default_root_dir) / 'images'}")
    print(f"  checkpoint   {engine.best_model_path}")
    print(f"  exported     {exported}")
    print(f"  your images  mixedteacher predict {exported} IMAGES --overlays OVERLAYS")


if __name__ == "__main__":
    raise SystemExit(main())
