"""What the measuring scripts share: timing in turn, exported files, the machine, tables."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.command import parse
from anomalib_mixedteacher.benchmark.result import Cell
from anomalib_mixedteacher.benchmark.training import processor_name

Seconds = dict[str, NDArray[np.float64]]
Exported = tuple[Path, tuple[int, int]]
# axes of the weights before those that are summed for an output, or that an input is spread over
_WEIGHTS = {
    "Convolution": 1,  # (out, in, *kernel)
    "GroupConvolution": 2,  # (groups, out, in, *kernel)
    "ConvolutionBackpropData": 1,  # (in, out, *kernel)
    "GroupConvolutionBackpropData": 2,  # (groups, in, out, *kernel)
}


def interleave(calls: Mapping[str, Callable[[], object]], repetitions: int, warmup: int = 5) -> Seconds:
    """Time each of several calls in turn, the first one being another in each repetition: the machine's noise hits all.

    Each is called twice and timed the second time, since a camera runs one model over and over: its weights are in the
    processor's caches.

    Args:
        calls: What to time, by name.
        repetitions: How often each is timed.
        warmup: How often each is called before, without being timed.

    Returns:
        Seconds of each repetition, ``(repetitions,)``, by name.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(-warmup, repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            calls[name]()
            start = time.perf_counter()
            calls[name]()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def read_static(path: Path, size: tuple[int, int]) -> openvino.Model:
    """Read an exported model, and fix its input to one image of a height and width."""
    model = openvino.Core().read_model(path)
    model.reshape([1, 3, *size])
    return model


def compile_file(path: Path, size: tuple[int, int], **properties: str | int | bool) -> openvino.CompiledModel:
    """Compile an exported model for single images, in float32 where it does not say INT8."""
    given = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", **properties}
    return openvino.Core().compile_model(read_static(path, size), "CPU", given)


def latencies(files: Mapping[str, Exported], repetitions: int, threads: int | None = None) -> Seconds:
    """Time exported models on one image each, in turn.

    Args:
        files: The ``.xml`` file, and height and width of its image in pixels, by name.
        repetitions: Timed inferences of each.
        threads: Threads to compute with; all cores by default.

    Returns:
        Seconds of each repetition, by name.
    """
    limit = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    calls = {}
    for name, (path, size) in files.items():
        request = compile_file(path, size, **limit).create_infer_request()
        request.set_input_tensor(openvino.Tensor(random_image(size)))
        calls[name] = partial(request.infer, share_outputs=True)
    return interleave(calls, repetitions)


def random_image(size: tuple[int, int]) -> NDArray[np.float32]:
    """Make an input ``(1, 3, *size)`` in ``[0, 1]``, always the same."""
    return np.random.default_rng(0).random((1, 3, *size), np.float32)


def first_cells(models: Sequence[str | dict[str, Any]], data: str, size: int, teachers: str) -> list[Cell]:
    """Describe a training of each model as the benchmark does.

    Args:
        models: Classes of models, or entries of a benchmark's plan.
        data: A folder of images, or the class of a datamodule.
        size: Side of the images in pixels.
        teachers: Where the teachers' weights come from.
    """
    options = [f"--image_size={size}", f"--teacher_weights={teachers}", "--output=."]
    cells = parse(["--models", json.dumps(models), "--data", data, *options])[0].cells()
    return list({cell.model: cell for cell in reversed(cells)}.values())[::-1]


def count_macs(model: openvino.Model) -> int:
    """Count the multiply-adds of a static graph's convolutions and matrix products, nearly all of its work."""
    macs = 0
    for node in model.get_ops():
        kind, sides = node.get_type_name(), [list(port.get_shape()) for port in node.inputs()]
        if kind == "MatMul":
            inner = sides[0][-2 if node.get_attributes()["transpose_a"] else -1]
            macs += prod(node.output(0).get_shape()) * inner
        elif kind in _WEIGHTS:  # shapes of ports: in INT8 weights stand behind conversions and scalings
            spread = prod(sides[0] if "Backprop" in kind else node.output(0).get_shape())
            macs += spread * prod(sides[1][_WEIGHTS[kind] :])
    return macs


def matrix_peak(threads: int, side: int = 2048) -> float:
    """Measure the machine's rate in a float32 matrix product, in multiply-adds a second."""
    left, right = np.random.default_rng(0).random((2, side, side), np.float32)
    parameter = opset13.parameter([side, side], np.float32)
    product = opset13.matmul(parameter, opset13.constant(right), transpose_a=False, transpose_b=False)
    properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(openvino.Model([product], [parameter]), "CPU", properties)
    seconds = interleave({"": partial(request, left, share_inputs=True)}, repetitions=20, warmup=2)
    return float(side**3 / seconds[""].min())


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Name the processor and the versions."""
    return f"{processor_name()}, {cores()} cores, OpenVINO {openvino.__version__}, anomalib-mixedteacher {__version__}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows])
