"""How strongly MixedTeacher's teacher features are whitened: other ridges, each with a training of its own.

    python benchmarks/whitening.py --output runs/whitening.jsonl
    python benchmarks/whitening.py --output runs/whitening.jsonl --sets fabric_01 magnetic_tile

The ridge is a share of the mean variance of a map's channels. A large one whitens hardly: the student learns the
directions as they are. Each training adds a line; the same command goes on where it stopped and ends with the table,
also beside the output (.md).
"""

import argparse
import json
import logging
import warnings
from itertools import product
from pathlib import Path
from statistics import fmean

from anomalib_mixedteacher.components import whitening
from teachers import METRICS, SETS, measure


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the sets")
    parser.add_argument("--output", type=Path, required=True, help="lines of results, added to")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["fabric_03", "commutator"])
    parser.add_argument("--ridges", nargs="+", type=float, default=[0.01, 0.1, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=50)
    options = parser.parse_args()
    network = {"architecture": "fast", "efficientnet": None, "efficientnet_blocks": (4, 6), "image_size": 256}
    settings = argparse.Namespace(**vars(options), **network)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # a page for each training
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    rows = [row for row in map(json.loads, lines) if (row["seed"], row["epochs"]) == (options.seed, options.epochs)]
    done = {(row["ridge"], row["set"]) for row in rows}
    for ridge, name in product(options.ridges, options.sets):
        if (ridge, name) in done:
            continue
        whitening._RIDGE = ridge
        figures = measure(name, options.seed, "packaged", settings, None)
        rows.append({"ridge": ridge, "set": name, "seed": options.seed, "epochs": options.epochs, **figures})
        with options.output.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    heads = [f"{name}: {label}" for name in options.sets for label in METRICS.values()]
    lines = ["| ridge | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for ridge in options.ridges:
        of_ridge = [row for row in rows if row["ridge"] == ridge]
        cells = [
            f"{fmean(row[metric] for row in of_ridge if row['set'] == name):.3f}"
            for name, metric in product(options.sets, METRICS)
        ]
        lines.append(f"| {ridge:g} | " + " | ".join(cells) + " |")
    options.output.with_suffix(".md").write_text("### Whitening\n\n" + "\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
