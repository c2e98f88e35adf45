"""Train models on one split with the same teacher weights, and print their AUROC as a table.

Run ``python -m anomalib_mixedteacher.benchmark.compare --help``.
"""

import argparse
import json
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

from anomalib_mixedteacher.benchmark.arguments import parse_arguments
from anomalib_mixedteacher.benchmark.cell import Row, describe, maps_of, run
from anomalib_mixedteacher.benchmark.costs import cost_table, measure_costs
from anomalib_mixedteacher.benchmark.exported_file import exported_path
from anomalib_mixedteacher.data._tiles import DEFECT_KINDS
from anomalib_mixedteacher.data.defects import DEFECTS
from anomalib_mixedteacher.data.textures import FAMILIES
from anomalib_mixedteacher.errors import ConfigurationError, MixedTeacherError


def markdown(rows: list[Row]) -> str:
    """Format results as a Markdown table: one line a model and teacher, mean and standard deviation over seeds."""
    metrics = list(dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, float) and "gib" not in k))
    lines = ["| " + " | ".join(["model", "teachers", "seeds", *metrics]) + " |", "| --- " * (len(metrics) + 3) + "|"]
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        model = " ".join([row["model"], *(f"{key}={value}" for key, value in row["arguments"].items())])
        cells.setdefault((model, row["teacher_weights"]), []).append(row)
    for (model, weights), group in cells.items():
        values = [torch.tensor([row[metric] for row in group if metric in row]) for metric in metrics]
        texts = [_spread(value) for value in values]
        lines.append("| " + " | ".join([model, Path(weights).name, str(len(group)), *texts]) + " |")
    return "\n".join(lines)


def _spread(values: torch.Tensor) -> str:
    if not len(values):
        return ""
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


def _finished(output: Path | None) -> list[Row]:
    """Rows that an earlier, interrupted call left behind; what it left of a line is removed from the file."""
    if output is None or not output.exists():
        return []
    try:
        text = output.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Cannot read {output} ({error}): give a file of this command's results, or a new one, as --output."
        raise ConfigurationError(msg) from error
    lines = text.splitlines()
    rows = [_row(line) for line in lines]
    if rows and rows[-1] is None and lines[-1].startswith("{"):
        print(f"compare: {output} ended in the middle of a result, which is left out.", file=sys.stderr)
        del rows[-1], lines[-1]
    if None in rows:
        msg = (
            f"Line {rows.index(None) + 1} of {output} is no result of this command: remove the line, or give another "
            "file as --output."
        )
        raise ConfigurationError(msg)
    if (whole := "".join(f"{line}\n" for line in lines)) != text:  # or the next result would be part of the last line
        place = output.resolve()
        unfinished = place.with_name(f".{place.name}.{os.getpid()}")
        unfinished.write_text(whole, encoding="utf-8")
        unfinished.replace(place)
    return [row for row in rows if row]


def _row(line: str) -> Row | None:
    """Read a line; ``None`` if it holds no result."""
    if not line.strip():
        return {}
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"model", "arguments", "data"} <= row.keys() else None


def main() -> int:
    """Run the command line."""
    settings = _parser().parse_args()
    rows: list[Row] = []
    try:
        _check_pool(settings)
        earlier = _finished(settings.output)
        grid = product(settings.data, settings.seeds, settings.teacher_weights, settings.models)
        for data, seed, weights, model in grid:
            name, _, pairs = model.partition(":")
            arguments = parse_arguments(pairs)
            if "fusion" in arguments:
                msg = "Give fusions as --fusions: one training serves them all."
                raise ConfigurationError(msg)
            wanted = {"model": name, **describe(data, weights, settings, seed)}
            results = _results(earlier, wanted, arguments, settings)
            if not results and (old := _versions(earlier, wanted, arguments, settings)):
                print(f"compare: {model} on {data} is trained anew: its result is {old}'s.", file=sys.stderr)
            if not results or (settings.costs and not exported_path(settings.costs / name).exists()):
                results = run(name, data, weights, settings, seed, **arguments)
                _append(results, settings.output)
            rows += results
        for data in settings.data:
            print(f"\n{data}\n\n{markdown([row for row in rows if row['data'] == data])}")
        if settings.costs:
            names = list(dict.fromkeys(model.partition(":")[0] for model in settings.models))
            costs = measure_costs({name: exported_path(settings.costs / name) for name in names}, settings.image_size)
            print(f"\n{cost_table(costs, rows)}")
    except MixedTeacherError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare", description=__doc__)
    parser.add_argument(
        "--data", nargs="+", choices=["MagneticTile", "SyntheticTextures", *FAMILIES], default=["SyntheticTextures"]
    )
    parser.add_argument("--root", help="folder of the magnetic tiles")
    parser.add_argument(
        "--models", nargs="+", default=["MixedTeacher", "Stfpm", "Patchcore"], metavar="MODEL[:key=value,...]"
    )
    parser.add_argument("--teacher-weights", nargs="+", default=["imagenet"], metavar="SOURCE")
    parser.add_argument("--peer-layers", nargs="+", help="layers of Msfd, Stfpm and Patchcore, as in layer1 layer2")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100, help="for the models that are trained in epochs")
    parser.add_argument("--fusions", nargs="+", default=["normalized_product"], help="of MixedTeacher")
    parser.add_argument("--maps", nargs="+", default=[], metavar="key=value,...", help="of Msfd's or Mkd's anomaly map")
    parser.add_argument("--pool", nargs="+", default=[], help="kinds of defect to take together in one more column")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--costs", type=Path, help="folder for exports: also count and time one model of each kind")
    parser.add_argument("--progress", action="store_true", help="show a progress bar")
    parser.add_argument(
        "--output",
        type=Path,
        help="file to append results to; what it holds of the same settings, --root and version of this package is not "
        "run again",
    )
    return parser


def _results(rows: list[Row], wanted: Row, arguments: dict[str, Any], settings: argparse.Namespace) -> list[Row]:
    """Find a run's rows among finished ones: one a kind of map, with the pooled kinds of defect; all or none."""
    cells = [arguments | chosen for chosen in maps_of(wanted["model"], settings)]
    pool = {"+".join(settings.pool)} if settings.pool else set()
    fitting = [row for row in rows if pool <= row.keys() and all(row.get(k) == v for k, v in wanted.items())]
    found = [next((row for row in fitting if row["arguments"] == cell), None) for cell in cells]
    return [row for row in found if row] if all(found) else []


def _versions(rows: list[Row], wanted: Row, arguments: dict[str, Any], settings: argparse.Namespace) -> str:
    """Name the other versions of the package whose rows would serve, if any; old rows do not know their root."""
    others = [row for row in rows if row.get("version") != wanted["version"]]
    same = {key: value for key, value in wanted.items() if key not in {"root", "version"}}
    found = _results(others, same, arguments, settings)
    return ", ".join(sorted({f"version {row.get('version', 'unknown')}" for row in found}))


def _check_pool(settings: argparse.Namespace) -> None:
    """Refuse kinds of defect that a data set has not: without an image of a kind there is no AUROC."""
    for data in settings.data:
        known = DEFECT_KINDS if data == "MagneticTile" else tuple(DEFECTS)
        if unknown := [kind for kind in settings.pool if kind not in known]:
            msg = f"{data} has no defects called {', '.join(unknown)}: give --pool some of {', '.join(known)}."
            raise ConfigurationError(msg)


def _append(rows: list[Row], output: Path | None) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    print(lines, end="", flush=True)
    if output:
        with output.open("a") as file:
            file.write(lines)


if __name__ == "__main__":
    raise SystemExit(main())
