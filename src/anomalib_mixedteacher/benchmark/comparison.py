"""What a benchmark measured, beside what was published."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from anomalib_mixedteacher.benchmark.published import Figure, Published
from anomalib_mixedteacher.benchmark.result import Result
from anomalib_mixedteacher.benchmark.run_folder import Failure
from anomalib_mixedteacher.benchmark.tables import COLUMNS, Speed, group, summarize

UNKNOWN = "unknown"
"""What stands in the place of a figure that is not known."""

_PRETRAINED = "imagenet"
_SHOWN_ANYWAY = "image_AUROC"
_HEAD = ("model", "metric", "measured", "published", "difference", "source")
_TITLES = {column.key: column.title for column in COLUMNS}
_DIGITS = {column.key: column.digits for column in COLUMNS}


@dataclass(frozen=True)
class _Place:
    """A category, or a mean of categories, with the results there."""

    title: str
    data: str
    category: str | None
    results: Sequence[Result]


def to_markdown(results: Sequence[Result], failures: Sequence[Failure], speed: Speed, published: Published) -> str:
    """Write a table for each category and each published mean, then the sources and what a reader must know.

    Args:
        results: Finished cells of a benchmark.
        failures: Its failed cells.
        speed: Latency and throughput by cell name.
        published: The published figures.
    """
    notes: dict[str, int] = {}
    parts = []
    for place in _places(results, published.means):
        lines = [f"| {' | '.join(_HEAD)} |", "| --- " * len(_HEAD) + "|"]
        for model, cells in group(place.results, "model").items():
            first = cells[0].cell
            figures = published.find(first.class_path, first.init_args, place.data, place.category)
            lines += [f"| {model} | {row} |" for row in _rows(cells, speed, figures, notes)]
        parts.append(f"### {place.title}\n\n" + "\n".join(lines))
    if notes:
        parts.append("### Sources\n\n" + "\n".join(f"{number}. {note}" for note, number in notes.items()))
    parts.append("### Remarks\n\n" + "\n".join(f"- {remark}" for remark in _remarks(results, failures, published)))
    return "\n\n".join(parts) + "\n"


def _places(results: Sequence[Result], means: Mapping[str, Sequence[str]]) -> Iterator[_Place]:
    for title, cells in group(results, "data").items():
        yield _Place(title, cells[0].cell.data_class, _category(cells[0]), cells)
    for data_class, cells in group(results, "data_class").items():
        for name, categories in means.items():
            if whole := _whole(cells, categories):
                yield _Place(f"Mean of {', '.join(categories)}", data_class, name, whole)


def _whole(results: Sequence[Result], categories: Sequence[str]) -> list[Result]:
    """Take the results on some categories, of those models and seeds that have them all: a part has another mean."""
    found: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        if _category(result) in categories:
            found.setdefault((result.cell.model, result.cell.seed), []).append(result)
    whole = [cells for cells in found.values() if {_category(cell) for cell in cells} == set(categories)]
    return [result for cells in whole for result in cells]


def _category(result: Result) -> str | None:
    return result.cell.data_args.get("category")


def _rows(results: Sequence[Result], speed: Speed, figures: Sequence[Figure], notes: dict[str, int]) -> Iterator[str]:
    measured = summarize(results, speed)
    if not figures:
        yield " | ".join([_TITLES[_SHOWN_ANYWAY], _measured(measured.get(_SHOWN_ANYWAY), 3), UNKNOWN, "-", "-"])
    for figure in figures:
        value, digits = measured.get(figure.metric), _DIGITS[figure.metric]
        difference = "-" if value is None else f"{value[0] - figure.value:+.{digits}f}"
        yield " | ".join([
            _TITLES[figure.metric],
            _measured(value, digits),
            f"{figure.value:.{digits}f}",
            "not comparable" if figure.not_comparable else difference,
            str(notes.setdefault(_note(figure), len(notes) + 1)),
        ])  # fmt: skip


def _measured(value: tuple[float, float | None] | None, digits: int) -> str:
    if value is None:
        return "-"
    middle, spread = value
    return f"{middle:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _note(figure: Figure) -> str:
    reason = f" Not comparable: {figure.not_comparable}." if figure.not_comparable else ""
    return f"{figure.source}. {figure.protocol}{reason}"


def _remarks(results: Sequence[Result], failures: Sequence[Failure], published: Published) -> Iterator[str]:
    seeds = sorted({result.cell.seed for result in results})
    spread = "± is the standard deviation over them" if len(seeds) > 1 else "there is no spread to show"
    yield f"Measured with seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}: {spread}."
    yield f"'{UNKNOWN}' is a published figure that is not at hand, not one that does not exist."
    data = dict.fromkeys(result.cell.data_class.rpartition(".")[2] for result in results)
    yield from (published.remarks[name] for name in data if name in published.remarks)
    weights = {result.cell.teacher_weights for result in results} - {_PRETRAINED}
    if weights:
        yield (
            f"The teachers' weights are {', '.join(sorted(weights))}, not {_PRETRAINED}: with other weights no "
            "difference says anything about the method."
        )
    made = {(result.made.get("version"), result.made.get("processor")) for result in results}
    for version, processor in sorted(made, key=str):
        yield f"Measured with version {version} on {processor}."
    for failure in failures:
        yield f"{failure.cell.model} on {failure.cell.data}, seed {failure.cell.seed}, failed: {failure.message}"
