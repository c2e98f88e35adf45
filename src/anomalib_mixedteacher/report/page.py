"""The report's page, and its verdict in plain sentences."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.benchmark.tables import COLUMNS, Average, shown
from anomalib_mixedteacher.report import plots
from anomalib_mixedteacher.report.gallery import PARTS, Kept, images_by_default, rows
from anomalib_mixedteacher.report.run import RANKING, Alarms, Run, Table

_FOLDER = Path(__file__).parent
_CURVES = {
    "roc": ("ROC of images", "image_AUROC", "false positive rate", "true positive rate"),
    "pro": ("PRO of regions", "PRO", "false positive rate of pixels", "region overlap"),
}
_LOWER_IS_BETTER = {"train_seconds", "wall_seconds", "latency_ms", "latency_ratio", "int8_ratio"}
_NO_BEST = "false_alarm_rate"  # no false alarm is no merit of a model that finds nothing
_PRAISE = {
    "image_AUROC": "tells defective images from good ones best",
    "pixel_AUROC": "shows best where defects are",
}


def render(run: Run, images: int | None = None) -> str:
    """Write a run's report, an HTML page that needs no other file and no network.

    Args:
        run: The run.
        images: Images of each part of the gallery for each data set; chosen by their total number by default.
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


def verdict(run: Run) -> dict[str, str]:
    """Say by heading which model is best, how it does at its threshold, and which one is fastest."""
    done, failed, waiting = len(run.results), len(run.failures), len(run.waiting)
    said = {
        "Incomplete": f"{done} of {len(run.cells)} trainings finished, {failed} failed, {waiting} are still to come."
    }
    if not failed and not waiting:
        said = {}
    if run.results:
        said |= {"Accuracy": _best(run), "At the threshold": _at_threshold(run), "Speed": _fastest(run)}
    return {heading: text for heading, text in said.items() if text}


def _best(run: Run) -> str:
    for key, praise in _PRAISE.items():
        known = _known(run, key)
        if not known:
            continue
        (first, best), *others = known.items()
        figure = f"{RANKING[key]} {shown(best, 3)}"
        if not others:
            return f"{first}: {figure}."
        second, value = others[0]
        said = f"{first} {praise}: {figure}, against {shown(value, 3)} of {second}."
        if best[1] is None or value[1] is None:
            return f"{said} Without two seeds or more there is no telling how much of the difference is luck."
        if best[0] - value[0] <= max(best[1], value[1]):
            return f"{said} The difference is within the spread over seeds, so the order may be luck."
        return said
    return "No figure ranks the models: none has an image or pixel AUROC; the reasons are below the tables."


def _at_threshold(run: Run) -> str:
    """Describe the best-ranked model that has alarms."""
    for model in run.models:
        found = run.alarms(model, run.data_sets, run.kinds(run.data_sets))
        raised = run.alarms(model, run.data_sets, [GOOD])
        parts = [f"found {counted(found)} of defective images"] if found else []
        parts += [f"raised a false alarm on {counted(raised)} of good ones"] if raised else []
        if parts:
            return f"With thresholds from good images alone, {model} {' and '.join(parts)}."
    return ""


def _fastest(run: Run) -> str:
    known = _known(run, "latency_ms")
    if not known:
        return ""
    (first, (best, _)), *others = sorted(known.items(), key=lambda item: item[1][0])
    if not others:
        return f"{first} takes {best:.3g} ms an image."
    slowest, (value, _) = others[-1]
    return f"{first} is the fastest with {best:.3g} ms an image; {slowest} takes {value / best:.1f} times as long."


def counted(alarms: Alarms) -> str:
    """Write a share of alarms with its interval and the images it is of."""
    low, high = alarms.interval
    return f"{alarms.share:.0%} ({low:.0%} to {high:.0%}; {alarms.alarms}/{alarms.images})"


def _known(run: Run, key: str) -> dict[str, Average]:
    """Give a figure by model, out of the first table, the best model first."""
    rows = run.tables[0].rows
    return {model: rows[model][key] for model in run.models if key in rows[model]}
