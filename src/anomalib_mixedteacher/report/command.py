"""``mixedteacher report RUN``: one HTML file from a benchmark's folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from anomalib_mixedteacher.errors import ConfigurationError, DataError


def main(arguments: Sequence[str]) -> int:
    """Run ``mixedteacher report``; the exit status is 0.

    Raises:
        ConfigurationError: If the folder is no benchmark's, the number of images is negative, or a package is missing.
        DataError: If nothing has finished yet, a file is damaged, or the report cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="mixedteacher report", description="Write a benchmark's figures, plots and images as one HTML file."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that 'mixedteacher benchmark' wrote")
    parser.add_argument("--output", type=Path, help="the HTML file; default: report.html in the folder")
    parser.add_argument(
        "--images", type=int, metavar="N", help="images of each part of the gallery; default: 12, fewer of many models"
    )
    given = parser.parse_args(arguments)
    if given.images is not None and given.images < 0:
        msg = f"--images {given.images} is negative: give 0 for no gallery, or a number of images."
        raise ConfigurationError(msg)
    try:
        from anomalib_mixedteacher.report.page import render
        from anomalib_mixedteacher.report.run import read_run
    except ModuleNotFoundError as error:
        msg = f"A report needs {error.name}, which is not installed: pip install 'anomalib-mixedteacher[report]'."
        raise ConfigurationError(msg) from error
    output: Path = given.output or given.run / "report.html"
    page = render(read_run(given.run), given.images)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        msg = f"Cannot write {output} ({error.strerror}): give another file with --output."
        raise DataError(msg) from error
    print(f"report  {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0
