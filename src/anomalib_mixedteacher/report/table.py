"""Means over seeds and data sets, with the reason wherever a figure is missing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from anomalib_mixedteacher.benchmark.result import Result
from anomalib_mixedteacher.benchmark.tables import summarize
from anomalib_mixedteacher.report.columns import COLUMNS, Column
from anomalib_mixedteacher.report.data import SPEED, Run


@dataclass(frozen=True)
class Value:
    """A figure of a model.

    Attributes:
        mean: Mean; ``None`` where it is missing.
        spread: Sample standard deviation over seeds; ``None`` where there are fewer than two.
        notes: Why it is missing, or why seeds are missing in the mean, in sentences.
        part: A sentence that says of how many seeds it is the mean, where some are missing.
        seeds: Of how many seeds it is the mean.
    """

    mean: float | None
    spread: float | None = None
    notes: tuple[str, ...] = ()
    part: str = ""
    seeds: int = 0

    @property
    def footnotes(self) -> tuple[str, ...]:
        """Give the sentences to put below a table."""
        return (f"{self.part} {' '.join(self.notes)}",) if self.part else self.notes


@dataclass
class Entry:
    """A value as a table shows it; ``marks`` are numbers of footnotes."""

    text: str
    spread: str
    sort: float | None
    marks: list[int]
    best: bool = False


@dataclass
class Table:
    """A verdict table.

    Attributes:
        caption: What it is the mean over.
        rows: Entries by model, in the order of :data:`~.columns.COLUMNS`.
        footnotes: Sentences by their number less one.
        remarks: Sentences on whole columns.
    """

    caption: str
    rows: dict[str, list[Entry]]
    footnotes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def on_data_set(run: Run, model: str, data: str, column: Column) -> Value:
    """Average a figure over the seeds of one data set."""
    results = run.of(model, data)
    failed = [f"The training with seed {failure.cell.seed} failed: see above." for failure in run.failed(model, data)]
    known = [result for result in results if run.has(result, column.name)]
    lacking = _unique([run.reason(result, column.name) for result in results if result not in known])
    awaited = run.awaited(model, data)
    notes = _unique([*lacking, *failed, *awaited])
    if not known:
        return Value(None, notes=notes or ("It was not trained on this data set.",))
    return _mean(run, known, column, len(results) + len(failed) + len(awaited), notes)


def overall(run: Run, model: str, column: Column) -> Value:
    """Average a figure over data sets and seeds.

    Only seeds with all data sets on which any model has the figure count: means over different data sets cannot be
    compared.
    """
    needed = averaged_over(run, column)
    values = {data: on_data_set(run, model, data, column) for data in needed or run.data_sets}
    about: dict[str, list[str]] = {}
    for data, value in values.items():
        for note in value.notes:
            about.setdefault(note, []).append(data)
    notes = tuple(f"{', '.join(data)}: {note}" if needed else note for note, data in about.items())
    if not needed or any(value.mean is None for value in values.values()):
        return Value(None, notes=notes)
    known = [result for data in needed for result in run.of(model, data) if run.has(result, column.name)]
    seeds = [result.cell.seed for result in known]
    complete = [result for result in known if seeds.count(result.cell.seed) == len(needed)]
    if not complete:
        return Value(None, notes=("No seed finished on every data set.", *notes))
    return _mean(run, complete, column, len(run.seeds), notes)


def averaged_over(run: Run, column: Column) -> list[str]:
    """Give the data sets on which any model has a figure."""
    return [
        data
        for data in run.data_sets
        if any(run.has(result, column.name) for model in run.models for result in run.of(model, data))
    ]


def tables(run: Run) -> list[Table]:
    """Make the table over all data sets, if there are several, and one for each."""
    models = ranked(run)
    made = []
    if len(run.data_sets) > 1:
        values = {model: [overall(run, model, column) for column in COLUMNS] for model in models}
        table = _table(f"Mean over {len(run.data_sets)} data sets", values)
        for column in COLUMNS:
            lacking = [data for data in run.data_sets if data not in averaged_over(run, column)]
            if lacking and len(lacking) < len(run.data_sets):
                name = f"{column.group}, {column.label}"
                table.remarks.append(f"{name}: the mean leaves out {', '.join(lacking)}, where no model has it.")
        made.append(table)
    return made + [
        _table(data, {model: [on_data_set(run, model, data, column) for column in COLUMNS] for model in models})
        for data in run.data_sets
    ]


def ranked(run: Run) -> list[str]:
    """Sort models by their image AUROC, else by the first figure that any has; those without one come last."""
    for column in COLUMNS:
        means = {model: overall(run, model, column).mean for model in run.models}
        if any(mean is not None for mean in means.values()):
            sign = -1 if column.higher_is_better else 1
            return sorted(means, key=lambda m: (means[m] is None, sign * (means[m] or 0), m))
    return run.models


def _table(caption: str, values: dict[str, list[Value]]) -> Table:
    table = Table(caption, {})
    for model, row in values.items():
        table.rows[model] = [_entry(value, column, table.footnotes) for value, column in zip(row, COLUMNS, strict=True)]
    if len(values) > 1:
        for position, column in enumerate(COLUMNS):
            _mark_best([row[position] for row in table.rows.values()], column)
    return table


def _entry(value: Value, column: Column, footnotes: list[str]) -> Entry:
    marks = []
    for note in value.footnotes:
        if note not in footnotes:
            footnotes.append(note)
        marks.append(footnotes.index(note) + 1)
    text = "-" if value.mean is None else column.text(value.mean)
    spread = "" if value.spread is None else f"± {column.text(value.spread, value.mean)}"
    return Entry(text, spread, value.mean, marks)


def _mark_best(entries: Sequence[Entry], column: Column) -> None:
    known = [entry for entry in entries if entry.sort is not None]
    if len(known) < 2 or not column.has_best:
        return
    best = (max if column.higher_is_better else min)(known, key=lambda entry: entry.sort or 0)
    for entry in known:
        entry.best = entry.text == best.text  # equal as written is equally good


def _mean(run: Run, results: Sequence[Result], column: Column, seeds: int, notes: tuple[str, ...]) -> Value:
    """Average a figure that all of these results have; speed is never measured on all seeds, which needs no note."""
    mean, spread = summarize(results, run.speed)[column.name]
    used = len({result.cell.seed for result in results})
    if used == seeds or column.name in SPEED:
        return Value(mean, spread, seeds=used)
    return Value(mean, spread, notes, f"From {used} of {seeds} seeds.", used)


def _unique(sentences: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sentences))
