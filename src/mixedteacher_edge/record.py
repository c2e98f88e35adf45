"""The record beside an exported model: what it is, what it was measured to do, and which files belong to it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mixedteacher_edge.errors import ExportedModelError
from mixedteacher_edge.thresholds import Thresholds

FORMAT = 2
AGAIN = "copy the folder again, or export again"


@dataclass(frozen=True)
class ModelRecord:
    """What is known of an exported model; ``metadata.json`` beside ``model.xml``.

    Attributes:
        model: Class name of the model.
        version: Version of this package that exported it.
        precision: ``FP32``, ``FP16``, ``INT8`` (weights only), ``INT8_PTQ`` or ``INT8_ACQ``.
        image_size: Height and width to which the graph resizes images; ``None`` if it does not.
        tile_size: Side of the tiles into which images are cut; ``None`` if they are not.
        profile: What good images reach across a web (see :func:`~.tiling.web_profile`); ``None`` if it is not used.
        teacher_weights: Where the teachers' weights came from.
        fingerprints: SHA-256 of each teacher's weights, by backbone.
        training_data: ``images``, ``sha256`` and ``bits`` of the training images; ``None`` if unknown.
        thresholds: Raw thresholds of the graph; ``None`` if it has none.
        score_threshold: The same for an image's score; 0.5, unless anomalib's sensitivity moved it.
        quality: AUROC on labelled images, of this file and of the same graph in FP32; ``None`` if not measured.
        files: SHA-256 of each of the model's files, by name.
    """

    model: str
    version: str
    precision: str
    image_size: tuple[int, int] | None = None
    tile_size: int | None = None
    profile: tuple[float, ...] | None = None
    teacher_weights: str | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    training_data: dict[str, Any] | None = None
    thresholds: Thresholds | None = None
    score_threshold: float = 0.5
    quality: dict[str, float] | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def bits(self) -> int | None:
        """Bits that 16-bit training images used; ``None`` if unknown."""
        return (self.training_data or {}).get("bits")

    def text(self) -> str:
        """Write the record as JSON."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=2) + "\n"


def record_path(model: Path) -> Path:
    """Give the path of a model's record: ``metadata.json`` for ``model.xml``, else ``<name>.metadata.json``."""
    return model.with_name("metadata.json" if model.stem == "model" else f"{model.stem}.metadata.json")


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, as a hexadecimal string."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_record(model: Path) -> ModelRecord | None:
    """Read the record of an ``.xml`` file; ``None`` if there is none, as beside models that anomalib exported.

    Raises:
        ExportedModelError: If it cannot be read.
    """
    path = record_path(model)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            msg = f"{path} was written by another version of this package: update the package, or export again."
            raise ExportedModelError(msg)
        values = {entry.name: content[entry.name] for entry in fields(ModelRecord) if entry.name in content}
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        if values.get("thresholds") is not None:
            values["thresholds"] = Thresholds.read(values["thresholds"])
        return ModelRecord(**values | {"files": dict(values["files"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is no record of an exported model, or a damaged one: {AGAIN}."
        raise ExportedModelError(msg) from error


def check_files(record: ModelRecord, model: Path) -> None:
    """Check that the files of an ``.xml`` file are those that its record was written for.

    Raises:
        ExportedModelError: If one is not the recorded one.
    """
    for file in (model, model.with_suffix(".bin")):
        if sha256(file) != record.files.get(file.name):
            msg = f"{file} is not the file that {record_path(model).name} was written for, or it is damaged: {AGAIN}."
            raise ExportedModelError(msg)
