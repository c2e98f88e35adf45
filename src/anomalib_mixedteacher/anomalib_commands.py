"""``mixedteacher train|test|predict|export``: anomalib's commands with this package's defaults and a quiet output.

They take anomalib's arguments and configuration files. Where no model is named, it is the checkpoint's, with the
checkpoint's arguments, else MixedTeacher. ``--seed_everything`` is heard, and data without a seed is split alike by
all commands.
"""

import argparse
import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml
from anomalib.cli import AnomalibCLI
from jsonargparse import ArgumentParser
from lightning import seed_everything

from anomalib_mixedteacher import plugin
from anomalib_mixedteacher.checkpoint import read_checkpoint
from anomalib_mixedteacher.components.export_mixin import MAX_DROP
from anomalib_mixedteacher.errors import ConfigurationError, missing_logger
from anomalib_mixedteacher.post_processing import given_sensitivities
from anomalib_mixedteacher.training_output import TrainingOutput, print_export, print_results
from mixedteacher_edge.calibrate import set_thresholds

EXAMPLE = """usage: mixedteacher {command} [options]

  mixedteacher train --data Folder --data.name fabric --data.root fabric --data.normal_dir good
  mixedteacher test|export --ckpt_path results/MixedTeacher/fabric/latest/weights/lightning/model.ckpt ...

Options of MixedTeacher (--model Msfd or Mkd has others):

{options}

Options of the trainer, of the data and of anomalib: mixedteacher {command} --help-all"""


def main(command: str, args: Sequence[str]) -> int:
    """Run one of anomalib's commands; the exit status is 0."""
    if {"-h", "--help"} & set(args):
        print(EXAMPLE.format(command=command, options=_model_options()))
        return 0
    args = ["--help" if arg == "--help-all" else arg for arg in args]
    thresholds, args = _own_thresholds(args) if command == "export" else ({}, args)
    if _value_of("--compression_type", args) and _value_of("--export_type", args) in {"onnx", "torch"}:
        msg = "--compression_type is for --export_type openvino, which alone is compressed: give it, or leave it out."
        raise ConfigurationError(msg)
    plugin.register()
    plugin.register_datamodules()
    _configure_logging()
    _one_command_cli(command, thresholds)([command, *_defaults(command, args), *args])
    return 0


def _model_options() -> str:
    from anomalib_mixedteacher import MixedTeacher

    lines = []
    described = dict(re.findall(r"^ {8}(\w+): (.+?)(?=^ {8}\w+: |^\s*$)", MixedTeacher.__doc__ or "", re.M | re.S))
    for name, parameter in inspect.signature(MixedTeacher).parameters.items():
        text = " ".join(described[name].split()).replace("``", "")
        lines.append(f"  --model.{name} (default: {parameter.default})\n      {text}")
    return "\n".join(lines)


def _configure_logging() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    first: dict[str, logging.LogRecord] = {}  # by message: anomalib repeats its advice in every epoch
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: first.setdefault(record.getMessage(), record) is record)
    for name in ("lightning.pytorch", "lightning_fabric"):  # they have handlers of their own
        logging.getLogger(name).setLevel(logging.ERROR)


def _defaults(command: str, args: Sequence[str]) -> list[str]:
    """Give the arguments that neither the command line nor a configuration file has, in front of these."""
    named = _configured(args) | {arg.split("=")[0].removeprefix("--") for arg in args if arg.startswith("--")}
    defaults: dict[str, Any] = {}
    if "model" not in named:
        name, arguments = _of_checkpoint(args)
        defaults["model"] = name
        defaults |= {f"model.{key}": value for key, value in arguments.items() if f"model.{key}" not in named}
    if command == "export" and "compression_type" in named and "max_drop" not in named:
        defaults["max_drop"] = MAX_DROP  # anomalib's own limit to INT8's loss is five times as high
    return [
        f"--{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}" for key, value in defaults.items()
    ]


