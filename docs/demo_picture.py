"""Make the picture of README.md from what the demo drew: ``python docs/demo_picture.py demo docs/images/demo.jpg``."""

import sys
from pathlib import Path

from PIL import Image

KINDS = ("hole", "scratch", "missing_thread", "good")
WIDTH = 900


def main(demo: Path, target: Path) -> None:
    """Lay anomalib's pictures of one image of each kind one below the other.

    Args:
        demo: Folder of the demo.
        target: The file to write.
    """
    (images,) = demo.glob("results/MixedTeacher/*/weave/latest/images")
    rows = []
    for kind in KINDS:
        with Image.open(min((images / kind).glob("*.png"))) as row:
            rows.append(row.convert("RGB").resize((WIDTH, WIDTH * row.height // row.width), Image.Resampling.LANCZOS))
    picture = Image.new("RGB", (WIDTH, sum(row.height for row in rows)))
    for index, row in enumerate(rows):
        picture.paste(row, (0, index * row.height))
    picture.save(target, quality=80, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
