"""The report's page."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.benchmark.tables import COLUMNS
from anomalib_mixedteacher.report import plots
from anomalib_mixedteacher.report.gallery import PARTS, Kept, images_by_default, rows
from anomalib_mixedteacher.report.run import RANKING, Run, Table
from anomalib_mixedteacher.report.verdict import counted, verdict

_FOLDER = Path(__file__).parent
_CURVES = {
    "roc": ("ROC of images", "image_AUROC", "false positive rate", "true positive rate"),
    "pro": ("PRO of regions", "PRO", "false positive rate of pixels", "region overlap"),
}
_LOWER_IS_BETTER = {"train_seconds", "wall_seconds", "latency_ms", "latency_ratio", "int8_ratio"}
_NO_BEST = "false_alarm_rate"  # no false alarm is no merit of a model that finds nothing


def render(run: Run, images: int | None = None) -> str:
    """Write a run's report.

    Args:
        run: The run.
        images: Images of each part of the gallery for each data set; chosen by their total number by default.

    Returns:
        The HTML page, which needs no other file and no network.
    """
    styles = plots.styles(run.models)
    number = images_by_default(len(run.models), len(run.data_sets)) if images is None else images
    loader = FileSystemLoader(_FOLDER)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    notes: dict[str, list[str]] = {}
    made: dict[str, dict[str, None]] = {}
    for result in run.results:
        for note in result.notes:
            notes.setdefault(note, []).append(f"{result.cell.model} on {result.cell.data}, seed {result.cell.seed}")
        for key, value in result.made.items():
            made.setdefault(key, {})[value] = None
    return environment.get_template("report.html").render(
        run=run,
        name=run.folder.path.resolve().name,
        version=__version__,
        made=made,
        notes=notes,
        budgets=sorted({cell.alarm_rate for cell in run.cells}),
        verdict=verdict(run),
        tables=[_table(table) for table in run.tables],
        swatches={model: plots.swatch(style) for model, style in styles.items()},
        tradeoff=_tradeoff(run, styles),
        data_sets=[_data_set(run, data, styles, number) for data in run.data_sets],
        counted=counted,
        parts=PARTS,
        good=GOOD,
        command=shlex.join(["mixedteacher", "benchmark", str(run.folder.plan), "--output", f"{run.folder.path}-again"]),
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup((_FOLDER / "report.js").read_text(encoding="utf-8")),
    )


def _table(table: Table) -> dict[str, Any]:
    """Write a table's figures, and mark the best of each column: equal as written is equally good."""
    lines: dict[str, list[dict[str, Any]]] = {model: [] for model in table.rows}
    heads = []
    for key, (title, digits) in COLUMNS.items():
        known = {model: row[key] for model, row in table.rows.items() if key in row}
        if not known:
            continue
        heads.append((title, "ascending" if key in _LOWER_IS_BETTER else "descending"))
        means = [mean for mean, _ in known.values()]
        best = min(means) if key in _LOWER_IS_BETTER else max(means)
        has_best = len(known) > 1 and key != _NO_BEST
        for model, line in lines.items():
            mean, spread = known.get(model, (None, None))
            text = "-" if mean is None else f"{mean:.{digits}f}"
            wide = "" if spread is None else f"± {spread:.{digits}f}"
            is_best = has_best and text == f"{best:.{digits}f}"
            line.append({"sort": mean, "text": text, "spread": wide, "best": is_best})
    return {"title": table.title, "heads": heads, "lines": lines, "reasons": table.reasons}


def _tradeoff(run: Run, styles: Mapping[str, plots.Style]) -> dict[str, Any] | None:
    """Plot accuracy against latency, both as the first table gives them; ``None`` if no model has both."""
    rows = run.tables[0].rows if run.tables else {}
    key = next((key for key in RANKING if any(key in row for row in rows.values())), "")
    both = {model: row for model, row in rows.items() if {"latency_ms", key} <= row.keys()}
    if not both:
        return None
    points = {model: (row["latency_ms"][0], row[key][0]) for model, row in both.items()}
    return {"uri": plots.scatter(points, styles, RANKING[key]), "label": RANKING[key], "points": points}


def _data_set(run: Run, data: str, styles: Mapping[str, plots.Style], number: int) -> dict[str, Any]:
    kept, kinds = Kept.load(run, data), run.kinds([data])
    found = [(kind, "", [run.alarms(model, [data], [kind]) for model in run.models]) for kind in kinds]
    found.sort(key=lambda row: sum(cell.share for cell in row[2] if cell))
    for name, style, of in (("all defects", "total", kinds), ("good (false alarms)", "alarms", [GOOD])):
        found.append((name, style, [run.alarms(model, [data], of) for model in run.models]))
    return {
        "name": data,
        "seed": "" if kept.seed is None else f"seed {kept.seed}",
        "missing": kept.missing,
        "curves": [_curves(run, data, styles, kind) for kind in _CURVES],
        "histograms": [_histogram(kept, model) for model in kept.predictions],
        "found": [row for row in found if any(row[2])],
        "gallery": list(rows(kept, number)),
    }


def _curves(run: Run, data: str, styles: Mapping[str, plots.Style], kind: str) -> dict[str, Any]:
    title, metric, x_label, y_label = _CURVES[kind]
    found = {model: [r.curves[kind] for r in run.of(model, data) if r.curves.get(kind)] for model in styles}
    lines = {model: of for model, of in found.items() if of}
    lacking = [f"{model}: {' '.join(run.why(model, data, metric))}" for model in styles if model not in lines]
    uri = plots.curves(lines, styles, x_label, y_label) if lines else ""
    return {"title": title, "uri": uri, "text": f"{title} on {data}: {', '.join(lines)}", "below": lacking}


def _histogram(kept: Kept, model: str) -> dict[str, Any]:
    predictions, threshold = kept.predictions[model], kept.calibrations[model].image
    scores, good = np.asarray(predictions.scores, np.float64), np.array(predictions.kinds) == GOOD
    finite, above = np.isfinite(scores), scores >= (np.inf if threshold is None else threshold)
    if not finite.any():
        return {"title": model, "uri": "", "text": "", "below": ["No score is a finite number."]}
    counts = [f"{above[of].sum()} of {of.sum()} {kind}" for kind, of in (("good", good), ("defective", ~good))]
    text = f"From the threshold on: {', '.join(counts)}."
    uri = plots.histogram(scores[finite & good], scores[finite & ~good], threshold)
    return {"title": model, "uri": uri, "text": text, "below": [text]}
