"""The verdict in plain sentences."""

from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.report.columns import BY_NAME, significant
from anomalib_mixedteacher.report.data import Run, defects
from anomalib_mixedteacher.report.table import Value, averaged_over, overall, ranked

_SPACE = "\N{NO-BREAK SPACE}"


def verdict(run: Run) -> dict[str, str]:
    """Say in a few sentences which model is best, how it does at its threshold, and which one is fastest.

    Returns:
        Sentences by a heading of a word or two.
    """
    unfinished = {"Unfinished": run.unfinished} if run.left else {}
    if not run.results:
        return unfinished | {"No result": f"{_failures(len(run.failures))}, none finished: the reasons are below."}
    said = {"Accuracy": _best(run), "At the threshold": _at_threshold(run), "Speed": _fastest(run)}
    if run.failures:
        said["Incomplete"] = [f"{_failures(len(run.failures))}: the reasons are below."]
    return unfinished | {heading: " ".join(sentences) for heading, sentences in said.items() if sentences}


def _best(run: Run) -> list[str]:
    names = {"image_AUROC": "tells defective images from good ones best", "pixel_AUROC": "shows best where defects are"}
    for name, praise in names.items():
        known = _known(run, name)
        if not known:
            continue
        (first, best), *others = sorted(known.items(), key=lambda item: -(item[1].mean or 0))
        extent = _extent(len(averaged_over(run, BY_NAME[name])), best.seeds)
        figure = f"{'image' if name == 'image_AUROC' else 'pixel'} AUROC {_written(name, best)}{extent}"
        if not others:
            so_far = " so far" if run.left else ""
            only = "" if len(run.models) == 1 else f", the only model that has one on every data set{so_far}"
            return [f"{first}{only}: {figure}."]
        second, value = others[0]
        gap = (best.mean or 0) - (value.mean or 0)
        sentence = f"{first} {praise}: {figure}, against {_written(name, value)} of {second}."
        if best.spread is None or value.spread is None:
            return [sentence, "Without two seeds or more there is no telling how much of the difference is luck."]
        if gap <= max(best.spread, value.spread):
            sentence += " The difference is within the spread over seeds, so the order may be luck."
        return [sentence]
    return ["No figure ranks the models: no result has an image or pixel AUROC; the footnotes say why."]


def _at_threshold(run: Run) -> list[str]:
    """Describe the best-ranked model that has alarms."""
    for model in ranked(run):
        results = [result for data in run.data_sets for result in run.of(model, data) if result.alarms]
        if not results:
            continue
        found, images = (sum(counts) for counts in zip(*map(defects, results), strict=True))
        alarms, good = (sum(c) for c in zip(*(result.alarms.get(GOOD, (0, 0)) for result in results), strict=True))
        parts = []
        if images:
            parts.append(f"found {_of(found, images)} defective images")
        if good:
            parts.append(f"raised a false alarm on {_of(alarms, good)} good ones")
        budgets = {result.calibration.alarm_rate for result in results}
        budget = " to ".join(f"{100 * rate:.3g}{_SPACE}%" for rate in sorted({min(budgets), max(budgets)}))
        if parts:
            return [f"With thresholds set for a budget of {budget} false alarms, {model} {' and '.join(parts)}."]
    return []


def _fastest(run: Run) -> list[str]:
    known = _known(run, "latency_ms")
    if not known:
        return []
    (first, best), *others = sorted(known.items(), key=lambda item: item[1].mean or 0)
    sentence = (
        f"{first} {'takes' if not others else 'is the fastest with'} {significant(best.mean or 0)}{_SPACE}ms an image"
    )
    if others and best.mean:
        slowest, value = others[-1]
        sentence += f"; {slowest} takes {(value.mean or 0) / best.mean:.1f} times as long"
    return [f"{sentence}."]


def _known(run: Run, name: str) -> dict[str, Value]:
    values = {model: overall(run, model, BY_NAME[name]) for model in run.models}
    return {model: value for model, value in values.items() if value.mean is not None}


def _written(name: str, value: Value) -> str:
    text = BY_NAME[name].text
    return text(value.mean or 0) + ("" if value.spread is None else f" ± {text(value.spread, value.mean)}")


def _extent(data: int, seeds: int) -> str:
    if data == 1:
        return "" if seeds == 1 else f" over {seeds} seeds"
    return f" over {data} data sets" + ("" if seeds == 1 else f" and {seeds} seeds")


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.0f}{_SPACE}%)"


def _failures(number: int) -> str:
    return "One training failed" if number == 1 else f"{number} trainings failed"
