"""The package's own command: ``mixedteacher train|test|predict|export|calibrate|benchmark|report``."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

COMMANDS = {
    "train": "Fit a model on good images, then test it.",
    "test": "Test a checkpoint.",
    "predict": "Predict images with a checkpoint, or with an exported model: predict MODEL.xml IMAGES...",
    "export": "Export a checkpoint to OpenVINO, ONNX or torch.",
    "calibrate": "Set a checkpoint's or an exported model's thresholds from good images and a budget for alarms.",
    "benchmark": "Train and measure models side by side.",
    "report": "Make one HTML file of what a benchmark found.",
}
USAGE = """usage: mixedteacher {names} [options]

{commands}

mixedteacher COMMAND --help lists a command's options; predict MODEL.xml --help those for exported models."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status: 0, or 1 after an error that the user can mend, or 2 for a wrong command line, or 3 for a defect if
        ``predict --fail-on-defect`` found one.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in {"-h", "--help"}:
        print(_usage())
        return 0 if args else 2
    if args[0] == "--version":
        from anomalib_mixedteacher import __version__

        print(f"anomalib-mixedteacher {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"mixedteacher: unknown command {args[0]!r}; choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2

    from anomalib_mixedteacher.errors import sentence

    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # the dependencies' own; this package's go through logging
    try:
        return _run(args[0], args[1:])
    except Exception as error:
        if (text := sentence(error)) is None:
            raise
        print(f"mixedteacher: {text}", file=sys.stderr)
        return 1


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return USAGE.format(names=f"{{{','.join(COMMANDS)}}}", commands=commands)


def _run(command: str, args: list[str]) -> int:
    """Run a command; each imports what it needs, so that exported models are judged without anomalib."""
    if command == "predict" and args and not args[0].startswith("-"):
        from mixedteacher_edge import predict

        return predict.main(args)
    if command == "calibrate":
        from mixedteacher_edge import calibrate

        return calibrate.main(args, _calibrate_checkpoint)
    if command == "benchmark":
        from anomalib_mixedteacher.benchmark import command as benchmark

        return benchmark.main(args)
    if command == "report":
        from anomalib_mixedteacher.report import command as report

        report.main(args)
        return 0
    from anomalib_mixedteacher import anomalib_commands

    return anomalib_commands.main(command, args)


def _calibrate_checkpoint(*arguments: Any) -> Any:
    from anomalib_mixedteacher.checkpoint import calibrate_checkpoint  # imports torch

    return calibrate_checkpoint(*arguments)


if __name__ == "__main__":
    raise SystemExit(main())
