"""Whether MixedTeacher stays finite in bfloat16, trained and judged, set by set.

    python benchmarks/precision.py --epochs 2 > runs/precision.md

Each line tells the values that are not finite, of losses, statistics, scores and maps, and the image AUROC of the same
model judged in either precision.
"""

import argparse
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
from anomalib.engine import Engine

from anomalib_mixedteacher import MixedTeacher
from anomalib_mixedteacher.benchmark.scores import predict, summarize
from teachers import SETS, load_data


def train(name: str, data: Path, epochs: int) -> tuple[int, float, float]:
    """Train in bfloat16; count what is not finite, and give the image AUROC in bfloat16 and in float32."""
    lightning.seed_everything(0, workers=True, verbose=False)
    datamodule, model = load_data(name, data), MixedTeacher()
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with TemporaryDirectory() as folder:
        engine = Engine(max_epochs=epochs, precision="bf16-mixed", default_root_dir=folder, **options)
        engine.fit(model=model, datamodule=datamodule)
    values = [*engine.trainer.callback_metrics.values(), *model.state_dict().values()]
    with torch.autocast("cpu", torch.bfloat16):
        low = predict(model, datamodule)
    full = summarize(predict(model, datamodule))["image_AUROC"]
    lost = sum(int((~torch.isfinite(value)).sum()) for value in [*values, low.scores, low.maps])
    return lost, math.nan if lost else summarize(low)["image_AUROC"], full


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the sets")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    print("| set | not finite | image AUROC, bfloat16 | image AUROC, float32 |\n| --- | --- | --- | --- |")
    for name in options.sets:
        lost, low, full = train(name, options.data, options.epochs)
        print(f"| {name} | {lost} | {low:.4f} | {full:.4f} |", flush=True)


if __name__ == "__main__":
    main()
