"""Where an exported model spends its time: by type of layer, and the slowest layers.

python benchmarks/layer_times.py MODEL.xml --image_size 256
"""

from collections import defaultdict
from pathlib import Path

import openvino
from jsonargparse import auto_cli

from common import compile_file, machine, random_image, table

_SLOWEST = 15


def main(model: Path, image_size: int = 256, repetitions: int = 50) -> None:
    """Print mean times of one inference on all cores.

    Args:
        model: The exported model's .xml file.
        image_size: Side of the image in pixels.
        repetitions: Inferences to take the mean of.
    """
    size = (image_size, image_size)
    request = compile_file(model, size, PERF_COUNT=True).create_infer_request()
    request.infer([random_image(size)])
    layers: dict[tuple[str, str, str], float] = defaultdict(float)
    for _ in range(repetitions):
        request.infer([random_image(size)])
        for layer in request.profiling_info:
            if layer.status == openvino.ProfilingInfo.Status.EXECUTED:
                key = (layer.node_type, layer.node_name, layer.exec_type)
                layers[key] += layer.real_time.total_seconds() * 1000 / repetitions
    total, kinds = sum(layers.values()), defaultdict[str, list[float]](list)
    for (kind, _, _), milliseconds in layers.items():
        kinds[kind].append(milliseconds)
    by_kind = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    rows = [[kind, len(times), f"{sum(times):.3f}", f"{sum(times) / total:.1%}"] for kind, times in by_kind]
    print(f"{model}, {image_size} x {image_size} pixels, {machine()}\n")
    print(table(["type", "layers", "ms", "share"], rows))
    slowest = sorted(layers.items(), key=lambda item: -item[1])[:_SLOWEST]
    print(f"\n{table(['type', 'layer', 'kernel', 'ms'], [[*key, f'{value:.3f}'] for key, value in slowest])}")


if __name__ == "__main__":
    auto_cli(main)
