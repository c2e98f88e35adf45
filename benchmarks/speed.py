"""Latency of exported models side by side, timed in turn; INT8 beside FP32.

python benchmarks/speed.py --run RUN          # the models of a benchmark: fills in its table's columns of latency
python benchmarks/speed.py --models '[MixedTeacher, Stfpm, Patchcore, EfficientAd]' --output runs/speed
python benchmarks/speed.py --files '{A: a.xml, Stfpm: b.xml}'

Models are trained for one epoch, which speed does not depend on; EfficientAd, whose teacher would be downloaded, not at
all. Share of peak: multiply-adds a second over the rate of a large float32 matrix product on the same cores.
"""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino
import torch
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, EfficientAd
from jsonargparse import auto_cli

from anomalib_mixedteacher.benchmark.models import build, build_data
from anomalib_mixedteacher.benchmark.plan import short
from anomalib_mixedteacher.benchmark.result import Cell
from anomalib_mixedteacher.benchmark.run_folder import RunFolder
from anomalib_mixedteacher.benchmark.tables import REFERENCE, write_tables
from anomalib_mixedteacher.plugin import MODELS
from common import (
    Exported,
    compile_file,
    cores,
    count_macs,
    first_cells,
    interleave,
    latencies,
    machine,
    matrix_peak,
    random_image,
    read_static,
    table,
)

_ONNX: dict[str, Any] = {
    "verbose": False,
    "opset_version": 18,
    "dynamic_axes": {},
}  # one image at a time: with an open batch Patchcore takes batches of two


def main(
    run: Path | None = None,
    models: list[str | dict[str, Any]] | None = None,
    files: dict[str, Path] | None = None,
    output: Path = Path("runs/speed"),
    data: str = "SyntheticTextures",
    image_size: int = 256,
    teacher_weights: str = "packaged",
    int8: bool = True,
    repetitions: int = 50,
) -> None:
    """Print tables of latency, on one core and on all.

    Args:
        run: Folder of a benchmark.
        models: Models to be trained on the data, written as a benchmark's.
        files: Exported .xml files by name.
        output: Folder for the models' exports, which are kept, and the tables, table.md.
        data: A folder of images, or the class of a datamodule.
        image_size: Side of the images in pixels.
        teacher_weights: Where the teachers' weights come from.
        int8: Also measure this package's models in INT8.
        repetitions: Timed inferences of each.
    """
    if run is not None:
        measure_run(RunFolder(run), int8, repetitions)
        return
    cells = first_cells(models, data, image_size, teacher_weights) if models else []
    found = {name: (path, (image_size, image_size)) for name, path in (files or {}).items()}
    for cell in cells:
        found |= export(cell, output, int8)
    print(f"{image_size} x {image_size} pixels, batch 1, {repetitions} repetitions in turn, {machine()}\n")
    tables = [f"### {n} of {cores()} cores\n\n{speed_table(found, repetitions, n)}\n" for n in sorted({1, cores()})]
    print("\n".join(tables))
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text("\n".join(tables))


def measure_run(folder: RunFolder, int8: bool, repetitions: int) -> None:
    """Time the models of a benchmark, those of one data set together, and write its latencies and tables."""
    results = folder.results()
    cells = [result.cell for result in results if result.cell.seed == results[0].cell.seed]  # seeds are as fast
    timed: dict[tuple[tuple[str, object], ...], dict[str, dict[str, float]]] = {}
    speed: dict[str, dict[str, float]] = {}
    for data in dict.fromkeys(cell.data for cell in cells):
        chosen = {cell.model: cell for cell in cells if cell.data == data}
        sizes = tuple((name, cell.image_size) for name, cell in chosen.items())
        if sizes not in timed:  # data sets of one size have one speed
            found: dict[str, Exported] = {}
            for cell in chosen.values():
                found |= export(cell, folder.path / "speed", int8)
            timed[sizes] = figures(found, repetitions)
        speed |= {cell.name: timed[sizes][cell.model] for cell in cells if cell.data == data}
    folder.write(folder.speed, speed)
    print(write_tables(folder))


