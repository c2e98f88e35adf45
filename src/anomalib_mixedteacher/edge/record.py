"""The record beside an exported model: what it is, what it was measured to do, and which files belong to it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from anomalib_mixedteacher.calibration.thresholds import Threshold
from anomalib_mixedteacher.errors import ExportedModelError

FORMAT = 1
_AGAIN = "copy the folder again, or export again"


@dataclass(frozen=True)
class Calibration:
    """How the thresholds were found on good images.

    Attributes:
        alarm_rate: Budget for false alarms, above 0 and below 1.
        min_area: Pixels of the anomaly map from which a region counts.
        scores: Scores of the good images as the exported graph gives them (0.5 is the threshold), in ascending order.
    """

    alarm_rate: float
    min_area: int
    scores: list[float]

    @classmethod
    def of(cls, image: Threshold, alarm_rate: float, min_area: int) -> "Calibration":
        """Describe a calibration.

        Args:
            image: The threshold of image scores.
            alarm_rate: Budget for false alarms.
            min_area: Pixels of the anomaly map from which a region counts.
        """
        return cls(alarm_rate, min_area, image.rescale(image.scores).tolist())


@dataclass(frozen=True)
class ModelRecord:
    """What is known of an exported model; ``metadata.json`` beside ``model.xml``.

    Attributes:
        model: Class name of the model.
        version: Version of this package that exported it.
        precision: ``FP32``, ``FP16``, ``INT8`` (weights only), ``INT8_PTQ`` or ``INT8_ACQ``.
        image_size: Height and width to which the graph resizes images; ``None`` if it does not.
        teacher_weights: Where the teachers' weights came from.
        fingerprints: SHA-256 of each teacher's weights, by backbone.
        training_data: ``images`` and ``sha256`` of the training images; ``None`` if unknown.
        thresholds: Raw ``image`` score and raw ``pixel`` value at the thresholds; ``None`` if there are none.
        calibration: How they were found; ``None`` unless on good images.
        quality: AUROC on labelled images, of this file and of the same graph in FP32; ``None`` if not measured.
        files: SHA-256 of each of the model's files, by name.
    """

    model: str
    version: str
    precision: str
    image_size: tuple[int, int] | None = None
    teacher_weights: str | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    training_data: dict[str, Any] | None = None
    thresholds: dict[str, float] | None = None
    calibration: Calibration | None = None
    quality: dict[str, float] | None = None
    files: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Write the record as JSON."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=2) + "\n"


def record_path(model: Path) -> Path:
    """Give the path of a model's record: ``metadata.json`` for ``model.xml``, else ``<name>.metadata.json``.

    Args:
        model: Path of the ``.xml`` file.
    """
    return model.with_name("metadata.json" if model.stem == "model" else f"{model.stem}.metadata.json")


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, as a hexadecimal string."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_record(model: Path) -> ModelRecord | None:
    """Read a model's record, and check that the model's files are those that it was written for.

    Args:
        model: Path of the ``.xml`` file.

    Returns:
        The record; ``None`` if there is none, as beside models that anomalib exported.

    Raises:
        ExportedModelError: If the record cannot be read, or if a file is missing or is not the recorded one.
    """
    record = parse_record(model)
    if record is not None:
        check_files(record, model)
    return record


def parse_record(model: Path) -> ModelRecord | None:
    """Read a model's record and leave the model's files alone, for those who check them at the same time.

    Args:
        model: Path of the ``.xml`` file.

    Returns:
        The record; ``None`` if there is none.

    Raises:
        ExportedModelError: If the record cannot be read.
    """
    path = record_path(model)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            msg = f"{path} was written by another version of this package: update the package, or export again."
            raise ExportedModelError(msg)
        known = {entry.name for entry in fields(ModelRecord)}
        values = {key: value for key, value in content.items() if key in known}
        if values.get("image_size") is not None:
            height, width = values["image_size"]
            values["image_size"] = (int(height), int(width))
        if values.get("calibration") is not None:
            values["calibration"] = Calibration(**values["calibration"])
        return ModelRecord(**values | {"files": dict(values["files"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ExportedModelError):
            raise
        msg = f"{path} is no record of an exported model, or a damaged one: {_AGAIN}."
        raise ExportedModelError(msg) from error


def check_files(record: ModelRecord, model: Path) -> None:
    """Check that a model's files are those that its record was written for.

    Args:
        record: The record.
        model: Path of the ``.xml`` file.

    Raises:
        ExportedModelError: If a file is missing or is not the recorded one.
    """
    for name in (model.name, model.with_suffix(".bin").name):
        file = model.with_name(name)
        if not file.exists():
            msg = f"The model's file {file} is missing: {_AGAIN}."
            raise ExportedModelError(msg)
        if sha256(file) != record.files.get(name):
            msg = f"{file} is not the file that {record_path(model).name} was written for, or it is damaged: {_AGAIN}."
            raise ExportedModelError(msg)
