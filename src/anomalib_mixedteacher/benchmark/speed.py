"""``mixedteacher benchmark speed``: latency, throughput, memory, cold start and AUROC of exported models, side by side.

All models are computed in float32 unless their file says INT8, on the same image, in turn within one process.
"""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import openvino
from anomalib.data import AnomalibDataModule
from numpy.typing import NDArray

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.cold_start import (
    compare_products,
    measure_cold_start,
    measure_memory,
    measure_peak,
)
from anomalib_mixedteacher.benchmark.exported_file import ExportedFile
from anomalib_mixedteacher.benchmark.exported_scores import score_file
from anomalib_mixedteacher.benchmark.layer_times import layer_table, layer_times
from anomalib_mixedteacher.benchmark.macs import count_macs
from anomalib_mixedteacher.benchmark.speed_models import MODELS, UNTRAINED, prepare_data, prepare_models
from anomalib_mixedteacher.benchmark.speed_plot import plot
from anomalib_mixedteacher.benchmark.speed_report import Report, Row, Timing, markdown
from anomalib_mixedteacher.benchmark.timing import latencies, throughputs
from anomalib_mixedteacher.errors import ConfigurationError

_EPILOG = (
    "Patchcore needs several GB while it is fitted: leave the environment variables MALLOC_MMAP_THRESHOLD_, "
    "MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ unset, with them it ran out of memory. Nothing is downloaded: with "
    "--teacher-weights random every model can be had; EfficientAd is exported untrained. Files of --files are scored "
    "only with --data: an AUROC on images that they were not made for says nothing."
)
_DATA = ("SyntheticTextures", "MagneticTile")


