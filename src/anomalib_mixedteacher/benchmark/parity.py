"""Compare the maps of a checkpoint with those of its ONNX and OpenVINO exports, image by image.

Run ``python -m anomalib_mixedteacher.benchmark.parity CHECKPOINT IMAGE...``.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import torch
from anomalib.models import AnomalibModule
from numpy.typing import NDArray

from anomalib_mixedteacher.decoding import read_image
from anomalib_mixedteacher.models.restore import load_model

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def relative_difference(result: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Compute the largest absolute difference of two arrays over the largest absolute value of the expected one."""
    return float(np.abs(result.astype(np.float64) - expected).max() / np.abs(expected).max())


def exported_predictors(model: AnomalibModule, folder: str) -> dict[str, Predict]:
    """Export a model without fixed size, and load the exports.

    Args:
        model: A trained model; its post-processor is left out, since it would clamp differences away.
        folder: Folder for the exports.

    Returns:
        By name: functions from images ``(1, 3, H, W)`` in ``[0, 1]`` to anomaly maps.
    """
    path = model.to_openvino(folder, onnx_kwargs={"verbose": False})
    onnx_path = model.to_onnx(folder, verbose=False)
    predictors: dict[str, Predict] = {}
    for name, settings in (
        ("OpenVINO, float32", {"INFERENCE_PRECISION_HINT": "f32"}),
        ("OpenVINO, the processor's default", {}),
    ):
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        predictors[name] = lambda images, compiled=compiled: compiled(images)["anomaly_map"]  # type: ignore[misc]
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return predictors
    session = onnxruntime.InferenceSession(str(onnx_path))
    predictors["ONNX, onnxruntime"] = lambda images: session.run(["anomaly_map"], {"input": images})[0]
    return predictors


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="parity", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", nargs="+")
    settings = parser.parse_args()
    model = load_model(settings.checkpoint).eval()
    model.post_processor = None
    differences: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        predictors = exported_predictors(model, folder)
        for path in settings.images:
            images = read_image(path, as_tensor=True).unsqueeze(0)
            with torch.no_grad():
                expected = model(images).anomaly_map.numpy()
            for name, predict in predictors.items():
                differences.setdefault(name, []).append(relative_difference(predict(images.numpy()), expected))
    print(f"Largest relative difference of the anomaly map over {len(settings.images)} images:")
    for name, values in differences.items():
        print(f"  {name:35} {max(values):.1e}")


if __name__ == "__main__":
    main()
