"""``mixedteacher report RUN``: one HTML file from a benchmark's folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from anomalib_mixedteacher.errors import ConfigurationError, DataError
from anomalib_mixedteacher.report.page import render
from anomalib_mixedteacher.report.run import read_run


def main(arguments: Sequence[str]) -> None:
    """Run ``mixedteacher report``.

    Args:
        arguments: What stands behind the command's name.

    Raises:
        ConfigurationError: If the folder is no benchmark's, or the number of images is negative.
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
    output: Path = given.output or given.run / "report.html"
    page = render(read_run(given.run), given.images)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        msg = f"Cannot write {output} ({error.strerror}): give another file with --output."
        raise DataError(msg) from error
    print(f"report  {output} ({output.stat().st_size / 1e6:.1f} MB)")
