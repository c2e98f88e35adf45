"""The report's page."""

import shlex
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.errors import DataError
from anomalib_mixedteacher.report.columns import COLUMNS
from anomalib_mixedteacher.report.data import Run
from anomalib_mixedteacher.report.figures import curve_figures, histograms, tradeoff
from anomalib_mixedteacher.report.gallery import images_by_default, rows
from anomalib_mixedteacher.report.kept import load
from anomalib_mixedteacher.report.plots import swatch
from anomalib_mixedteacher.report.recall import recall_table
from anomalib_mixedteacher.report.selection import PARTS
from anomalib_mixedteacher.report.style import styles
from anomalib_mixedteacher.report.table import ranked, tables
from anomalib_mixedteacher.report.verdict import verdict

_TEMPLATES = Path(__file__).parent


def render(run: Run, images: int | None = None) -> str:
    """Write a run's report.

    Args:
        run: The run.
        images: Images of each part of the gallery for each data set; chosen by their total number by default.

    Returns:
        The HTML page, which needs no other file and no network.
    """
    models = ranked(run)
    drawn = styles(models)
    number = images_by_default(len(models), len(run.data_sets)) if images is None else images
    made = _made(run)
    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        run=run,
        name=run.folder.path.resolve().name,
        version=__version__,
        made=made,
        models=models,
        budget=_budget(run),
        verdict=verdict(run),
        notices=_notes(run),
        columns=COLUMNS,
        groups=[(group, len(list(columns))) for group, columns in groupby(COLUMNS, lambda column: column.group)],
        tables=tables(run),
        legend=[(model, swatch(style)) for model, style in drawn.items()],
        tradeoff=tradeoff(run, drawn),
        data_sets=[_data_set(run, data, models, drawn, number) for data in run.data_sets],
        parts=PARTS,
        good=GOOD,
        command=shlex.join(["mixedteacher", "benchmark", str(run.folder.plan), "--output", f"{run.folder.path}-again"]),
        style=_asset("report.css"),
        script=_asset("report.js"),
    )


def write(page: str, output: Path) -> None:
    """Write a page to a file that appears when it is whole.

    Raises:
        DataError: If it cannot be written.
    """
    unfinished = output.with_name(f".{output.name}")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(output)
    except OSError as error:
        msg = f"Cannot write {output} ({error.strerror}): give another file with --output."
        raise DataError(msg) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _data_set(run: Run, data: str, models: list[str], drawn: Mapping[str, Any], number: int) -> dict[str, Any]:
    kept = load(run, data, models)
    gallery = list(rows(data, models, kept.predictions, kept.calibrations, number)) if kept.predictions else []
    return {
        "name": data,
        "seed": kept.seed,
        "missing": kept.missing,
        "curves": curve_figures(run, data, drawn),
        "histograms": histograms(kept),
        "recall": recall_table(run, data, models),
        "gallery": gallery,
        "unanchored": [
            model
            for model, known in kept.calibrations.items()
            if known.pixel is None and kept.predictions[model].maps.size
        ],
    }


def _notes(run: Run) -> list[str]:
    """Gather the results' notes, each with the cells that it is about, behind what tells a partial report."""
    about: dict[str, list[str]] = {}
    for result in run.results:
        for note in result.notes:
            about.setdefault(note, []).append(f"{result.cell.model} on {result.cell.data}, seed {result.cell.seed}")
    everywhere = len(run.results)
    unfinished = [run.unfinished] if run.left else []
    notes = [note if len(cells) == everywhere else f"{note} ({'; '.join(cells)})" for note, cells in about.items()]
    return unfinished + notes


def _made(run: Run) -> dict[str, list[str]]:
    """Gather the different dates, versions and processors."""
    names = dict.fromkeys(["date", "version", "processor", *(name for result in run.results for name in result.made)])
    return {name: sorted({r.made[name] for r in run.results if name in r.made}) for name in names}


def _budget(run: Run) -> str:
    """Write the budgets for false alarms that were asked for."""
    rates = sorted({cell.alarm_rate for cell in run.cells})
    return ", ".join(f"{100 * rate:g} %" for rate in rates)


def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))
