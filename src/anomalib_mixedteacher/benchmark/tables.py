"""The summary of a benchmark: CSV with a row for each cell, and Markdown with mean and spread over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import pandas as pd

from anomalib_mixedteacher.benchmark.result import Failure, Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder, Speed

REFERENCE = "Stfpm"
"""The model that the others' latency is compared with."""

Average = tuple[float, float | None]
_DESCRIBED = ("model", "data", "group", "seed", "teacher_weights", "image_size", "max_epochs", "version")


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        key: Name in CSV, and of the value in :func:`values_of`.
        title: Head in Markdown.
        digits: Decimals in Markdown.
    """

    key: str
    title: str
    digits: int = 3


COLUMNS = (
    Column("image_AUROC", "image AUROC"),
    Column("image_AP", "image AP"),
    Column("pixel_AUROC", "pixel AUROC"),
    Column("PRO", "PRO"),
    Column("false_alarm_rate", "false alarms"),
    Column("found_rate", "defects found"),
    Column("train_seconds", "training s", 0),
    Column("wall_seconds", "wall s", 0),
    Column("latency_ms", "latency ms", 1),
    Column("latency_ratio", f"latency / {REFERENCE}", 2),
    Column("int8_ratio", f"INT8 latency / {REFERENCE}", 2),
    Column("images_per_second", "images/s", 1),
)


def values_of(result: Result, speed: Speed) -> dict[str, float]:
    """Give a cell's figures by the keys of :data:`COLUMNS`; those that could not be had are left out.

    Args:
        result: A finished cell.
        speed: Latencies by cell name.
    """
    values = {**result.metrics, **result.costs, **speed.get(result.cell.name, {})}
    return {column.key: values[column.key] for column in COLUMNS if column.key in values}


def average(
    results: Sequence[Result], speed: Speed, needed: Mapping[str, set[str]] | None = None
) -> dict[str, Average]:
    """Give mean and spread over seeds, averaged over data sets; the categories of one count as one.

    Args:
        results: Cells of one model.
        speed: Latencies by cell name.
        needed: Data sets that a figure's mean is over, by key; seeds that lack one do not count, since means over
            different data sets cannot be compared.

    Returns:
        By key of :data:`COLUMNS`; no spread for a single seed.
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
    """Give the results of each table by its title: one for each data set, and the means over several.

    Args:
        results: All results.
        means: Names of data sets by the mean's name; by default one over all.
    """
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


def to_csv(results: Sequence[Result], speed: Speed) -> str:
    """Write a row for each cell."""
    columns = [*_DESCRIBED, *[column.key for column in COLUMNS], "cell"]
    rows = [{**vars(r.cell), **values_of(r, speed), "cell": r.cell.name} for r in results]
    return str(pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n"))


def to_markdown(tables: Mapping[str, Sequence[Result]], failures: Sequence[Failure], speed: Speed) -> str:
    """Write the tables, and what is missing and why."""
    parts = [f"### {title}\n\n{_table(by_model(cells, speed))}" for title, cells in tables.items()]
    if remarks := [*_left_out(tables, speed), *_remarks(tables, failures)]:
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(parts) + "\n"


def _table(rows: Mapping[str, Mapping[str, Average]]) -> str:
    columns = [column for column in COLUMNS if any(column.key in row for row in rows.values())]
    table = [["model", *[column.title for column in columns]], ["---"] * (len(columns) + 1)]
    table += [[model, *[shown(row.get(c.key), c.digits) for c in columns]] for model, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def shown(value: Average | None, digits: int) -> str:
    """Write a mean with its spread."""
    if value is None:
        return "-"
    middle, spread = value
    return f"{middle:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _left_out(tables: Mapping[str, Sequence[Result]], speed: Speed) -> list[str]:
    """Say for each column of a mean which data sets it is not over."""
    remarks = []
    for title, cells in tables.items():
        sets = {data: {key for r in of for key in values_of(r, speed)} for data, of in group(cells, "data").items()}
        for column in COLUMNS:
            lacking = [data for data, keys in sets.items() if column.key not in keys]
            if 0 < len(lacking) < len(sets):
                remarks.append(f"{title}, {column.title}: leaves out {', '.join(lacking)}, where no model has it.")
    return remarks


def _remarks(tables: Mapping[str, Sequence[Result]], failures: Sequence[Failure]) -> list[str]:
    results = {result.cell.name: result for cells in tables.values() for result in cells}.values()
    said: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for metric, reason in result.missing.items():
            said.setdefault((result.cell.data, reason), []).append(metric)
        for note in result.notes:
            said.setdefault((result.cell.data, note), []).append(result.cell.model)
    remarks = [f"{data} ({', '.join(dict.fromkeys(about))}): {text}" for (data, text), about in said.items()]
    return remarks + [f"{f.cell.model} on {f.cell.data}, seed {f.cell.seed}, failed: {f.message}" for f in failures]


def write_tables(folder: RunFolder) -> str:
    """Write the summary into the run folder, and give its Markdown."""
    results, speed = folder.results(), folder.known_speed()
    markdown = to_markdown(averaged(results, folder.means), folder.failures(), speed)
    folder.write(folder.path / "table.csv", to_csv(results, speed))
    folder.write(folder.path / "table.md", markdown)
    return markdown