def _of_checkpoint(args: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Give the name and the arguments of the model that a checkpoint holds."""
    path = _value_of("--ckpt_path", args)
    if path is None or not Path(path).is_file():
        return "MixedTeacher", {}
    content = read_checkpoint(Path(path))
    arguments = content["hyper_parameters"]
    return content["anomalib_mixedteacher"]["model"], {
        key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()
    }


def _value_of(option: str, args: Sequence[str]) -> str | None:
    for arg, following in zip(args, [*args[1:], None], strict=True):
        name, equals, value = arg.partition("=")
        if name == option:
            return value if equals else following
    return None


def _configured(args: Sequence[str]) -> set[str]:
    """Give the names at the top level of the configuration file; the parser says what is wrong with a bad one."""
    path = _value_of("--config", args) or _value_of("-c", args)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {"model"}
    return {name for name, value in content.items() if value is not None} if isinstance(content, dict) else {"model"}


def _own_thresholds(args: Sequence[str]) -> tuple[dict[str, float], Sequence[str]]:
    """Take the thresholds that are to be set by hand, raw scores, out of the arguments of ``export``.

    Raises:
        ConfigurationError: If another form than OpenVINO's is asked for.
    """
    parser = argparse.ArgumentParser(prog="mixedteacher export", allow_abbrev=False, add_help=False)
    for kind in ("image", "pixel"):
        parser.add_argument(f"--{kind}-threshold", type=float, dest=kind)
    given, others = parser.parse_known_args(args)
    thresholds = {kind: value for kind, value in vars(given).items() if value is not None}
    if thresholds and _value_of("--export_type", args) != "openvino":
        msg = "--image-threshold and --pixel-threshold are for --export_type openvino: give it, or leave them out."
        raise ConfigurationError(msg)
    return thresholds, others


def _one_command_cli(command: str, thresholds: dict[str, float]) -> type[AnomalibCLI]:
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
            config = self.config[command]
            if isinstance(seed := config.get("seed_everything"), int) and not isinstance(seed, bool):
                seed_everything(seed, workers=True)
            arguments = getattr(config.get("data"), "init_args", None)
            if arguments is not None and "seed" in arguments and arguments["seed"] is None:
                arguments["seed"] = 0  # without one, a model would be tested on images that it was trained on

        def instantiate_engine(self) -> None:
            super().instantiate_engine()
            if command == "train":
                arguments = self.engine._cache.args
                arguments["callbacks"].append(TrainingOutput(arguments.get("enable_progress_bar") is not False))
                arguments.update(enable_model_summary=False, enable_progress_bar=False)
            self.engine.train = partial(_train, self.engine)  # type: ignore[method-assign, assignment]
            self.engine.export = partial(_export, self.engine.export, thresholds)  # type: ignore[method-assign]

    return OneCommandCLI


def _train(engine: Any, **arguments: Any) -> None:
    """Train, test what was trained (anomalib's Engine tests the checkpoint that a resumed training went on from)."""
    test_dataloaders = arguments.pop("test_dataloaders", None)
    engine.fit(**arguments)
    model, datamodule = arguments["model"], arguments.get("datamodule")
    results = engine.test(model, test_dataloaders, datamodule=datamodule, verbose=False)  # empty without test images
    if engine.trainer.is_global_zero:
        print_results(model, results[0] if results else {}, engine.best_model_path)


def _export(export: Callable[..., Any], thresholds: dict[str, float], **arguments: Any) -> None:
    """Export with the sensitivities that were given (anomalib's Engine loads checkpoints without), or thresholds."""
    model, path = arguments["model"], arguments.get("ckpt_path")
    if path is not None and given_sensitivities(model.post_processor):
        arguments["model"] = type(model).load_from_checkpoint(path, post_processor=model.post_processor)
        arguments["ckpt_path"] = None
    arguments["onnx_kwargs"] = {"verbose": False} | (arguments.get("onnx_kwargs") or {})
    exported = export(**arguments)
    if thresholds:
        set_thresholds(exported, exported, **thresholds)
    print_export(exported)


def _refuse(otherwise: Callable[..., NoReturn], message: str, *args: Any) -> NoReturn:
    """Turn the parser's report of what a user gets wrong into a sentence; leave any other report to the parser."""
    if wrong := re.search(r'Parser key "(\w+)":\s+Expected a typing\.Literal\[(.+?)\]\. Got value: (.+)', message):
        text = f"{wrong[1]} cannot be {wrong[3]!r}: choose one of {wrong[2]}."
    elif missing := missing_logger(message):
        text = missing
    else:
        otherwise(message, *args)
    print(f"mixedteacher: {text}", file=sys.stderr)
    raise SystemExit(2)
