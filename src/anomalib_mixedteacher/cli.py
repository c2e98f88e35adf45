"""The package's own command: ``mixedteacher train|test|predict|export|calibrate|benchmark|report``.

The first four take the same arguments and configuration files as anomalib's commands, with four differences: only the
parser of the command at hand is built, an error made by the user ends in its one sentence instead of a traceback,
``--seed_everything`` is heard, and data without a seed is split alike by all commands.
``predict`` followed by an exported model rather than by an option needs no anomalib, and does not load it.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = {
    "train": "Fit a model on good images, then test it.",
    "test": "Test a checkpoint.",
    "predict": "Predict images with a checkpoint, or with an exported model: predict MODEL.xml IMAGES...",
    "export": "Export a checkpoint to ONNX, OpenVINO or torch.",
    "calibrate": "Set a checkpoint's or an exported model's thresholds from good images and a budget for alarms.",
    "benchmark": "Train and measure models side by side, or exported ones alone (benchmark speed).",
    "report": "Make one HTML file of what a benchmark found.",
}
USAGE = """usage: mixedteacher {train,test,predict,export,calibrate,benchmark,report} [options]

{commands}

mixedteacher COMMAND --help lists a command's options; predict MODEL.xml --help those for exported models."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; ``sys.argv`` by default.

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

    try:
        if args[0] == "predict" and len(args) > 1 and not args[1].startswith("-"):
            from mixedteacher_edge import predict

            return predict.main(args[1:])
        if args[0] == "calibrate":
            from mixedteacher_edge import calibrate

            return calibrate.main(args[1:], _calibrate_checkpoint)
        if args[0] == "benchmark":
            from anomalib_mixedteacher.benchmark import command

            return command.main(args[1:])
        if args[0] == "report":
            from anomalib_mixedteacher.report import command as report

            report.main(args[1:])
        else:
            _run(args[0], _with_own_defaults(args))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"anomalib", __package__}:
            raise
        text = f"{args[0]} needs anomalib, which is not installed: install anomalib-mixedteacher itself."
    except Exception as error:
        if (known := sentence(error)) is None:
            raise
        text = known
    else:
        return 0
    print(f"mixedteacher: {text}", file=sys.stderr)
    return 1


def _calibrate_checkpoint(*arguments: Any) -> Any:
    from anomalib_mixedteacher.post_processing.checkpoint import calibrate_checkpoint  # imports torch

    return calibrate_checkpoint(*arguments)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return USAGE.replace("{commands}", commands)


def _with_own_defaults(args: list[str]) -> list[str]:
    """Take MixedTeacher where neither arguments nor configuration files name a model, and its limit to INT8's loss.

    anomalib's own limit is a loss of 0.01, five times as much.
    """
    configured = _configured(args)
    if configured is None:  # the parser says what is wrong with the file
        return args
    named = configured | {arg.split("=")[0].removeprefix("--") for arg in args if arg.startswith("--")}
    own = [] if "model" in named else ["--model", "MixedTeacher"]
    if args[0] == "export" and "compression_type" in named and "max_drop" not in named:
        from anomalib_mixedteacher.export import MAX_DROP

        own += ["--max_drop", str(MAX_DROP)]
    return [args[0], *own, *args[1:]]


def _configured(args: list[str]) -> set[str] | None:
    """Give the names at the top level of the configuration files; ``None`` if one cannot be read."""
    names: set[str] = set()
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        option, equals, value = arg.partition("=")
        if option not in {"--config", "-c"}:
            continue
        import yaml

        try:
            content = yaml.safe_load(Path(value if equals else following).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return None
        if not isinstance(content, dict):
            return None
        names |= {str(name).partition(".")[0] for name, setting in content.items() if setting is not None}
    return names


def _run(command: str, args: list[str]) -> None:
    from anomalib.cli import AnomalibCLI
    from anomalib.loggers import configure_logger
    from jsonargparse import ArgumentParser

    from anomalib_mixedteacher import plugin

    class OneCommandCLI(AnomalibCLI):
        """anomalib's command line, reduced to one command."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {name: skip for name, skip in AnomalibCLI.subcommands().items() if name == command}

        @staticmethod
        def anomalib_subcommands() -> dict[str, dict[str, str]]:
            return {name: text for name, text in AnomalibCLI.anomalib_subcommands().items() if name == command}

        @staticmethod
        def init_parser(**kwargs: Any) -> ArgumentParser:
            parser = AnomalibCLI.init_parser(**kwargs)
            parser.error = partial(_refuse, parser.error)  # type: ignore[method-assign]
            return parser

        def before_instantiate_classes(self) -> None:
            super().before_instantiate_classes()
            _seed(self.config[command])

        def instantiate_engine(self) -> None:
            super().instantiate_engine()
            self.engine.train = partial(_train, self.engine)  # type: ignore[method-assign]

    plugin.register()
    configure_logger()
    OneCommandCLI(args)


def _seed(config: Any) -> None:
    """Do what anomalib's ``--seed_everything`` says, and give data that is split at random the seed 0.

    Without one, data would be split anew by each command, and a model tested on images that it was trained on.
    """
    seed = config.get("seed_everything")
    if isinstance(seed, int) and not isinstance(seed, bool):  # True, anomalib's default, stands for any seed
        from lightning import seed_everything

        seed_everything(seed, workers=True)
    arguments = getattr(config.get("data"), "init_args", None)
    if arguments is not None and "seed" in arguments and arguments["seed"] is None:
        arguments["seed"] = 0


def _train(engine: Any, test_dataloaders: Any = None, **arguments: Any) -> Any:
    """Train as anomalib's Engine does, and test what was trained.

    Behind a resumed training the Engine tests the checkpoint that training went on from.
    """
    if arguments.get("ckpt_path") is None:
        return type(engine).train(engine, test_dataloaders=test_dataloaders, **arguments)
    engine.fit(**arguments)
    return engine.test(arguments["model"], test_dataloaders, datamodule=arguments.get("datamodule"))


def _refuse(otherwise: Callable[..., NoReturn], message: str, *args: Any) -> NoReturn:
    """Turn the parser's report of a wrong choice into a sentence; leave any other report to the parser."""
    wrong = re.search(r'Parser key "(\w+)":\s+Expected a typing\.Literal\[(.+?)\]\. Got value: (.+)', message)
    if wrong is None:
        otherwise(message, *args)
    print(f"mixedteacher: {wrong[1]} cannot be {wrong[3]!r}: choose one of {wrong[2]}.", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    raise SystemExit(main())
