"""Run the notebooks as they stand, and keep their pictures for the documentation.

python notebooks/pictures.py docs/images
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURES = {
    "01": ["maps", "layers"],
    "02": ["overlays", "drift"],
    "03": ["comparison"],
    "04": ["maps"],
}
MAX_WIDTH = 680  # pixels
COLORS = 64  # of a palette: a fifth of the bytes of a picture in full colour


def run(notebook: Path, folder: Path) -> None:
    """Run a notebook's code in a fresh process.

    Args:
        notebook: The notebook.
        folder: Where it runs, and writes to.

    Raises:
        subprocess.CalledProcessError: If a cell raises.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    script = folder / "notebook.py"
    script.write_text(f"import matplotlib\nmatplotlib.use('Agg')\n{code}\n", encoding="utf-8")
    # not as a script, which dask's processes would run once more as their main module
    subprocess.run([sys.executable, "-c", f"exec(open({script.name!r}).read())"], cwd=folder, check=True)


def keep(picture: Path, target: Path) -> None:
    """Copy a picture, scaled to the documentation's width and with a palette.

    Args:
        picture: What the notebook wrote.
        target: The file to write.
    """
    with Image.open(picture) as image:
        scale = min(1.0, MAX_WIDTH / image.width)
        size = (round(scale * image.width), round(scale * image.height))
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(COLORS).save(target, optimize=True)


def main(target: Path) -> None:
    """Run all notebooks and write the pictures into a folder."""
    target.mkdir(parents=True, exist_ok=True)
    for notebook in sorted(Path(__file__).resolve().parent.glob("*.ipynb")):
        number = notebook.name[:2]
        with tempfile.TemporaryDirectory() as name:
            run(notebook, Path(name))
            for picture in PICTURES[number]:
                (found,) = Path(name).rglob(f"{picture}.png")
                keep(found, target / f"notebook-{number}-{picture}.png")
                print(target / f"notebook-{number}-{picture}.png", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
