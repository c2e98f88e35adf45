"""Where exported models spend their time: by type of layer, and the slowest layers.

python benchmarks/layer_times.py '{FP32: MODEL.xml, INT8: OTHER.xml}' --output runs/layers.md
"""

from collections import defaultdict
from pathlib import Path

import openvino
from jsonargparse import auto_cli

from common import compile_file, machine, random_image, table

_TYPES = 8
_SLOWEST = 15


def main(models: dict[str, Path], image_size: int = 256, repetitions: int = 50, output: Path | None = None) -> None:
    """Print mean times of one inference on all cores.

    Args:
        models: Exported .xml files by name.
        image_size: Side of the image in pixels.
        repetitions: Inferences to take the mean of.
        output: File for the tables by type.
    """
    print(f"{image_size} x {image_size} pixels, {machine()}")
    tables = []
    for name, path in models.items():
        by_kind, slowest = measure(path, (image_size, image_size), repetitions)
        tables.append(f"### {name}\n\n{by_kind}\n")
        print(f"\n{tables[-1]}\n{slowest}")
    if output is not None:
        output.write_text("\n".join(tables))


def measure(path: Path, size: tuple[int, int], repetitions: int) -> tuple[str, str]:
    """Give a table of the types of layers, and one of the slowest layers."""
    request = compile_file(path, size, PERF_COUNT=True).create_infer_request()
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
    by_kind = sorted(kinds.items(), key=lambda item: -sum(item[1]))[:_TYPES]
    rows = [[kind, len(times), f"{sum(times):.2f}", f"{sum(times) / total:.1%}"] for kind, times in by_kind]
    slowest = sorted(layers.items(), key=lambda item: -item[1])[:_SLOWEST]
    heads = ["type", "layer", "kernel", "ms"]
    return table(["type", "layers", "ms", "share"], rows), table(heads, [[*key, f"{ms:.3f}"] for key, ms in slowest])


if __name__ == "__main__":
    auto_cli(main)
