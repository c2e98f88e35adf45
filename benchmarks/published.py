"""Published figures beside a benchmark's, with the source and the protocol of each.

mixedteacher benchmark configs/benchmark/mvtec_textures.yaml --root PATH/TO/MVTecAD --output RUN
python benchmarks/published.py RUN

The figures are in published.yaml; what is not there is not known to this project.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli

from anomalib_mixedteacher.benchmark.plan import short
from anomalib_mixedteacher.benchmark.result import Result
from anomalib_mixedteacher.benchmark.run_folder import RunFolder, Speed
from anomalib_mixedteacher.benchmark.tables import COLUMNS, average, group, shown
from common import table

HEAD = ["data", "model", "metric", "measured", "published", "difference", "source"]


def main(run: Path) -> None:
    """Print a table, its sources, and what must be known of the data sets.

    Args:
        run: Folder of a benchmark.
    """
    published = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    folder = RunFolder(run)
    results, speed, notes = folder.results(), folder.known_speed(), dict[str, int]()
    rows = []
    for data, category, cells in _places(results, published["means"]):
        for model, of_model in group(cells, "model").items():
            rows += [[data, model, *row] for row in _rows(of_model, category, published["tables"], speed, notes)]
    print(table(HEAD, rows))
    print("\n".join(["", *(f"{number}. {note}" for note, number in notes.items()), ""]))
    classes = dict.fromkeys(short(result.cell.data_class) for result in results)
    print("\n".join(f"- {published['remarks'][name]}" for name in classes if name in published["remarks"]))


def _places(results: Sequence[Result], means: dict[str, list[str]]) -> Iterator[tuple[str, str, list[Result]]]:
    """Yield title, category and results of each data set, and of each mean whose categories are all there."""
    for data, cells in group(results, "data").items():
        yield data, _category(cells[0]), cells
    for name, categories in means.items():
        chosen = [result for result in results if _category(result) in categories]
        for cells in group(chosen, "data_class").values():
            if {_category(cell) for cell in cells} == set(categories):
                yield f"mean of {', '.join(categories)}", name, cells


def _category(result: Result) -> str:
    return str(result.cell.data_args.get("category", ""))


def _rows(
    results: Sequence[Result], category: str, tables: Sequence[dict[str, Any]], speed: Speed, notes: dict[str, int]
) -> Iterator[list[str]]:
    cell, measured = results[0].cell, average(results, speed)
    for entry in tables:
        arguments = entry.get("arguments", {})
        given = {key: cell.init_args.get(key) for key in arguments}
        if (short(cell.class_path), short(cell.data_class), given) != (entry["model"], entry["data"], arguments):
            continue
        for metric, by_category in entry["figures"].items():
            if category in by_category:
                value, (title, digits) = by_category[category], COLUMNS[metric]
                ours, reason = measured.get(metric), entry.get("not_comparable")
                difference = "not comparable" if reason else "-" if ours is None else f"{ours[0] - value:+.{digits}f}"
                note = f"{entry['source']}. {entry['protocol']}" + (f" Not comparable: {reason}." if reason else "")
                number = notes.setdefault(note, len(notes) + 1)
                yield [title, shown(ours, digits), f"{value:.{digits}f}", difference, str(number)]


if __name__ == "__main__":
    auto_cli(main)
