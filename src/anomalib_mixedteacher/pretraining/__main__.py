"""Pre-train texture teachers: ``python -m anomalib_mixedteacher.pretraining --output runs/teachers``.

Called again with the same arguments it goes on where it stopped. The output folder is a valid ``teacher_weights``;
backbones may be trained by one command each, with recipes of their own (``make teachers``).
"""

import argparse
import logging
import subprocess
import sys
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from anomalib_mixedteacher import __version__
from anomalib_mixedteacher.components.texture_weights import write_texture_teachers
from anomalib_mixedteacher.errors import ConfigurationError, MixedTeacherError
from anomalib_mixedteacher.pretraining.recipe import LAYERS, Recipe
from anomalib_mixedteacher.pretraining.trainer import GENERATOR_VERSION, Pretrainer


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m anomalib_mixedteacher.pretraining", description="Pre-train texture teachers."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights, the state and the log")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--objectives", nargs="+", type=_objective, default=None, metavar="NAME=WEIGHT", help="defect_contrast=1"
    )
    parser.add_argument("--backbones", nargs="+", default=Recipe.backbones, metavar="NAME")
    for option in fields(Recipe):
        if option.type is int or option.type is float:
            name = f"--{option.name.replace('_', '-')}"
            parser.add_argument(name, type=option.type, default=option.default, metavar=option.type.__name__.upper())
    parser.add_argument("--banks", type=int, help="come back to the first bank of textures after so many")
    settings = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output, device, objectives = settings.pop("output"), settings.pop("device"), settings.pop("objectives")
    if objectives:
        settings["objectives"] = dict(objectives)
    try:
        run(Recipe(**{**settings, "backbones": tuple(settings["backbones"])}), output, device)
    except MixedTeacherError as error:
        print(f"pretraining: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        remedy = "make room there or give another --output, and call again to go on"
        print(f"pretraining: Cannot use {output} ({error.strerror or error}): {remedy}.", file=sys.stderr)
        return 1
    return 0


def run(recipe: Recipe, output: Path, device: str = "cpu") -> None:
    """Train a recipe to its end and write the weights with their manifest.

    Args:
        recipe: What to train.
        output: Folder for the weights, the state and the log.
        device: Where to train.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        msg = f"The device {device!r} cannot be used ({str(error).splitlines()[0]}): choose another --device."
        raise ConfigurationError(msg) from error
    about: dict[str, Any] = {
        "version": datetime.now(timezone.utc).date().isoformat(),
        "package": __version__,
        "generator": GENERATOR_VERSION,
        "commit": _commit(),
        "device": torch.device(device).type,
        "torch": str(torch.__version__),
    }
    pretrainer = Pretrainer(recipe, device, about)
    own = recipe.as_json()
    # a folder a run, so that backbones of different recipes share one output
    pretrainer.fit(output / "+".join(recipe.backbones))
    about = pretrainer.about  # of the run's beginning, where it went on from a state
    entries = {
        name: {**about, "layers": LAYERS[name], "recipe": {**own, "backbones": [name]}} for name in recipe.backbones
    }
    write_texture_teachers(output, {name: pretrainer.weights(name) for name in recipe.backbones}, entries)


def _objective(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    return name, float(weight or 1)


def _commit() -> str:
    """Commit of the working tree, where there is one."""
    folder = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
