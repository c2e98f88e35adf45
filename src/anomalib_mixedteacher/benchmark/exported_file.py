"""One exported OpenVINO file as the speed benchmark sees it; imports neither torch nor anomalib."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino

from anomalib_mixedteacher.errors import ExportedModelError

_RANK = 4  # (batch, channels, height, width)


@dataclass(frozen=True)
class ExportedFile:
    """A file and the precision to compute it in.

    Attributes:
        name: The model's name.
        path: Path of the ``.xml`` file; its ``.bin`` file is beside it.
        precision: ``"f32"`` or ``"bf16"``: what OpenVINO computes in where the file does not say ``INT8``.
    """

    name: str
    path: Path
    precision: str = "f32"

    @property
    def label(self) -> str:
        """Name for tables: the model's, with the precision where it is not float32."""
        return self.name if self.precision == "f32" else f"{self.name} ({self.precision})"

    def read(self) -> openvino.Model:
        """Read the file as it is.

        Returns:
            The graph, with whatever sizes are dynamic.

        Raises:
            ExportedModelError: If it is missing, unreadable, or takes anything but one batch of images.
        """
        if self.path.suffix != ".xml" or not self.path.is_file():
            msg = f"There is no exported model {self.path}: check the path, it ends in .xml."
            raise ExportedModelError(msg)
        try:
            model = openvino.Core().read_model(self.path)
        except RuntimeError as error:
            msg = f"{self.path} cannot be read as an OpenVINO model: export it again, with its .bin file beside it."
            raise ExportedModelError(msg) from error
        if len(model.inputs) != 1 or len(model.input(0).partial_shape) != _RANK:
            msg = f"{self.path} does not take images of shape (batch, 3, height, width): give an exported detector."
            raise ExportedModelError(msg)
        return model

    def read_static(self, size: int) -> openvino.Model:
        """Read the file and fix its input to one image.

        Args:
            size: Side of the image in pixels.

        Returns:
            The graph for input ``(1, 3, size, size)``.

        Raises:
            ExportedModelError: If it cannot be read, or was exported for another size.
        """
        model = self.read()
        sides = input_size(model)
        if sides is not None and sides != (size, size):
            height, width = sides
            msg = f"{self.path} takes images of {height} x {width} pixels: give --image-size {height}, or export again."
            raise ExportedModelError(msg)
        model.reshape([1, 3, size, size])
        return model

    def compile(self, model: openvino.Model, **properties: Any) -> openvino.CompiledModel:
        """Compile the file's graph for the processor, in the precision asked for.

        Args:
            model: What :meth:`read` or :meth:`read_static` returned.
            properties: OpenVINO's properties.

        Returns:
            The compiled graph.
        """
        # Without the hint a processor with bfloat16 computes in it, and another one does not.
        properties = {"INFERENCE_PRECISION_HINT": self.precision, **properties}
        return openvino.Core().compile_model(model, "CPU", properties)


def input_size(model: openvino.Model) -> tuple[int, int] | None:
    """Give height and width of a graph's input in pixels; ``None`` where they are dynamic."""
    shape = model.input(0).partial_shape
    if shape[2].is_dynamic or shape[3].is_dynamic:
        return None
    return shape[2].get_length(), shape[3].get_length()


def exported_path(folder: Path) -> Path:
    """Give the place of an exported file below its model's folder."""
    return folder / "weights" / "openvino" / "model.xml"
