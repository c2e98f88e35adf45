"""The summary of a benchmark: CSV with a row for each cell, JSON, and Markdown with mean and spread over seeds."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from anomalib_mixedteacher.benchmark.result import GOOD, REFERENCE, Result
from anomalib_mixedteacher.benchmark.run_folder import Failure, RunFolder

Speed = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        key: Name in CSV and JSON, and of the value in :func:`values_of`.
        title: Head in Markdown.
        digits: Decimals in Markdown.
        best: ``max`` or ``min``, whichever is better; ``None`` where neither is.
        cost: Whether it tells what a model costs rather than what it finds; these have a table of their own.
    """

    key: str
    title: str
    digits: int
    best: Any
    cost: bool = False


COLUMNS = (
    Column("image_AUROC", "image AUROC", 3, max),
    Column("image_F1", "image F1", 3, max),
    Column("image_AP", "image AP", 3, max),
    Column("pixel_AUROC", "pixel AUROC", 3, max),
    Column("PRO", "PRO", 3, max),
    Column("pixel_F1", "pixel F1", 3, max),
    Column("false_alarm_rate", "false alarms", 3, None),
    Column("found_rate", "defects found", 3, max),
    Column("train_seconds", "training s", 0, min, cost=True),
    Column("peak_memory_mb", "peak MB", 0, min, cost=True),
    Column("stored_millions", "numbers stored M", 2, min, cost=True),
    Column("gmacs", "multiply-adds G", 2, min, cost=True),
    Column("latency_ms", "latency ms", 1, min, cost=True),
    Column("latency_ratio", f"latency / {REFERENCE}", 2, min, cost=True),
    Column("images_per_second", "images/s", 1, max, cost=True),
    Column("file_mb", "file MB", 1, min, cost=True),
)


def values_of(result: Result, speed: Speed) -> dict[str, float]:
    """Give a cell's figures by the keys of :data:`COLUMNS`; those that could not be had are left out.

    Args:
        result: A finished cell.
        speed: Latency and throughput by cell name.
    """
    defects = [counts for kind, counts in result.alarms.items() if kind != GOOD]
    values = {**result.metrics, **result.costs, **speed.get(result.cell.name, {})}
    if "stored_numbers" in result.costs:
        values["stored_millions"] = result.costs["stored_numbers"] / 1e6
    if defects:
        values["found_rate"] = sum(found for found, _ in defects) / sum(count for _, count in defects)
    return {column.key: values[column.key] for column in COLUMNS if column.key in values}


def summarize(
    results: Sequence[Result], speed: Speed, needed: Mapping[str, set[str]] | None = None
) -> dict[str, tuple[float, float | None]]:
    """Give mean and spread over seeds, averaged over data sets.

    Args:
        results: Cells of one model.
        speed: Latency and throughput by cell name.
        needed: Data sets that a figure's mean is over, by key; seeds that lack one do not count, since means over
            different data sets cannot be compared. By default whatever is there.

    Returns:
        By key: the mean over data sets of the means over seeds, and the standard deviation over seeds of the mean over
        data sets (``None`` with one seed).
    """
    seeds: dict[str, dict[int, dict[str, float]]] = {}
    for result in results:
        for key, value in values_of(result, speed).items():
            seeds.setdefault(key, {}).setdefault(result.cell.seed, {})[result.cell.data] = value
    summary = {}
    for key, by_seed in seeds.items():
        complete = [values for values in by_seed.values() if needed is None or values.keys() == needed[key]]
        if complete:
            means = [mean(values.values()) for values in complete]
            summary[key] = mean(means), stdev(means) if len(means) > 1 else None
    return summary


def to_csv(results: Sequence[Result], speed: Speed) -> str:
    """Write a row for each cell."""
    text = io.StringIO()
    head = ["model", "data", "seed", "teacher_weights", "image_size", "epochs"]
    writer = csv.DictWriter(text, [*head, *[column.key for column in COLUMNS], "cell"], lineterminator="\n")
    writer.writeheader()
    for result in results:
        described = {name: getattr(result.cell, name) for name in head}
        writer.writerow({**described, **values_of(result, speed), "cell": result.cell.name})
    return text.getvalue()


def to_json(results: Sequence[Result], failures: Sequence[Failure], speed: Speed) -> str:
    """Write all cells, and per data set and over all of them the figures of each model."""
    grouped = {data: _by_model(cells, speed) for data, cells in group(results, "data").items()}
    values = {
        "cells": {result.cell.name: values_of(result, speed) for result in results},
        "data": grouped,
        "all": _by_model(results, speed),
        "failures": {failure.cell.name: failure.message for failure in failures},
    }
    return json.dumps(values, indent=1) + "\n"


