"""The command ``mixedteacher-edge predict|calibrate``."""

import sys
from collections.abc import Callable, Sequence

from mixedteacher_edge import __version__, calibrate, predict
from mixedteacher_edge.errors import MixedTeacherError

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"predict": predict.main, "calibrate": calibrate.main}
USAGE = """usage: mixedteacher-edge {predict,calibrate} MODEL.xml [options]

  predict    Judge images with an exported model.
  calibrate  Set an exported model's thresholds from good images and a budget for alarms.

mixedteacher-edge COMMAND --help lists a command's options."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is the command's, 1 after an error that the user can mend, or 2."""
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"mixedteacher-edge {__version__}")
        return 0
    if not args or args[0] not in COMMANDS:
        print(USAGE)
        return 0 if args and args[0] in {"-h", "--help"} else 2
    try:
        return COMMANDS[args[0]](args[1:])
    except MixedTeacherError as error:
        print(f"mixedteacher-edge: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