def main(arguments: Sequence[str]) -> None:
    """Run ``mixedteacher benchmark``.

    Args:
        arguments: What stands behind the command's name.

    Raises:
        ConfigurationError: If there is nothing to measure, or two models have one name.
    """
    settings = _parser().parse_args(arguments)
    given = _given_files(settings.files)
    double = sorted(set(given) & set(settings.models))
    if double:
        msg = f"--files names {', '.join(double)}, which --models has as well: give the file another name."
        raise ConfigurationError(msg)
    if not given and not settings.models:
        msg = "There is nothing to measure: give --models, or --files NAME=PATH."
        raise ConfigurationError(msg)
    for path in given.values():
        ExportedFile("", path).read_static(settings.image_size)  # before hours of training, not after
    settings.output.mkdir(parents=True, exist_ok=True)
    unscored = set() if settings.data else set(given)
    settings.data = settings.data or _DATA[0]
    paths = prepare_models(settings) | given
    report = measure(settings, paths, shlex.join(["mixedteacher", "benchmark", *arguments]), unscored)
    text = markdown(report)
    (settings.output / "speed.md").write_text(text)
    (settings.output / "speed.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    plot(report, settings.output / "speed.png")
    print(text)
    print(f"report  {settings.output / 'speed.md'}, speed.json, speed.png")


def measure(
    settings: argparse.Namespace, paths: dict[str, Path], command: str, unscored: Collection[str] = ()
) -> Report:
    """Measure exported files.

    Args:
        settings: The parsed command line.
        paths: The files' paths, by model.
        command: The command line, for the report.
        unscored: Models that have no AUROC on the data of the command line.

    Returns:
        The report; layer times are written to the output folder where they were asked for.
    """
    scored = paths.keys() - ({UNTRAINED} & set(settings.models)) - set(unscored)
    data = prepare_data(settings) if scored else None  # what is wrong with it is known before the timing
    precisions = list(dict.fromkeys(["f32", settings.precision]))
    files = [ExportedFile(name, path, precision) for precision in precisions for name, path in paths.items()]
    size = settings.image_size
    image = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    cores = available_cores()
    gmacs = {file.label: count_macs(file.read_static(size)) / 1e9 for file in files}
    peaks, timings = {}, {}
    for threads in sorted({1, cores}):
        _say(f"Timing on {threads} of {cores} cores ...")
        before = measure_peak(threads)
        seconds, rates = _run(files, image, threads, settings)
        peaks[threads] = max(before, measure_peak(threads))
        timings[threads] = _timings(files, seconds, rates, gmacs, peaks[threads])
    rows = [_row(file, gmacs, timings, settings, data if file.name in scored else None) for file in files]
    if settings.profile:
        for file in files:
            table = layer_table(file.label, layer_times(file, image, settings.repetitions))
            (settings.output / f"layers-{file.name}-{file.precision}.md").write_text(table)
    own = paths.get("MixedTeacher")
    return Report(
        command=command,
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        version=__version__,
        openvino=openvino.__version__,
        cpu=processor_name(),
        cores=cores,
        image_size=size,
        repetitions=settings.repetitions,
        peak_gmacs_per_second=peaks,
        rows=rows,
        products=compare_products(own, size, settings.cold_starts) if own else None,
        data="/".join(filter(None, [settings.data, data.category])) if data else None,
    )


def available_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """Read the processor's model name; ``unknown processor`` where the system does not tell it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


def _run(
    files: Sequence[ExportedFile], image: NDArray[np.float32], threads: int, settings: argparse.Namespace
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Time all files with the latency and with the throughput hint."""
    limit = 1 if threads == 1 else None
    seconds = latencies(files, image, limit, settings.repetitions, settings.warmup)
    return seconds, throughputs(files, image, limit, settings.repetitions)


def _timings(
    files: Sequence[ExportedFile],
    latency: dict[str, NDArray[np.float64]],
    throughput: dict[str, float],
    gmacs: dict[str, float],
    peak: float,
) -> dict[str, Timing]:
    timings = {}
    for file in files:
        seconds = latency[file.label]
        reference = latency.get(ExportedFile("Stfpm", file.path, file.precision).label)
        lower, middle, upper = np.percentile(seconds, [25, 50, 75]).tolist()
        timings[file.label] = Timing(
            latency_ms=1000 * middle,
            latency_quartiles_ms=(1000 * lower, 1000 * upper),
            ratio=None if reference is None else float(np.median(seconds / reference)),
            images_per_second=throughput[file.label],
            peak_fraction=gmacs[file.label] / middle / peak,
        )
    return timings


def _row(
    file: ExportedFile,
    gmacs: dict[str, float],
    timings: dict[int, dict[str, Timing]],
    settings: argparse.Namespace,
    data: AnomalibDataModule | None,
) -> Row:
    _say(f"Scoring {file.label}, and starting it anew ..." if data else f"Starting {file.label} anew ...")
    score = score_file(file, data.test_data) if data else None
    return Row(
        model=file.label,
        path=str(file.path),
        size_mb=sum(path.stat().st_size for path in (file.path, file.path.with_suffix(".bin"))) / 1e6,
        memory_mb=measure_memory(file, settings.image_size),
        cold_start_s=measure_cold_start(file, settings.image_size, settings.cold_starts),
        gmacs=gmacs[file.label],
        trained=file.name != UNTRAINED or UNTRAINED not in settings.models,
        auroc=score.auroc if score else None,
        mostly_tied=score.mostly_tied if score else False,
        timings={threads: by_label[file.label] for threads, by_label in timings.items()},
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _given_files(pairs: Sequence[str]) -> dict[str, Path]:
    files = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (equals and path and re.fullmatch(r"[\w.+-]+", name)) or name in files:
            msg = f"Cannot take {pair!r} as a file: write NAME=PATH.xml, each name once and without spaces."
            raise ConfigurationError(msg)
        files[name] = Path(path)
    return files


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mixedteacher benchmark", description=__doc__, epilog=_EPILOG)
    parser.add_argument("what", choices=["speed"])
    parser.add_argument(
        "--models", nargs="*", choices=MODELS, default=list(MODELS), metavar="MODEL", help="of " + ", ".join(MODELS)
    )
    parser.add_argument(
        "--files",
        nargs="+",
        default=[],
        metavar="NAME=PATH.xml",
        help="exported files to measure as well; alone with an empty --models",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the models, which are kept, and the report"
    )
    parser.add_argument(
        "--data", choices=_DATA, help=f"trains and scores, and scores --files if it is given; default: {_DATA[0]}"
    )
    parser.add_argument("--root", help="folder of the magnetic tiles")
    parser.add_argument("--image-size", type=_positive, default=256, help="side in pixels")
    parser.add_argument("--images", type=_positive, default=64, help="good training images")
    parser.add_argument("--epochs", type=_positive, default=10, help="of MixedTeacher and Stfpm")
    parser.add_argument("--teacher-weights", default="random", metavar="SOURCE")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="bf16: measure that beside f32")
    parser.add_argument("--repetitions", type=_positive, default=50)
    parser.add_argument("--warmup", type=_positive, default=5)
    parser.add_argument("--cold-starts", type=_positive, default=3, help="fresh processes for each cold start")
    parser.add_argument("--profile", action="store_true", help="write the time of each file's layers as well")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{text} is not a whole number from 1 on"
        raise argparse.ArgumentTypeError(msg)
    return number