def to_markdown(results: Sequence[Result], failures: Sequence[Failure], speed: Speed) -> str:
    """Write one table for each data set, one over all, one of the costs, and what is missing and why."""
    groups = group(results, "data")
    parts = [f"### {data}\n\n{_table(cells, speed)}" for data, cells in groups.items()]
    mean_over = f"mean over {len(groups)} data sets"
    if len(groups) > 1:
        parts.append(f"### {mean_over.capitalize()}\n\n{_table(results, speed)}")
    if costs := _table(results, speed, costs=True):
        parts.append(f"### Costs{f', {mean_over}' if len(groups) > 1 else ''}\n\n{costs}")
    if remarks := [*_left_out(groups, speed), *_remarks(results, failures)]:
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(parts) + "\n"


def group(results: Sequence[Result], attribute: str) -> dict[str, list[Result]]:
    """Group results by an attribute of their cells, in the order in which they come."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(getattr(result.cell, attribute), []).append(result)
    return groups


def _by_model(results: Sequence[Result], speed: Speed) -> dict[str, dict[str, tuple[float, float | None]]]:
    needed: dict[str, set[str]] = {}
    for result in results:
        for key in values_of(result, speed):
            needed.setdefault(key, set()).add(result.cell.data)
    return {model: summarize(cells, speed, needed) for model, cells in group(results, "model").items()}


def _table(results: Sequence[Result], speed: Speed, costs: bool = False) -> str:
    """Write the table of quality, or the one of costs, which is empty where nothing is known of them."""
    rows = _by_model(results, speed)
    known = [column for column in COLUMNS if any(column.key in row for row in rows.values())]
    columns = [column for column in known if column.cost == costs]
    if costs and not columns:
        return ""
    table = [["model", *[column.title for column in columns]], ["---"] * (len(columns) + 1)]
    table += [[model, *[_shown(row.get(c.key), c.digits) for c in columns]] for model, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def _left_out(groups: Mapping[str, Sequence[Result]], speed: Speed) -> list[str]:
    """Say for each column which data sets its mean is not over."""
    known = {data: {key for result in cells for key in values_of(result, speed)} for data, cells in groups.items()}
    remarks = []
    for column in COLUMNS:
        lacking = [data for data, keys in known.items() if column.key not in keys]
        if 0 < len(lacking) < len(groups):
            remarks.append(f"{column.title}: the mean leaves out {', '.join(lacking)}, where no model has it.")
    return remarks


def _shown(value: tuple[float, float | None] | None, digits: int) -> str:
    if value is None:
        return "-"
    middle, spread = value
    return f"{middle:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _remarks(results: Sequence[Result], failures: Sequence[Failure]) -> list[str]:
    said: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for metric, reason in result.missing.items():
            whose = "" if _lack(results, result.cell.data, reason) else f"{result.cell.model} "
            said.setdefault((result.cell.data, reason), []).append(f"{whose}{metric}")
        for note in result.notes:
            said.setdefault((result.cell.data, note), []).append(result.cell.model)
    remarks = [f"{data} ({', '.join(dict.fromkeys(about))}): {text}" for (data, text), about in said.items()]
    remarks += [f"{f.cell.model} on {f.cell.data}, seed {f.cell.seed}, failed: {f.message}" for f in failures]
    return remarks + _versions(results)


def _versions(results: Sequence[Result]) -> list[str]:
    """Say which cells were trained by which version of the package, where there are several."""
    trained: dict[str, list[str]] = {}
    for result in results:
        cell = f"{result.cell.model} on {result.cell.data}"
        trained.setdefault(result.made.get("version", "unknown"), []).append(cell)
    if len(trained) < 2:
        return []
    return [f"Trained with version {name}: {', '.join(dict.fromkeys(trained[name]))}." for name in trained]


def _lack(results: Sequence[Result], data: str, reason: str) -> bool:
    """Tell whether all models lack something on a data set for the same reason."""
    return all(reason in result.missing.values() for result in results if result.cell.data == data)


def write_tables(folder: RunFolder, speed: Speed) -> str:
    """Write the summary into the run folder.

    Args:
        folder: The run folder.
        speed: Latency and throughput by cell name.

    Returns:
        The Markdown.
    """
    results, failures = folder.results(), folder.failures()
    markdown = to_markdown(results, failures, speed)
    folder.write(folder.path / "table.csv", to_csv(results, speed))
    folder.write(folder.path / "table.json", to_json(results, failures, speed))
    folder.write(folder.path / "table.md", markdown)
    return markdown
