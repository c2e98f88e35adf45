"""Exported files as OpenVINO models: found, read, checked and compiled."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import openvino
from openvino.preprocess import PrePostProcessor

from anomalib_mixedteacher.errors import ConfigurationError, DataError, ExportedModelError

OUTPUTS = ("pred_score", "anomaly_map", "pred_label", "pred_mask")
CACHE_FOLDER = ".openvino_cache"
OLDEST_OPENVINO = "2025.4"  # reads opset16, which exports have
_AGAIN = "copy the folder again, or export again"

logger = logging.getLogger(__name__)


def model_file(model: str | Path) -> Path:
    """Find the file to load.

    Args:
        model: ``.xml`` or ``.onnx`` file, or the ``.bin`` file beside an ``.xml``.

    Returns:
        The ``.xml`` or ``.onnx`` file.

    Raises:
        ExportedModelError: If it does not exist, or if its name has another ending.
    """
    path = Path(model)
    path = path.with_suffix(".xml") if path.suffix == ".bin" else path
    if path.suffix not in {".xml", ".onnx"}:
        msg = f"{path} is no exported model: give the .xml or the .onnx file."
        raise ExportedModelError(msg)
    if not path.is_file():
        msg = f"There is no model {path}: check the path."
        raise ExportedModelError(msg)
    if path.suffix == ".xml" and not (weights := path.with_suffix(".bin")).is_file():
        msg = f"The model's file {weights} is missing: {_AGAIN}."
        raise ExportedModelError(msg)
    return path


def read_file(core: openvino.Core, path: Path) -> openvino.Model:
    """Read an exported model as it is.

    Args:
        core: OpenVINO.
        path: ``.xml`` or ``.onnx`` file.

    Raises:
        ExportedModelError: If it cannot be read.
    """
    try:
        return core.read_model(path)
    except RuntimeError as error:
        if "opset" in reason(error).lower():
            installed = openvino.__version__.partition("-")[0]
            remedy = f"update openvino ({OLDEST_OPENVINO} or newer)"
            msg = f"{path} needs a later OpenVINO than {installed} ({reason(error)}): {remedy}."
            raise ExportedModelError(msg) from error
        msg = f"{path} is no model that OpenVINO can read, or it is damaged ({reason(error)}): {_AGAIN}."
        raise ExportedModelError(msg) from error


def read_graph(core: openvino.Core, path: Path) -> openvino.Model:
    """Read an exported model, set its batch to one image, and check what it takes and gives.

    Args:
        core: OpenVINO.
        path: ``.xml`` or ``.onnx`` file.

    Returns:
        Graph with one input of shape ``(1, 3, H, W)``, sides fixed or not.

    Raises:
        ExportedModelError: If it cannot be read, takes no RGB image, or lacks an output of the detector.
    """
    graph = read_file(core, path)
    missing = [name for name in OUTPUTS if name not in output_positions(graph)]
    if missing and set(missing) <= {"pred_label", "pred_mask"}:
        msg = f"{path} was exported without thresholds: export it with a post-processor."
        raise ExportedModelError(msg)
    if missing:
        msg = f"{path} has no output {' and no '.join(missing)}: give a model that anomalib exported."
        raise ExportedModelError(msg)
    try:
        shape = graph.input().partial_shape  # input() raises if there is more than one
        if not shape.compatible(openvino.PartialShape([1, 3, -1, -1])):
            raise ValueError(shape)
        graph.reshape(openvino.PartialShape([1, 3, shape[2], shape[3]]))
    except (RuntimeError, ValueError) as error:
        msg = f"{path} does not take one RGB image: give a model that anomalib exported."
        raise ExportedModelError(msg) from error
    return graph


def output_positions(graph: openvino.Model) -> dict[str, int]:
    """Map the names of a graph's outputs to their positions."""
    return {name: position for position, output in enumerate(graph.outputs) for name in output.get_names()}


def fixed_size(graph: openvino.Model) -> tuple[int, int] | None:
    """Give the height and width in pixels that a graph's input is fixed to; ``None`` if it takes any."""
    _, _, height, width = graph.input().partial_shape
    return (height.get_length(), width.get_length()) if height.is_static and width.is_static else None


def check_fits(size: tuple[int, int], fixed: tuple[int, int] | None, name: str) -> None:
    """Check that an image has the size that a graph's input is fixed to.

    Args:
        size: Height and width of the image in pixels.
        fixed: What :func:`fixed_size` gave.
        name: What the message calls the image.

    Raises:
        DataError: If it has another one.
    """
    if fixed is not None and size != fixed:
        msg = (
            f"The image {name} is {size[1]} x {size[0]} pixels, but the model takes {fixed[1]} x {fixed[0]}: resize "
            "the image, or export the model without a fixed input size."
        )
        raise DataError(msg)


def with_image_input(graph: openvino.Model, bytes_input: bool) -> openvino.Model:
    """Let a graph take an image as it lies in memory, so that nothing is converted outside of it.

    Args:
        graph: Graph with a float32 input of shape ``(1, 3, H, W)`` in ``[0, 1]``; it is left as it is.
        bytes_input: Take uint8 rather than float32.

    Returns:
        Graph with an input of shape ``(1, H, W, 3)``.
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
    """Check that OpenVINO finds a device.

    Args:
        core: OpenVINO.
        device: Name such as ``CPU``, ``GPU``, ``GPU.1`` or ``AUTO``.

    Raises:
        ConfigurationError: If it does not; the message lists those that it finds.
    """
    if device == "CPU":
        return  # always there, and looking for the others takes time
    found = core.available_devices
    choices = sorted({"AUTO", *found, *(name.partition(".")[0] for name in found)})
    if device not in choices:
        msg = f"There is no device {device!r}: choose one of {', '.join(choices)}."
        raise ConfigurationError(msg)


def cache_folder(model: Path, cache: str | Path | None) -> Path | None:
    """Find a folder for compiled models.

    Args:
        model: The model's file.
        cache: ``"auto"`` for a folder beside it, another folder, or ``None`` for none.

    Returns:
        The folder, made if need be; ``None`` if nothing can be written there.
    """
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
    """Compile a graph, or take it compiled from the cache.

    Args:
        core: OpenVINO.
        graph: The graph.
        device: Device that runs it.
        properties: OpenVINO's properties.
        cache: Folder for compiled models.

    Raises:
        ExportedModelError: If the device cannot run the graph in this way.
    """
    try:
        if cache is not None:
            try:
                return core.compile_model(graph, device, properties | {"CACHE_DIR": str(cache)})
            except RuntimeError:  # a full disk, say, must not keep a detector from starting
                logger.warning("The cache %s cannot be used: this start compiles the model.", cache)
        return core.compile_model(graph, device, properties)
    except RuntimeError as error:
        msg = f"The device {device} cannot run the model ({reason(error)}): try another device, or precision='auto'."
        raise ExportedModelError(msg) from error


def reason(error: Exception) -> str:
    """Take the last line of OpenVINO's message; those before it name lines of its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
