"""Where an exported file spends its time: by type of layer, and the slowest layers."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import openvino
from numpy.typing import NDArray

from anomalib_mixedteacher.benchmark.exported_file import ExportedFile

_SLOWEST = 15


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer as OpenVINO executes it.

    Attributes:
        name: Name of the layer.
        kind: Its type, such as ``Convolution``.
        implementation: OpenVINO's kernel, such as ``brgconv_avx512_f32``.
        milliseconds: Mean time in one inference.
    """

    name: str
    kind: str
    implementation: str
    milliseconds: float


def layer_times(file: ExportedFile, image: NDArray[np.float32], repetitions: int) -> list[LayerTime]:
    """Time each layer of a file on all cores.

    Args:
        file: The file.
        image: Input ``(1, 3, H, H)`` in ``[0, 1]``.
        repetitions: Inferences to take the mean of, after one that is not counted.

    Returns:
        The executed layers, slowest first.
    """
    properties = {"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True}
    request = file.compile(file.read_static(image.shape[-1]), **properties).create_infer_request()
    request.infer([image])
    totals: dict[tuple[str, str, str], float] = defaultdict(float)
    for _ in range(repetitions):
        request.infer([image])
        for layer in request.profiling_info:
            if layer.status == openvino.ProfilingInfo.Status.EXECUTED:
                key = (layer.node_name, layer.node_type, layer.exec_type)
                totals[key] += layer.real_time.total_seconds() * 1000 / repetitions
    return sorted((LayerTime(*key, total) for key, total in totals.items()), key=lambda layer: -layer.milliseconds)


def layer_table(label: str, layers: list[LayerTime]) -> str:
    """Format layer times as Markdown.

    Args:
        label: The file's name.
        layers: What :func:`layer_times` returned.

    Returns:
        Time by type of layer, and the 15 slowest layers.
    """
    total = sum(layer.milliseconds for layer in layers) or 1.0
    kinds: dict[str, list[float]] = defaultdict(list)
    for layer in layers:
        kinds[layer.kind].append(layer.milliseconds)
    lines = [f"# Layer times of {label}", "", "| type | layers | ms | share |", "| --- | --- | --- | --- |"]
    for kind, times in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        lines.append(f"| {kind} | {len(times)} | {sum(times):.3f} | {sum(times) / total:.1%} |")
    lines += ["", f"The {_SLOWEST} slowest layers:", "", "| layer | type | kernel | ms | share |", "| --- " * 5 + "|"]
    for layer in layers[:_SLOWEST]:
        share = layer.milliseconds / total
        lines.append(
            f"| {layer.name} | {layer.kind} | {layer.implementation} | {layer.milliseconds:.3f} | {share:.1%} |"
        )
    return "\n".join(lines) + "\n"
