"""The verdict in plain sentences."""

from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.benchmark.tables import Average, shown
from anomalib_mixedteacher.report.run import RANKING, Alarms, Run

_PRAISE = {
    "image_AUROC": "tells defective images from good ones best",
    "pixel_AUROC": "shows best where defects are",
}


def verdict(run: Run) -> dict[str, str]:
    """Say in a few sentences which model is best, how it does at its threshold, and which one is fastest.

    Args:
        run: The run.

    Returns:
        Sentences by a heading of a word or two.
    """
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
