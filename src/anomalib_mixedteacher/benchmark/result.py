"""What a benchmark trains, and what it found: plain values that are written as JSON beside the predictions."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

GOOD = "good"
"""Kind of the images without a defect."""

REFERENCE = "Stfpm"
"""The model that the others' latency is compared with."""

_KEY_LENGTH = 10


@dataclass(frozen=True)
class Cell:
    """Everything that decides the outcome of one training.

    Attributes:
        model: Name for tables, unique within a benchmark.
        class_path: The model's class, as anomalib's ``get_model`` takes it.
        init_args: Its arguments.
        data: Name of data set and category for tables, as in ``"SyntheticTextures/weave"``.
        data_class: The datamodule's class.
        data_args: Its arguments, the category included.
        seed: Seeds split, weights and batches.
        teacher_weights: Where the teachers' weights come from.
        image_size: Side to which the model resizes images, in pixels.
        epochs: Passes over the training images.
        batch: Images in a training batch.
        alarm_rate: Share of good images that may raise an alarm, for the calibrated threshold.
    """

    model: str
    class_path: str
    init_args: dict[str, Any]
    data: str
    data_class: str
    data_args: dict[str, Any]
    seed: int
    teacher_weights: str
    image_size: int
    epochs: int
    batch: int
    alarm_rate: float

    @property
    def key(self) -> str:
        """Short SHA-256 of all values: another configuration has another key."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]

    @property
    def name(self) -> str:
        """Name of its folder."""
        readable = re.sub(r"\W+", "-", f"{self.model} {self.data} {self.seed}").strip("-")
        return f"{readable}-{self.key}"


@dataclass(frozen=True)
class Calibration:
    """The thresholds that came from good images, in raw scores; ``None`` where there were no such images.

    Attributes:
        image: Threshold of the image score.
        pixel: Threshold of the anomaly map.
        images: Number of good images they came from.
        alarm_rate: The smallest budget that so many images allow, or the one asked for if that is larger.
    """

    image: float | None
    pixel: float | None
    images: int
    alarm_rate: float


@dataclass(frozen=True)
class Result:
    """What a cell's training gave.

    Attributes:
        cell: What was trained.
        metrics: Any of ``image_AUROC``, ``image_F1``, ``image_AP``, ``pixel_AUROC``, ``PRO``, ``pixel_F1``, and
            ``false_alarm_rate`` (share of good test images above the calibrated threshold); each in ``[0, 1]``.
        missing: For each of these that is not there, a sentence that says why.
        notes: More sentences that a reader of the figures must know.
        calibration: Thresholds from good images.
        alarms: By kind of image, ``"good"`` included: alarms at the calibrated threshold, and images.
        curves: ``roc`` (false and true positive rate of images) and ``pro`` (false positive rate of pixels, region
            overlap), each a list of points.
        costs: ``train_seconds``, ``peak_memory_mb``, ``stored_numbers`` and ``file_mb`` (the OpenVINO export).
        made: ``date``, ``version``, ``processor``.
        inputs: Digests of the images and weights by the argument that names them: see :func:`~.inputs.digests`.
    """

    cell: Cell
    metrics: dict[str, float]
    missing: dict[str, str]
    notes: list[str]
    calibration: Calibration
    alarms: dict[str, tuple[int, int]]
    curves: dict[str, list[tuple[float, float]]]
    costs: dict[str, float]
    made: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def mislabelled(self) -> bool:
        """Whether its good images count as a kind of defect, as those of a Folder did in earlier versions."""
        return bool(self.alarms) and GOOD not in self.alarms and "false_alarm_rate" in self.metrics

    def to_json(self) -> str:
        """Write as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        values["cell"] = Cell(**values["cell"])
        values["calibration"] = Calibration(**values["calibration"])
        values["alarms"] = {kind: (found, count) for kind, (found, count) in values["alarms"].items()}
        values["curves"] = {name: [(x, y) for x, y in points] for name, points in values["curves"].items()}
        return cls(**values)
