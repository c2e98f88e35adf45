"""From nothing to a detector in minutes: train, measure, export, predict, on textures made on the spot.

Run ``python -m anomalib_mixedteacher.demo --help``.
"""

import argparse
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
    parser.add_argument("--teacher-weights", default="texture", help="texture, random, imagenet or a path")
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


def _validation_interval(epochs: int) -> int:
    """Give the largest number of epochs up to 5 after which the last one is validated too: that one is exported."""
    return next(interval for interval in (5, 4, 3, 2, 1) if epochs % interval == 0)


def run(settings: argparse.Namespace) -> None:
    """Train, test, export and predict.

    Args:
        settings: The parsed command line.
    """
    print("Loading anomalib ...", flush=True)
    warnings.filterwarnings("ignore")  # other packages' notes to developers
    import lightning
    from anomalib.engine import Engine

    from anomalib_mixedteacher import MixedTeacher, SyntheticTextures
    from anomalib_mixedteacher.edge import EdgeDetector

    start = time.perf_counter()
    lightning.seed_everything(SEED)
    output = settings.output.resolve()
    datamodule = SyntheticTextures(
        root=output / "data",
        category=settings.category,
        image_size=settings.image_size,
        num_train=settings.images,
        seed=SEED,
    )
    size = (settings.image_size, settings.image_size)
    model = MixedTeacher(settings.teacher_weights, pre_processor=MixedTeacher.configure_pre_processor(size))
    engine = Engine(
        default_root_dir=output / "results",
        max_epochs=settings.epochs,
        check_val_every_n_epoch=_validation_interval(settings.epochs),
        accelerator="cpu",
        enable_model_summary=False,
    )
    engine.fit(model=model, datamodule=datamodule)
    (metrics,) = engine.test(model=model, datamodule=datamodule, verbose=False)
    predictions: Any = engine.predict(
        model=model, dataloaders=datamodule.test_dataloader(), ckpt_path=engine.best_model_path
    )
    labels = [
        (bool(t), bool(p)) for batch in predictions for t, p in zip(batch.gt_label, batch.pred_label, strict=True)
    ]
    exported: Any = engine.export(
        model=model, export_type="openvino", export_root=output, onnx_kwargs={"verbose": False}
    )

    # an image of the same texture that neither training nor the threshold has seen
    unseen = Path(datamodule.test_data.samples.image_path.iloc[-1])
    result = EdgeDetector(exported, cache=None).predict(unseen)

    good = [bool(predicted) for truth, predicted in labels if not truth]
    bad = [bool(predicted) for truth, predicted in labels if truth]
    print(
        f"\nMixedTeacher, {settings.category} texture, {settings.image_size} px, teachers: {settings.teacher_weights}"
    )
    print(f"  image AUROC   {metrics['image_AUROC']:.3f}     image F1  {metrics['image_F1Score']:.3f}")
    print(f"  pixel AUROC   {metrics['pixel_AUROC']:.3f}     pixel F1  {metrics['pixel_F1Score']:.3f}")
    print(f"  false alarms  {sum(good)} of {len(good)} good images; found {sum(bad)} of {len(bad)} defects")
    verdict = "defect" if result.label else "good"
    print(f"  OpenVINO on {unseen.parent.name}/{unseen.name}: score {result.score:.3f}, {verdict}")
    print(f"  {time.perf_counter() - start:.0f} seconds\n")
    results = Path(engine.trainer.default_root_dir)
    print(f"  heat maps   {results / 'images'}")
    print(f"  checkpoint  {engine.best_model_path}")
    print(f"  OpenVINO    {exported}")
    print(f"  data        {output / 'data'}")
    print(f"\nJudge your own images:  mixedteacher predict {exported} IMAGES --overlays OVERLAYS")


if __name__ == "__main__":
    raise SystemExit(main())
