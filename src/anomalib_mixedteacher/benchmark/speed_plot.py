"""The speed benchmark's picture."""

from pathlib import Path

from matplotlib.figure import Figure

from anomalib_mixedteacher.benchmark.speed_report import Report

_COLOURS = ("#1f5fa8", "#d1661f")


def plot(report: Report, path: Path) -> None:
    """Draw the latency of each file, with its interquartile range, for each number of cores.

    Args:
        report: The report.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(report.rows)), layout="constrained")
    axes = figure.subplots()
    for colour, cores in zip(_COLOURS, report.peak_gmacs_per_second, strict=False):
        timings = [row.timings[cores] for row in report.rows]
        axes.errorbar(
            [timing.latency_ms for timing in timings],
            range(len(timings)),
            xerr=[
                [timing.latency_ms - timing.latency_quartiles_ms[0] for timing in timings],
                [timing.latency_quartiles_ms[1] - timing.latency_ms for timing in timings],
            ],
            fmt="o",
            color=colour,
            capsize=3,
            label=f"{cores} core" + ("s" if cores > 1 else ""),
        )
    names = [row.model + ("" if row.auroc is None else f"\nAUROC {row.auroc:.3f}") for row in report.rows]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("latency of one image in ms: median and quartiles")
    scored = f", AUROC on {report.data}" if report.data else ""
    axes.set_title(f"{report.image_size} x {report.image_size} pixels{scored}, {report.cpu}", fontsize=9)
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
