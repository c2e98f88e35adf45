"""An exported model as one device runs it: checked, read where needed, and compiled for the images that come."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openvino

from anomalib_mixedteacher.edge import loading
from anomalib_mixedteacher.edge.kept_models import KeptModels, can_keep
from anomalib_mixedteacher.edge.record import ModelRecord, check_files

_BYTES_INPUT = (True, False)


class ExportedModel:
    """Compiles a model for uint8 and for float32 images, or takes what an earlier start compiled.

    With a record, a start that finds the compiled model reads the model's files only to check them, and does both at
    the same time.

    Args:
        core: OpenVINO.
        path: ``.xml`` or ``.onnx`` file.
        record: The model's record, or ``None``.
        device: Device that runs the model.
        properties: OpenVINO's properties.
        cache: Folder for compiled models, or ``None``.

    Attributes:
        fixed_size: Height and width in pixels that the input is fixed to; ``None`` if it takes any.

    Raises:
        ExportedModelError: If the files are missing, damaged, or not the recorded ones, or are no detector's.
    """

    def __init__(
        self,
        core: openvino.Core,
        path: Path,
        record: ModelRecord | None,
        device: str,
        properties: dict[str, Any],
        cache: Path | None,
    ) -> None:
        self._core = core
        self._path = path
        self._device = device
        self._properties = properties
        self._cache = cache
        self._graph: openvino.Model | None = None  # read when there is something to compile
        self._loaded: dict[bool, openvino.CompiledModel] = {}
        self._kept: KeptModels | None = None
        if record is not None and cache is not None and can_keep(core, device):
            self._kept = KeptModels(core, cache, record.files, device, properties)
        with ThreadPoolExecutor(1) as background:
            checking = background.submit(check_files, record, path) if record is not None else None
            self._load_one()
        if checking is not None:
            checking.result()
        self.fixed_size = self._find_fixed_size()

    def compiled(self, bytes_input: bool) -> openvino.CompiledModel:
        """Give the model for one type of images, compiled. Not to be called by several threads at once.

        Args:
            bytes_input: For uint8 images rather than float32 ones.

        Returns:
            Compiled model with an input of shape ``(1, H, W, 3)``.

        Raises:
            ExportedModelError: If the device cannot run the model.
        """
        if bytes_input not in self._loaded:
            self._loaded[bytes_input] = self._load(bytes_input) or self._compile(bytes_input)
        return self._loaded[bytes_input]

    def _load_one(self) -> None:
        """Load a form that was kept, since whoever starts with a camera needs one at once."""
        for bytes_input in _BYTES_INPUT:
            if compiled := self._load(bytes_input):
                self._loaded[bytes_input] = compiled
                return

    def _load(self, bytes_input: bool) -> openvino.CompiledModel | None:
        return self._kept.load(bytes_input) if self._kept else None

    def _compile(self, bytes_input: bool) -> openvino.CompiledModel:
        graph = loading.with_image_input(self._read(), bytes_input)
        # the folder is OpenVINO's own cache where nothing is kept by checksums
        cache = None if self._kept else self._cache
        compiled = loading.compile_graph(self._core, graph, self._device, self._properties, cache)
        if self._kept:
            self._kept.keep(bytes_input, compiled)
        return compiled

    def _read(self) -> openvino.Model:
        if self._graph is None:
            self._graph = loading.read_graph(self._core, self._path)
        return self._graph

    def _find_fixed_size(self) -> tuple[int, int] | None:
        if not self._loaded:
            return loading.fixed_size(self._read())
        (compiled,) = self._loaded.values()
        _, height, width, _ = compiled.input().partial_shape
        return (height.get_length(), width.get_length()) if height.is_static and width.is_static else None
