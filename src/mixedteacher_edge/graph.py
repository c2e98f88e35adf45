"""Exported files as OpenVINO graphs: read, checked, compiled and written; the verdict put on and taken off."""

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13
from openvino.preprocess import PrePostProcessor

from mixedteacher_edge.errors import ConfigurationError, ExportedModelError
from mixedteacher_edge.record import AGAIN, ModelRecord, record_path, sha256
from mixedteacher_edge.thresholds import Arithmetic, Kind, Thresholds, rescale

OUTPUTS = ("pred_score", "anomaly_map", "pred_label", "pred_mask")
RAW_SCORE, RAW_MAP = "raw_pred_score", "raw_anomaly_map"
CACHE_FOLDER = ".openvino_cache"
OLDEST_OPENVINO = "2025.4"  # reads opset16, which exports have

logger = logging.getLogger(__name__)


def model_file(model: str | Path) -> Path:
    """Find the ``.xml`` or ``.onnx`` file to load, given it or the ``.bin`` file beside an ``.xml``."""
    path = Path(model)
    path = path.with_suffix(".xml") if path.suffix == ".bin" else path
    if path.suffix not in {".xml", ".onnx"}:
        msg = f"{path} is no exported model: give the .xml or the .onnx file."
        raise ExportedModelError(msg)
    if not path.is_file():
        msg = f"There is no model {path}: check the path."
        raise ExportedModelError(msg)
    if path.suffix == ".xml" and not (weights := path.with_suffix(".bin")).is_file():
        msg = f"The model's file {weights} is missing: {AGAIN}."
        raise ExportedModelError(msg)
    return path


def read_file(core: openvino.Core, path: Path) -> openvino.Model:
    """Read an exported model as it is; an ExportedModelError says why it cannot be read."""
    try:
        return core.read_model(path)
    except RuntimeError as error:
        if "opset" in reason(error).lower():
            installed = openvino.__version__.partition("-")[0]
            remedy = f"update openvino ({OLDEST_OPENVINO} or newer)"
            msg = f"{path} needs a later OpenVINO than {installed} ({reason(error)}): {remedy}."
        else:
            msg = f"{path} is no model that OpenVINO can read, or it is damaged ({reason(error)}): {AGAIN}."
        raise ExportedModelError(msg) from error


def check_outputs(graph: openvino.Model, path: Path) -> None:
    """Check that a graph gives a verdict; an ExportedModelError says what it lacks."""
    missing = [name for name in OUTPUTS if name not in output_positions(graph)]
    if missing and set(missing) <= {"pred_label", "pred_mask"}:
        msg = f"{path} was exported without thresholds: export it with a post-processor."
        raise ExportedModelError(msg)
    if missing:
        msg = f"{path} has no output {' and no '.join(missing)}: give a model that anomalib exported."
        raise ExportedModelError(msg)


def set_single_image(graph: openvino.Model, path: Path) -> None:
    """Set a graph's batch to one image; an ExportedModelError says that it does not take RGB images."""
    try:
        shape = graph.input().partial_shape  # input() raises if there is more than one
        if not shape.compatible(openvino.PartialShape([1, 3, -1, -1])):
            raise ValueError(shape)
        graph.reshape(openvino.PartialShape([1, 3, shape[2], shape[3]]))
    except (RuntimeError, ValueError) as error:
        msg = f"{path} does not take one RGB image: give a model that anomalib exported."
        raise ExportedModelError(msg) from error


def output_positions(graph: openvino.Model | openvino.CompiledModel) -> dict[str, int]:
    """Map the names of a graph's outputs to their positions."""
    return {name: position for position, output in enumerate(graph.outputs) for name in output.get_names()}


def fixed_size(graph: openvino.Model) -> tuple[int, int] | None:
    """Give the height and width in pixels that a graph's input is fixed to; ``None`` if it takes any."""
    _, _, height, width = graph.input().partial_shape
    return (height.get_length(), width.get_length()) if height.is_static and width.is_static else None


def with_image_input(graph: openvino.Model, bytes_input: bool) -> openvino.Model:
    """Let a graph take an image as it lies in memory, so that nothing is converted outside of it.

    Args:
        graph: Graph with a float32 input of shape ``(1, 3, H, W)`` in ``[0, 1]``; it is left as it is.
        bytes_input: Let the input, of shape ``(1, H, W, 3)``, be uint8 rather than float32.
    """
    processor = PrePostProcessor(graph.clone())
    image = processor.input()
    image.model().set_layout(openvino.Layout("NCHW"))
    image.tensor().set_layout(openvino.Layout("NHWC"))
    image.tensor().set_element_type(openvino.Type.u8 if bytes_input else openvino.Type.f32)
    if bytes_input:
        image.preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    return processor.build()


def check_device(core: openvino.Core, device: str) -> None:
    """Check that OpenVINO finds a device, such as ``GPU.1``; a ConfigurationError lists those that it finds."""
    if device == "CPU":
        return  # always there, and looking for the others takes time
    found = core.available_devices
    choices = sorted({"AUTO", *found, *(name.partition(".")[0] for name in found)})
    if device not in choices:
        msg = f"There is no device {device!r}: choose one of {', '.join(choices)}."
        raise ConfigurationError(msg)


