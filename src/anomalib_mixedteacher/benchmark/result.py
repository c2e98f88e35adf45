"""What a benchmark trains, and what it finds: plain values, kept as JSON."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalib_mixedteacher import __version__

GOOD = "good"
"""Kind of the images without a defect."""

Size = int | tuple[int, int]  # side of square images, or height and width, in pixels
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Cell:
    """Everything that decides one result: a training, and a map that is judged from it.

    Attributes:
        model: Name for tables, unique within a benchmark.
        class_path: The model's class, as anomalib's ``get_model`` takes it.
        init_args: Its arguments.
        data: Name of the data set for tables, its category included.
        data_class: The datamodule's class.
        data_args: Its arguments, the category included.
        seed: Seeds split, weights and batches.
        teacher_weights: Where the teachers' weights come from.
        image_size: Size to which the model resizes images.
        max_epochs: Passes over the training images.
        batch: Images in a training batch.
        alarm_rate: Share of good images that may raise an alarm, for the calibrated threshold.
        map_args: Arguments of the anomaly map, which training does not depend on.
        group: Name of what the data set is a category of; its own name otherwise.
        version: Version of this package.
    """

    model: str
    class_path: str
    init_args: dict[str, Any]
    data: str
    data_class: str
    data_args: dict[str, Any]
    seed: int
    teacher_weights: str
    image_size: Size
    max_epochs: int
    batch: int
    alarm_rate: float
    map_args: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    version: str = __version__

    @property
    def training(self) -> str:
        """Everything but the map and its name, as text: cells with the same are judged from one training."""
        return json.dumps(asdict(self) | {"model": None, "map_args": None}, sort_keys=True, default=str)

    @property
    def key(self) -> str:
        """Short SHA-256 of all values: another configuration has another key."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Name of its folder."""
        readable = re.sub(r"\W+", "-", f"{self.model} {self.data} {self.seed}").strip("-")
        return f"{readable}-{self.key}"

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Cell":
        """Make it of what JSON gives back."""
        size = values["image_size"]
        return cls(**values | {"image_size": tuple(size) if isinstance(size, list) else size})


@dataclass(frozen=True)
class Calibration:
    """The thresholds that came from good images, in raw scores; ``None`` where there were no such images.

    Attributes:
        image: Threshold of the image score; a score at it is an alarm.
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
    """What a cell gave.

    Attributes:
        cell: What was trained.
        metrics: Any of :data:`~.scores.METRICS`, each in ``[0, 1]``.
        missing: For each of these that is not there, a sentence that says why.
        notes: More sentences that a reader of the figures must know.
        calibration: Thresholds from good images.
        alarms: By kind of image, ``"good"`` included: alarms at the calibrated threshold, and images.
        curves: ``roc`` (false and true positive rate of images) and ``pro`` (false positive rate of pixels, region
            overlap), each a list of points.
        costs: ``train_seconds``, and ``wall_seconds`` from the first image read to the last figure.
        made: ``date``, ``version``, ``torch``, ``processor``.
    """

    cell: Cell
    metrics: dict[str, float]
    missing: dict[str, str]
    notes: list[str]
    calibration: Calibration
    alarms: dict[str, tuple[int, int]]
    curves: dict[str, Points]
    costs: dict[str, float]
    made: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write as JSON."""
        return json.dumps(asdict(self), indent=1, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        values["cell"] = Cell.from_values(values["cell"])
        values["calibration"] = Calibration(**values["calibration"])
        values["alarms"] = {kind: (found, count) for kind, (found, count) in values["alarms"].items()}
        values["curves"] = {name: [(x, y) for x, y in points] for name, points in values["curves"].items()}
        return cls(**values)


@dataclass(frozen=True)
class Failure:
    """A cell that could not be trained or evaluated."""

    cell: Cell
    message: str


@dataclass(frozen=True)
class KeptPredictions:
    """A cell's raw predictions of its test images, as they are kept for the report.

    Attributes:
        paths: Files of the images, ``(N,)``.
        kinds: Name of each image's defect, ``"good"`` for none, ``(N,)``.
        scores: Raw image scores, ``(N,)``.
        maps: Raw anomaly maps, ``(N, h, w)``, to half precision; ``(N, 0, 0)`` where there are none.
        masks: Ground truth, ``(N, h, w)``, of the same size as the maps; all false where there is none.
        good_scores: Raw scores of the good validation images, ``(M,)``.
    """

    paths: Sequence[str]
    kinds: Sequence[str]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_]
    good_scores: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def save(self, path: Path) -> None:
        """Write as a compressed ``.npz`` file."""
        largest = np.abs(self.maps).max(initial=np.finfo(np.float32).tiny)
        arrays = {
            "paths": np.array(self.paths),
            "kinds": np.array(self.kinds),
            "scores": self.scores,
            "maps": (self.maps / largest).astype(np.float16),  # a product of distances may be far below its range
            "largest": largest,
            "masks": self.masks,
            "good_scores": self.good_scores,
        }
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "KeptPredictions":
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            paths, kinds, maps = file["paths"].tolist(), file["kinds"].tolist(), file["maps"] * file["largest"]
            return cls(paths, kinds, file["scores"], maps, file["masks"], file["good_scores"])


@dataclass(frozen=True)
class Outcome:
    """What a training gave: a result for each of its cells, or the reason why there is none."""

    results: Sequence[tuple[Result, KeptPredictions]] = ()
    message: str = ""
    traceback: str = ""
