"""What a trained model costs: numbers stored, multiply-adds, and the latency of its OpenVINO export."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.models import AnomalibModule

from anomalib_mixedteacher.benchmark.exported_file import ExportedFile, exported_path
from anomalib_mixedteacher.benchmark.macs import count_macs
from anomalib_mixedteacher.benchmark.result import REFERENCE
from anomalib_mixedteacher.benchmark.timing import latencies
from anomalib_mixedteacher.components.distillation_export import ONNX_OPSET

# One image at a time: with an open batch anomalib's Patchcore is exported for batches of two only.
ONE_IMAGE: dict[str, Any] = {"verbose": False, "opset_version": ONNX_OPSET, "dynamic_axes": {}}


@dataclass(frozen=True)
class Cost:
    """What one image costs.

    Attributes:
        gmacs: Multiply-adds in thousand millions.
        latency: Median latency over that of the reference's; ``None`` without a reference.
    """

    gmacs: float
    latency: float | None


def count_stored(model: AnomalibModule) -> int:
    """Count the numbers that a model stores: parameters, statistics, and a memory bank if it has one."""
    return sum(value.numel() for value in model.model.state_dict().values())


def export_one(model: AnomalibModule, folder: Path, image_size: int, **arguments: Any) -> Path:
    """Export a model for one image at a time, to a folder aside that is moved when it is whole.

    Args:
        model: A trained model.
        folder: Folder to make, or to make anew.
        image_size: Side of the images in pixels.
        arguments: More arguments of ``to_openvino``.

    Returns:
        Path of the ``.xml`` file.
    """
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.to_openvino(unfinished, input_size=(image_size, image_size), onnx_kwargs=ONE_IMAGE, **arguments)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return exported_path(folder)


def measure_costs(paths: Mapping[str, Path], image_size: int, repetitions: int = 50) -> dict[str, Cost]:
    """Count and time exported files on all cores in float32, in turn within one process.

    Args:
        paths: The files' paths, by model.
        image_size: Side of the images in pixels.
        repetitions: Timed inferences of each file.

    Returns:
        Costs by model.
    """
    files = [ExportedFile(name, path) for name, path in paths.items()]
    image = np.random.default_rng(0).random((1, 3, image_size, image_size), np.float32)
    seconds = latencies(files, image, None, repetitions, warmup=5)
    costs = {}
    for file in files:
        ratio = float(np.median(seconds[file.label] / seconds[REFERENCE])) if REFERENCE in paths else None
        costs[file.name] = Cost(count_macs(file.read_static(image_size)) / 1e9, ratio)
    return costs


def cost_table(costs: Mapping[str, Cost], rows: Sequence[Mapping[str, Any]]) -> str:
    """Format costs as a Markdown table.

    Args:
        costs: What :func:`measure_costs` returned.
        rows: Results of the comparison, which count the numbers that each ``model`` stores.
    """
    stored: dict[str, int] = {}
    for row in rows:
        if "stored_numbers" in row:  # the first training of a model is the one that was exported
            stored.setdefault(row["model"], row["stored_numbers"])
    lines = [f"| model | numbers stored (million) | multiply-adds (10^9) | latency / {REFERENCE} |", "| --- " * 4 + "|"]
    for name, cost in costs.items():
        millions = f"{stored[name] / 1e6:.2f}" if name in stored else ""
        ratio = "" if cost.latency is None else f"{cost.latency:.2f}"
        lines.append(f"| {name} | {millions} | {cost.gmacs:.2f} | {ratio} |")
    return "\n".join(lines)