def cache_folder(model: Path, cache: str | Path | None) -> Path | None:
    """Make a folder for compiled models, beside the model for ``"auto"``; ``None`` if nothing can be written there."""
    if cache is None:
        return None
    folder = model.with_name(CACHE_FOLDER) if cache == "auto" else Path(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        level = logging.INFO if cache == "auto" else logging.WARNING
        logger.log(level, "Nothing can be written to %s (%s): every start compiles the model.", folder, error.strerror)
        return None


def compile_graph(
    core: openvino.Core, graph: openvino.Model, device: str, properties: dict[str, Any], cache: Path | None
) -> openvino.CompiledModel:
    """Compile a graph, or take it compiled from OpenVINO's cache; an ExportedModelError says why that cannot be."""
    if cache is not None:
        try:
            return core.compile_model(graph, device, properties | {"CACHE_DIR": str(cache)})
        except RuntimeError:  # a full disk, say, must not keep a detector from starting
            logger.warning("The cache %s cannot be used: this start compiles the model.", cache)
    try:
        return core.compile_model(graph, device, properties)
    except RuntimeError as error:
        msg = f"The device {device} cannot run the model ({reason(error)}): try another device, or precision='auto'."
        raise ExportedModelError(msg) from error


def reason(error: Exception) -> str:
    """Take the last line of OpenVINO's message; those before it name lines of its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def raw(model: openvino.Model) -> openvino.Model:
    """Take the verdict off a graph that this package exported.

    Returns:
        Graph with outputs ``pred_score`` and ``anomaly_map``, not normalised.

    Raises:
        ExportedModelError: If the graph was exported otherwise.
    """
    nodes = _raw_nodes(model)
    outputs = []
    for friendly, name in ((RAW_SCORE, "pred_score"), (RAW_MAP, "anomaly_map")):
        output = nodes[friendly].output(0)
        output.set_names({name})
        outputs.append(opset13.result(output))
    return openvino.Model(outputs, model.get_parameters(), "raw")


def _raw_nodes(model: openvino.Model) -> dict[str, openvino.Node]:
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    if RAW_SCORE not in nodes or RAW_MAP not in nodes:
        msg = (
            "This model was not exported by anomalib-mixedteacher, so its raw scores cannot be reached: export the "
            "checkpoint again with this version."
        )
        raise ExportedModelError(msg)
    return nodes


def verdict(model: openvino.Model) -> openvino.Model:
    """Take what lies behind the raw values of a graph that this package exported.

    Args:
        model: The graph; it is left as it is.

    Returns:
        Graph from raw ``pred_score`` ``(1, 1)`` and ``anomaly_map`` ``(1, 1, H, W)`` of any size to its outputs.

    Raises:
        ExportedModelError: If the graph was exported otherwise.
    """
    model = model.clone()
    nodes = _raw_nodes(model)
    parameters = []
    for friendly, shape in ((RAW_SCORE, [1, 1]), (RAW_MAP, [1, 1, -1, -1])):
        parameter = opset13.parameter(openvino.PartialShape(shape), np.float32)
        for target in nodes[friendly].output(0).get_target_inputs():
            target.replace_source_output(parameter.output(0))
        parameters.append(parameter)
    return openvino.Model(model.get_results(), parameters, "verdict")


def with_thresholds(model: openvino.Model, thresholds: Thresholds) -> openvino.Model:
    """Let a graph with outputs ``pred_score`` and ``anomaly_map``, not normalised, judge by thresholds.

    Returns:
        Graph with the outputs of anomalib's ``InferenceBatch``, by its names and in its order: ``pred_score``,
        ``pred_label``, ``anomaly_map`` and ``pred_mask``; an alarm is 0.5 or more.
    """
    results = []
    kinds: tuple[tuple[Kind, str, str, str], ...] = (
        ("image", RAW_SCORE, "pred_score", "pred_label"),
        ("pixel", RAW_MAP, "anomaly_map", "pred_mask"),
    )
    for kind, raw_name, name, verdict in kinds:
        source = model.output(name).get_node().input_value(0)
        threshold, unit = _constant(thresholds.value(kind)), _constant(thresholds.unit(kind))
        scaled = rescale(source.get_node(), threshold, unit, _NODES)
        alarm = opset13.greater_equal(source, threshold)
        source.set_names({raw_name})  # it carried the name of the scaled one
        for node, output in ((scaled, name), (alarm, verdict)):
            node.output(0).set_names({output})
            results.append(opset13.result(node))
    return openvino.Model(results, model.get_parameters(), "anomalib_mixedteacher")


def _constant(value: float) -> openvino.Node:
    return opset13.constant(value, np.float32)


_NODES = Arithmetic(opset13.absolute, opset13.less, opset13.select, _constant)


def write_model(model: openvino.Model, record: ModelRecord, path: Path, compress_to_fp16: bool = False) -> Path:
    """Write a model, its weights and its record, whose checksums are filled in.

    All is written to a folder of its own first. The old ``.xml`` goes before the new weights come, and the new one
    comes last, so that whenever the process is killed there is a model that belongs together, or none.

    Args:
        model: The graph.
        record: Its record.
        path: The ``.xml`` file to write; ``.bin`` and record go beside it.
        compress_to_fp16: Store the weights in half the space.

    Returns:
        ``path``.
    """
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    try:
        xml, weights = folder / path.name, folder / path.with_suffix(".bin").name
        openvino.save_model(model, xml, compress_to_fp16=compress_to_fp16)
        files = {file.name: sha256(file) for file in (xml, weights)}
        noted = folder / record_path(path).name
        noted.write_text(replace(record, files=files).text())
        path.unlink(missing_ok=True)
        weights.replace(path.with_suffix(".bin"))
        noted.replace(record_path(path))
        xml.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path
