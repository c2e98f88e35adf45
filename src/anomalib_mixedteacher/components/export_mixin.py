"""The models' export methods: one lean graph, and a record of what it is."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.deploy import CompressionType, ExportType
from anomalib.models import AnomalibModule
from timm.layers import Conv2dSame
from torchmetrics import Metric
from torchvision.transforms.v2 import Resize

from anomalib_mixedteacher.components.tiles import Tiles
from anomalib_mixedteacher.errors import ConfigurationError

MAX_DROP = 0.002
"""Loss of AUROC from which a quantised model is not written, unless told otherwise."""
ONNX_OPSET = 18  # what torch's exporter writes; its conversion to anomalib's default of 14 fails with a traceback

# get_model finds direct subclasses of AnomalibModule only: a model lists a mixin, and AnomalibModule behind it.
if TYPE_CHECKING:
    _Base = AnomalibModule
else:
    _Base = object


class LeanExport(_Base):
    """Mixin in front of anomalib's ``ExportMixin``."""

    float_networks: tuple[str, ...] = ()
    """Names of networks that INT8 leaves in floating point."""

    @property
    def tiles(self) -> Tiles | None:
        """How images are cut into tiles; ``None`` if they are not."""
        return getattr(self.model, "tiles", None)

    def to_onnx(  # type: ignore[override]  # anomalib's signature, not Lightning's
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Export to ONNX; see anomalib's ``ExportMixin.to_onnx``.

        Without ``input_size`` batch, height and width are dynamic. Where the pre-processor resizes, any size goes;
        where it does not, sides are multiples of 32 from 64 on. Of a model that works in tiles the graph judges one.

        Args:
            export_root: Folder for the model.
            model_file_name: Name of the file without its suffix.
            input_size: Height and width of the input, for a graph of fixed size.
            kwargs: Passed to ``torch.onnx.export``.

        Returns:
            Path of the model.

        Raises:
            TeacherNotLoadedError: If the model was not trained.
            ConfigurationError: If a backbone pads by the image's size, and nothing fixes that; if the model works in
                tiles, and another size than theirs is given.
        """
        if self.tiles is not None:
            size = (self.tiles.tiling.size,) * 2
            if input_size is not None and tuple(input_size) != size:
                msg = "A model that works in tiles takes images of any size: leave input_size out."
                raise ConfigurationError(msg)
            input_size = size
        if input_size is None and not self._resizes() and any(isinstance(m, Conv2dSame) for m in self.model.modules()):
            msg = "The EfficientNet pads by the image's size: give input_size, or a pre-processor that resizes."
            raise ConfigurationError(msg)
        kwargs.setdefault("opset_version", ONNX_OPSET)
        if input_size is None and self.input_size is None and not {"dynamic_axes", "dynamic_shapes"} & kwargs.keys():
            height, width = (32 * torch.export.Dim(name, min=2) for name in ("height_by_32", "width_by_32"))
            kwargs["dynamic_shapes"] = ({0: torch.export.Dim("batch_size"), 2: height, 3: width},)
        profile = getattr(self.model, "good_profile", None)
        try:
            if profile is not None:  # not part of a tile's graph; its width would not fit
                self.model.good_profile = profile[:0]
            return super().to_onnx(export_root, model_file_name, input_size, **kwargs)
        finally:
            if profile is not None:
                self.model.good_profile = profile

    def _resizes(self) -> bool:
        """Tell whether the pre-processor resizes to a fixed height and width."""
        resizes = extract_transforms_by_type(getattr(self.pre_processor, "transform", None), Resize)
        return any(len(resize.size) == 2 for resize in resizes)

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        metric: Metric | None = None,
        task: TaskType | None = None,
        max_drop: float = MAX_DROP,
        ov_kwargs: dict[str, Any] | None = None,
        onnx_kwargs: dict[str, Any] | None = None,
    ) -> Path:
        """Export to OpenVINO: one lean graph from pixels to verdict, and ``metadata.json`` beside it.

        Unlike anomalib's own export, quantisation sees good images only, keeps in float32 what forms the difference of
        teacher and student, sets the thresholds anew on the quantised model's scores where they came from good images,
        and is refused where it loses too much. With a datamodule that has good and defective images, the exported
        graph's AUROC is measured and recorded.

        Args:
            export_root: Folder for the model, which is written to ``weights/openvino`` in it.
            model_file_name: Name of the file without its suffix.
            input_size: Height and width of the images that the graph takes; any by default.
            compression_type: ``FP16`` halves the file, ``INT8`` quantises the weights only, ``INT8_PTQ`` quantises,
                ``INT8_ACQ`` sets layers back to float32 until ``max_drop`` holds.
            datamodule: Images; needed for ``INT8_PTQ`` and ``INT8_ACQ``.
            metric: One that reads anomaly maps or masks lets ``INT8_ACQ`` watch the pixel AUROC; the image AUROC by
                default.
            task: Unused.
            max_drop: Loss of image or pixel AUROC from which a quantised model is not written.
            ov_kwargs: Unused; anomalib passes them to OpenVINO's converter.
            onnx_kwargs: Passed to ``torch.onnx.export``.

        Returns:
            Path of the ``.xml`` file.

        Raises:
            TeacherNotLoadedError: If the model was not trained.
            ConfigurationError: If the folder cannot be written to.
            QuantizationError: If quantisation loses more than ``max_drop``; nothing is written then.
        """
        del task, ov_kwargs
        from anomalib_mixedteacher.export.openvino import Compression, export_openvino

        kind = None if compression_type is None else CompressionType(compression_type)
        pixel = bool({"anomaly_map", "pred_mask"} & set(getattr(metric, "fields", None) or ()))
        compression = Compression(kind, datamodule, pixel, max_drop, keep=self.float_networks)
        folder = Path(export_root) / "weights" / ExportType.OPENVINO.value
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass  # known before minutes of quantisation
        except OSError as error:
            msg = f"Cannot write to {folder} ({error.strerror}): give another --export_root."
            raise ConfigurationError(msg) from error
        path = folder / f"{model_file_name}.xml"
        return export_openvino(self, path, input_size, compression, onnx_kwargs)
