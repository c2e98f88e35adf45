"""The speed benchmark's report as Markdown and JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field

UNTRAINED_NOTE = (
    "\\* Not trained, since its weights and images would have to be downloaded; speed does not depend on it."
)
UNSCORED_NOTE = (
    "‡ Not scored: this command did not train the file and was given no --data to score it on, or the file has no "
    "image score."
)
TIED_NOTE = (
    "† More than half of the image scores are 0 or 1, where the exported normalisation clamps them: such images "
    "cannot be ranked, and the AUROC is not that of the model's raw scores."
)
COLUMNS_NOTE = (
    "Latency / Stfpm: median over repetitions, against Stfpm in the same precision. Share of peak: multiply-adds a "
    "second in the median latency, over the rate of a large float32 matrix product measured in the same run (the "
    "higher of OpenVINO's and numpy's). INT8 and bfloat16 are compared with the float32 peak as well; more than 100 % "
    "in float32 means that other processes disturbed the measurement."
)


@dataclass(frozen=True)
class Timing:
    """How fast a file is on a number of cores.

    Attributes:
        latency_ms: Median time of one image in milliseconds.
        latency_quartiles_ms: Its lower and upper quartile.
        ratio: Median over repetitions of the latency over Stfpm's of the same precision; ``None`` without Stfpm.
        images_per_second: With OpenVINO's throughput hint.
        peak_fraction: Achieved share of the machine's float32 matrix-product peak.
    """

    latency_ms: float
    latency_quartiles_ms: tuple[float, float]
    ratio: float | None
    images_per_second: float
    peak_fraction: float


@dataclass(frozen=True)
class Row:
    """What was measured on one file.

    Attributes:
        model: The model's name, with the precision where it is not float32.
        path: The file.
        size_mb: Megabytes (10^6 bytes) of the ``.xml`` and the ``.bin`` file.
        memory_mb: Peak resident memory of a process that runs just this file, in megabytes.
        cold_start_s: Seconds from the start of a process to its first result, with a warm model cache.
        gmacs: 10^9 multiply-adds of one image.
        trained: Whether the weights come from training.
        auroc: Image AUROC of the file in ``[0, 1]``; ``None`` where it was not scored.
        mostly_tied: More than half of the scores are clamped.
        timings: By number of cores.
    """

    model: str
    path: str
    size_mb: float
    memory_mb: float | None
    cold_start_s: float
    gmacs: float
    trained: bool
    auroc: float | None
    mostly_tied: bool
    timings: dict[int, Timing] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything that one call measured, and on what.

    Attributes:
        command: The command line.
        date: Local date and time with its offset.
        version: Version of this package.
        openvino: Version of OpenVINO.
        cpu: Name of the processor's model.
        cores: Number of cores that the process may use.
        image_size: Side of the images in pixels.
        repetitions: Timed inferences of each file.
        peak_gmacs_per_second: Float32 matrix-product rate by number of cores, in 10^9 multiply-adds a second.
        rows: The files.
        products: Cold start in seconds of the edge detector and of anomalib's inferencer on the MixedTeacher file.
        data: Name of the data set that the AUROC is of; ``None`` where no file was scored.
    """

    command: str
    date: str
    version: str
    openvino: str
    cpu: str
    cores: int
    image_size: int
    repetitions: int
    peak_gmacs_per_second: dict[int, float]
    rows: list[Row]
    products: dict[str, float] | None
    data: str | None = None


def markdown(report: Report) -> str:
    """Format a report.

    Args:
        report: The report.

    Returns:
        Its head, a table of the files, a table of times for each number of cores, and notes.
    """
    lines = [
        "# Speed of exported models",
        "",
        f"    {report.command}",
        "",
        f"- {report.date}, anomalib-mixedteacher {report.version}, OpenVINO {report.openvino}",
        f"- {report.cpu}, {_cores(report.cores)}",
        f"- {report.image_size} x {report.image_size} pixels, batch 1, {report.repetitions} interleaved repetitions",
        *([f"- image AUROC on the test images of {report.data}"] if report.data else []),
        "",
        *_files_table(report.rows),
    ]
    for cores, peak in report.peak_gmacs_per_second.items():
        lines += ["", f"On {_cores(cores)} (float32 matrix product: {peak:.0f} G multiply-adds/s):", ""]
        lines += _times_table(report.rows, cores)
    lines += ["", COLUMNS_NOTE]
    if not all(row.trained for row in report.rows):
        lines += ["", UNTRAINED_NOTE]
    if any(_unscored(row) for row in report.rows):
        lines += ["", UNSCORED_NOTE]
    if any(row.mostly_tied for row in report.rows):
        lines += ["", TIED_NOTE]
    if report.products:
        lines += ["", _products_line(report.products)]
    return "\n".join(lines) + "\n"


def _files_table(rows: Sequence[Row]) -> list[str]:
    body = []
    for row in rows:
        mark = "†" if row.mostly_tied else " ‡" if _unscored(row) else "" if row.trained else " \\*"
        auroc = _number(row.auroc, 3) + mark
        numbers = [_number(row.size_mb, 1), _number(row.memory_mb, 0), _number(row.cold_start_s, 2)]
        body.append([row.model, *numbers, _number(row.gmacs, 2), auroc])
    head = ["model", "file MB", "peak memory MB", "cold start s", "multiply-adds G", "image AUROC"]
    return _table(head, body)


def _times_table(rows: Sequence[Row], cores: int) -> list[str]:
    body = []
    for row in rows:
        timing = row.timings[cores]
        lower, upper = timing.latency_quartiles_ms
        latency = [_number(timing.latency_ms, 2), _number(upper - lower, 2), _number(timing.ratio, 2)]
        body.append([row.model, *latency, _number(timing.images_per_second, 1), f"{timing.peak_fraction:.0%}"])
    head = ["model", "latency ms", "interquartile range ms", "latency / Stfpm", "images/s", "share of peak"]
    return _table(head, body)


def _products_line(products: dict[str, float]) -> str:
    edge, inferencer = products["EdgeDetector"], products["OpenVINOInferencer"]
    return (
        f"From process start to the first result for an image file, MixedTeacher, warm model cache: EdgeDetector "
        f"{edge:.2f} s, anomalib's OpenVINOInferencer {inferencer:.2f} s, {inferencer / edge:.1f} times as long."
    )


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body]]


def _unscored(row: Row) -> bool:
    return row.trained and row.auroc is None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cores(number: int) -> str:
    return f"{number} core" + ("s" if number > 1 else "")
