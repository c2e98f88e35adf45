"""The summary of a benchmark: CSV with a row for each cell, and Markdown with mean and spread over seeds."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import pandas as pd

from anomalib_mixedteacher.benchmark.result import Failure, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder, Speed

REFERENCE = "Stfpm"  # the model that the others' latency is compared with
Average = tuple[float, float | None]
_DESCRIBED = ("model", "data", "group", "seed", "teacher_weights", "image_size", "max_epochs", "version")


# title and decimals in Markdown by the key in CSV and of values_of
COLUMNS = {
    "image_AUROC": ("image AUROC", 3),
    "image_AP": ("image AP", 3),
    "pixel_AUROC": ("pixel AUROC", 3),
    "PRO": ("PRO", 3),
    "false_alarm_rate": ("false alarms", 3),
    "found_rate": ("defects found", 3),
    "train_seconds": ("training s", 0),
    "wall_seconds": ("wall s", 0),
    "latency_ms": ("latency ms", 1),
    "latency_ratio": (f"latency / {REFERENCE}", 2),
    "int8_ratio": (f"INT8 latency / {REFERENCE}", 2),
    "images_per_second": ("images/s", 1),
}


def values_of(result: Result, speed: Speed) -> dict[str, float]:
    """Give a cell's figures by the keys of :data:`COLUMNS`; those that could not be had are left out."""
    values = {**result.metrics, **result.costs, **speed.get(result.cell.name, {})}
    return {key: values[key] for key in COLUMNS if key in values}


def average(
    results: Sequence[Result], speed: Speed, needed: Mapping[str, set[str]] | None = None
) -> dict[str, Average]:
    """Give one model's means and spreads over seeds, averaged over data sets; the categories of one count as one.

    Args:
        results: Cells of one model.
        speed: Latencies by cell name.
        needed: Data sets that a figure's mean is over, by key: a seed that lacks one does not count.
    """
    values: dict[str, dict[int, dict[str, dict[str, float]]]] = {}  # by key, seed, group and data set
    for result in results:
        for key, value in values_of(result, speed).items():
            groups = values.setdefault(key, {}).setdefault(result.cell.seed, {})
            groups.setdefault(result.cell.group, {})[result.cell.data] = value
    summary: dict[str, Average] = {}
    for key, seeds in values.items():
        means = [
            mean(mean(sets.values()) for sets in groups.values())
            for groups in seeds.values()
            if needed is None or {data for sets in groups.values() for data in sets} == needed[key]
        ]
        if means:
            summary[key] = mean(means), stdev(means) if len(means) > 1 else None
    return summary


def group(results: Sequence[Result], attribute: str) -> dict[str, list[Result]]:
    """Group results by an attribute of their cells, in the order in which they come."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(getattr(result.cell, attribute), []).append(result)
    return groups


def by_model(results: Sequence[Result], speed: Speed) -> dict[str, dict[str, Average]]:
    """Average each model's figures over the data sets on which any model has them."""
    needed: dict[str, set[str]] = {}
    for result in results:
        for key in values_of(result, speed):
            needed.setdefault(key, set()).add(result.cell.data)
    return {model: average(cells, speed, needed) for model, cells in group(results, "model").items()}


def averaged(results: Sequence[Result], means: Mapping[str, Sequence[str]]) -> dict[str, list[Result]]:
    """Give the results of each table by its title: one for each data set, then the means, by default one over all."""
    groups = group(results, "group")
    tables = {}
    for name, cells in groups.items():
        categories = len(group(cells, "data"))
        tables[f"{name} (mean of {categories})" if categories > 1 else name] = cells
    if not means and len(groups) > 1:
        means = {f"Mean over {len(groups)} data sets": list(groups)}
    for name, members in means.items():
        if found := [result for member in members for result in groups.get(member, [])]:
            tables[name] = found
    return tables


def to_markdown(tables: Mapping[str, Sequence[Result]], failures: Sequence[Failure], speed: Speed) -> str:
    """Write the tables, and what is missing and why."""
    parts = [f"### {title}\n\n{_table(by_model(cells, speed))}" for title, cells in tables.items()]
    remarks = _remarks(tables, failures, speed)
    return "\n\n".join([*parts, *(["\n".join(f"- {remark}" for remark in remarks)] if remarks else [])]) + "\n"


def _table(rows: Mapping[str, Mapping[str, Average]]) -> str:
    keys = [key for key in COLUMNS if any(key in row for row in rows.values())]
    table = [["model", *[COLUMNS[key][0] for key in keys]], ["---"] * (len(keys) + 1)]
    table += [[model, *[shown(row.get(key), COLUMNS[key][1]) for key in keys]] for model, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def shown(value: Average | None, digits: int) -> str:
    """Write a mean with its spread."""
    if value is None:
        return "-"
    return f"{value[0]:.{digits}f}" + ("" if value[1] is None else f" ± {value[1]:.{digits}f}")


def _remarks(tables: Mapping[str, Sequence[Result]], failures: Sequence[Failure], speed: Speed) -> list[str]:
    """Say which data sets a mean leaves out, what is missing and why, and what a reader must know."""
    remarks, said = [], dict[tuple[str, str], list[str]]()
    for title, cells in tables.items():
        sets = {data: {key for r in of for key in values_of(r, speed)} for data, of in group(cells, "data").items()}
        for key, (head, _) in COLUMNS.items():
            lacking = [data for data, keys in sets.items() if key not in keys]
            if 0 < len(lacking) < len(sets):
                remarks.append(f"{title}, {head}: leaves out {', '.join(lacking)}, where no model has it.")
    for result in {result.cell.name: result for cells in tables.values() for result in cells}.values():
        for whose, text in [*result.missing.items(), *((result.cell.model, note) for note in result.notes)]:
            said.setdefault((result.cell.data, text), []).append(whose)
    remarks += [f"{data} ({', '.join(dict.fromkeys(about))}): {text}" for (data, text), about in said.items()]
    return remarks + [f"{f.cell.model} on {f.cell.data}, seed {f.cell.seed}, failed: {f.message}" for f in failures]


def write_tables(folder: RunFolder) -> str:
    """Write the summary into the run folder, and give its Markdown."""
    results, speed = folder.results(), folder.known_speed()
    markdown = to_markdown(averaged(results, folder.index()["means"]), folder.failures(), speed)
    rows = [{**vars(result.cell), **values_of(result, speed), "cell": result.cell.name} for result in results]
    pd.DataFrame(rows, columns=[*_DESCRIBED, *COLUMNS, "cell"]).to_csv(folder.path / "table.csv", index=False)
    folder.write(folder.path / "table.md", markdown)
    return markdown