def export(cell: Cell, folder: Path, int8: bool) -> dict[str, Exported]:
    """Train a model for one epoch and export it; what is there already is left as it is.

    Returns:
        The files by name: the model's, and behind it ``INT8``.
    """
    size = cell.image_size if isinstance(cell.image_size, tuple) else (cell.image_size, cell.image_size)
    kinds = {cell.model: None} | ({f"{cell.model} INT8": CompressionType.INT8_PTQ} if int8 and _is_own(cell) else {})
    place = folder / f"{size[0]}x{size[1]}"
    files = {name: (place / name / "weights" / "openvino" / "model.xml", size) for name in kinds}
    if not all(path.exists() for path, _ in files.values()):
        print(f"Preparing {cell.model} ...", flush=True)
        datamodule = build_data(cell)
        model = _untrained(size) if short(cell.class_path) == "EfficientAd" else _trained(cell, datamodule)
        for name, kind in kinds.items():
            more: dict[str, Any] = {"compression_type": kind, "datamodule": datamodule, "max_drop": 1.0} if kind else {}
            model.to_openvino(place / name, input_size=size, onnx_kwargs=_ONNX, **more)
        del model
        gc.collect()  # Patchcore's features would otherwise be in the way of the measurements
    return files


def _is_own(cell: Cell) -> bool:
    return short(cell.class_path) in MODELS


def _trained(cell: Cell, datamodule: AnomalibDataModule) -> AnomalibModule:
    model, callbacks = build(cell)
    with TemporaryDirectory() as folder:
        engine = Engine(callbacks, default_root_dir=folder, max_epochs=1, enable_progress_bar=False, logger=False)
        engine.fit(model=model, datamodule=datamodule)
    return model.to("cpu").eval()


def _untrained(size: tuple[int, int]) -> AnomalibModule:
    """Build EfficientAd with statistics such as training finds: while they are 0 it leaves its normalisations out."""
    model = EfficientAd(pre_processor=EfficientAd.configure_pre_processor(size))
    with torch.no_grad():
        for name, value in {"mean": 0.1, "std": 2.0}.items():
            model.model.mean_std[name].fill_(value)
        for name, value in {"qa_st": 0.1, "qb_st": 0.9, "qa_ae": 0.1, "qb_ae": 0.9}.items():
            model.model.quantiles[name].fill_(value)
    return model.eval()


def figures(files: Mapping[str, Exported], repetitions: int) -> dict[str, dict[str, float]]:
    """Give the columns of a benchmark's table by model: INT8's ratio is one of its model's."""
    seconds = latencies(files, repetitions)
    found: dict[str, dict[str, float]] = {}
    for name, (path, size) in files.items():
        if name.endswith(" INT8"):
            continue
        found[name] = {"latency_ms": float(np.median(seconds[name])) * 1e3, "images_per_second": throughput(path, size)}
        for column, other in {"latency_ratio": name, "int8_ratio": f"{name} INT8"}.items():
            if other in seconds and REFERENCE in seconds:
                found[name][column] = float(np.median(seconds[other] / seconds[REFERENCE]))
    return found


def throughput(path: Path, size: tuple[int, int], rounds: int = 5) -> float:
    """Measure images a second with as many requests at once as OpenVINO finds best."""
    queue = openvino.AsyncInferQueue(compile_file(path, size, PERFORMANCE_HINT="THROUGHPUT"))
    image, images = random_image(size), 4 * len(queue)

    def run() -> None:
        for _ in range(images):
            queue.start_async({0: image}, share_inputs=True)
        queue.wait_all()

    return images / float(np.median(interleave({"": run}, rounds, warmup=1)[""]))


def speed_table(files: Mapping[str, Exported], repetitions: int, threads: int) -> str:
    """Write latency, its ratio to the reference's, and the share of the machine's peak, of every file."""
    peak, seconds = matrix_peak(threads), latencies(files, repetitions, threads)
    rows: list[Sequence[object]] = []
    for name, (path, size) in files.items():
        low, middle, high = np.percentile(seconds[name], [25, 50, 75])
        macs, megabytes = count_macs(read_static(path, size)), sum(f.stat().st_size for f in _both(path)) / 1e6
        ratio = f"{np.median(seconds[name] / seconds[REFERENCE]):.2f}" if REFERENCE in seconds else "-"
        times = [f"{middle * 1e3:.2f}", f"{(high - low) * 1e3:.2f}", ratio]
        rows.append([name, f"{megabytes:.1f}", f"{macs / 1e9:.2f}", *times, f"{macs / middle / peak:.0%}"])
    head = ["model", "file MB", "multiply-adds G", "latency ms", "interquartile range ms", f"latency / {REFERENCE}"]
    return f"{table([*head, 'share of peak'], rows)}\n\nPeak: {peak / 1e9:.0f} G multiply-adds a second."


def _both(path: Path) -> list[Path]:
    return [path, path.with_suffix(".bin")]


if __name__ == "__main__":
    auto_cli(main)
